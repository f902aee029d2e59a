"""A task: rows for train, dev and test, and what task.yaml says about them."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.metadata import NEUTRAL
from promptdial.runtime.metrics import METRIC_OF_KIND, METRICS_OF_KIND
from promptdial.runtime.rows import Row, read_rows

TASK_FILE = "task.yaml"
CHAT = "chat"
"""Key of a template: the system's message in the base's chat template, "" for none."""
_KEYS = (
    "name",
    "kind",
    "labels",
    "out_of_scope",
    "template",
    "metric",
    "license",
    "data",
)


@dataclass(frozen=True)
class Task:
    """Rows and description of one task.

    Attributes:
        name: The task's name, and the blob file's.
        kind: classification, pair, token, embedding or generation.
        labels: Class names in the order of the head's rows; () where there are none.
        train: Rows to train on.
        dev: Rows to choose by.
        test: Rows nobody looks at before the end; may be empty.
        template: Text put `before` and `after` every input; a `neutral` one in place
            of it calibrates the labels of a decoder. `chat`, a system's message or
            "", stands for the base's own chat template (decoders).
        metric: Name of the metric (see runtime/metrics.py).
        license: Licence of the data, "" where unknown.
        out_of_scope: The label that stands for "none of these", "" where there is none.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    train: list[Row]
    dev: list[Row]
    test: list[Row] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    license: str = ""
    out_of_scope: str = ""


def read_task(path: Path, limit: int = 0) -> Task:
    """Read a task folder, or a YAML file that describes one.

    Args:
        path: A folder with train.jsonl and dev.jsonl (test.jsonl and task.yaml where
            there are any), or a task.yaml whose `data` names the folder.
        limit: Keep the first rows of train only; 0 for all.

    Raises:
        DataInvalid: Something is missing, unreadable or contradicts itself.
    """
    folder, about = _describe(path)
    train = read_rows(folder / "train.jsonl", limit or None)
    dev = read_rows(folder / "dev.jsonl")
    test_file = folder / "test.jsonl"
    test = read_rows(test_file) if test_file.exists() else []
    kind = str(about.get("kind", train[0].kind))
    if kind != train[0].kind or kind != dev[0].kind:
        raise DataInvalid(
            f"{folder}: kind {kind}, train rows {train[0].kind}, dev {dev[0].kind}",
            "make the files and task.yaml agree",
        )
    return Task(
        name=str(about.get("name", folder.resolve().name)),
        kind=kind,
        labels=_labels(about, kind, train, dev, folder),
        train=train,
        dev=dev,
        test=test,
        template=_template(about, folder),
        metric=_metric(about, kind, folder),
        license=str(about.get("license", "")),
        out_of_scope=_out_of_scope(about, folder),
    )


def data_digest(rows: list[Row]) -> str:
    """`sha256:` digest of rows, over their canonical JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(asdict(row), sort_keys=True).encode())
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def _describe(path: Path) -> tuple[Path, dict[str, Any]]:
    described = path / TASK_FILE if path.is_dir() else path
    if not described.exists():
        if path.is_dir():
            return path, {}
        raise DataInvalid(f"{path} does not exist", "give a task folder or task.yaml")
    try:
        about = yaml.safe_load(described.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataInvalid(f"{described}: {error}", "give readable YAML") from None
    if not isinstance(about, dict):
        raise DataInvalid(f"{described} is no mapping", f"keys: {', '.join(_KEYS)}")
    unknown = sorted(set(about) - set(_KEYS))
    if unknown:
        raise DataInvalid(
            f"{described}: unknown key {unknown[0]!r}", f"known: {', '.join(_KEYS)}"
        )
    return described.parent / str(about.get("data", ".")), about


def _labels(
    about: dict[str, Any], kind: str, train: list[Row], dev: list[Row], folder: Path
) -> tuple[str, ...]:
    if kind in ("embedding", "generation"):
        return ()
    seen: set[str] = set()
    for row in (*train, *dev):
        names = row.tags if kind == "token" else (row.label,)
        if not names or None in names:
            raise DataInvalid(f"{folder}: a row has no label", "label every row")
        seen.update(name for name in names if name is not None)
    labels = tuple(str(name) for name in about.get("labels", sorted(seen)))
    missing = sorted(seen - set(labels))
    if missing:
        raise DataInvalid(
            f"{folder}: label {missing[0]!r} is not in task.yaml", "list every label"
        )
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise DataInvalid(
            f"{folder}: {len(labels)} labels, {len(set(labels))} different",
            "give at least two different ones",
        )
    return labels


def _out_of_scope(about: dict[str, Any], folder: Path) -> str:
    label = about.get("out_of_scope") or ""
    if not isinstance(label, str):
        raise DataInvalid(f"{folder}: out_of_scope {label!r}", "name one label")
    return label


def _template(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    template = about.get("template") or {}
    known = {"before", "after", NEUTRAL, CHAT}
    if not isinstance(template, dict) or not set(template) <= known:
        raise DataInvalid(
            f"{folder}: template {template!r}", "keys: before, after, neutral, chat"
        )
    return {key: str(value) for key, value in template.items()}


def _metric(about: dict[str, Any], kind: str, folder: Path) -> str:
    metric = str(about.get("metric", METRIC_OF_KIND[kind]))
    if metric not in METRICS_OF_KIND[kind]:
        raise DataInvalid(
            f"{folder}: metric {metric!r}",
            f"a {kind} task has {' or '.join(METRICS_OF_KIND[kind])}",
        )
    return metric
