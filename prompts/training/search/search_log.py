"""What a search has tried: JSON lines beside the blob, one whole line at a time."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.training.config import TrainConfig, recipe_of
from promptdial.prompts.training.graphs.graph_name import trained_on
from promptdial.prompts.training.task import Task, data_digest

SUFFIX = ".search.jsonl"


def log_path(out: Path) -> Path:
    """The log beside a blob."""
    return out.with_name(out.name + SUFFIX)


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        name: The candidate's name.
        rung: Round of the search, from 0.
        rows: Training rows.
        dev_rows: Dev rows.
        epochs: Passes over the training rows.
        metric: Its dev metric, in percent.
        seconds: Wall time.
    """

    name: str
    rung: int
    rows: int
    dev_rows: int
    epochs: int
    metric: float
    seconds: float

    @property
    def key(self) -> tuple[str, int, int, int, int]:
        """What was run, without what came of it."""
        return (self.name, self.rung, self.rows, self.dev_rows, self.epochs)


class SearchLog:
    """The log of one search.

    Args:
        path: The file.
        run: What makes the search what it is: options, base and data.
        resume: Go on from the file that is there; else it is begun anew.

    Raises:
        UsageError: The file is of another search.
        FileFailed: It cannot be read or written.
    """

    def __init__(self, path: Path, run: dict[str, Any], resume: bool) -> None:
        self._path = path
        self.plan: dict[str, Any] = {}
        self.trials: list[Trial] = []
        self.choice: dict[str, Any] = {}
        lines = _lines(path) if resume else []
        if lines:
            self._take(lines, run)
        # Written again: the last line may have been cut off in the middle.
        _write(self._path, "w", [{"run": run}])
        again = [{"plan": self.plan}] if self.plan else []
        again += [{"trial": asdict(trial)} for trial in self.trials]
        again += [{"choice": self.choice}] if self.choice else []
        _write(self._path, "a", again)

    def add_plan(self, plan: dict[str, Any]) -> None:
        """Keep what was measured and planned."""
        self.plan = plan
        _write(self._path, "a", [{"plan": plan}])

    def add_trial(self, trial: Trial) -> None:
        """Keep one result."""
        self.trials.append(trial)
        _write(self._path, "a", [{"trial": asdict(trial)}])

    def add_choice(self, choice: dict[str, Any]) -> None:
        """Keep what was chosen, and why."""
        self.choice = choice
        _write(self._path, "a", [{"choice": choice}])

    def found(self, key: tuple[str, int, int, int, int]) -> Trial | None:
        """The result of what was run before."""
        return next((trial for trial in self.trials if trial.key == key), None)

    def _take(self, lines: list[dict[str, Any]], run: dict[str, Any]) -> None:
        then = lines[0].get("run")
        if then != run:
            what = sorted(key for key in run if (then or {}).get(key) != run[key])
            raise UsageError(
                f"{self._path} is the log of another search: {what[0]} differs",
                "use the same options and data, or train without --resume",
            )
        for line in lines[1:]:
            self.plan = line.get("plan", self.plan)
            self.choice = line.get("choice", self.choice)
            if "trial" in line:
                self.trials.append(_trial(line["trial"], self._path))


def search_identity(
    fingerprint: str, task: Task, config: TrainConfig
) -> dict[str, Any]:
    """What makes a search what it is: options, base, labels and data; not test rows."""
    return {
        "recipe": recipe_of(config),
        "base": fingerprint,
        "graph": trained_on(config),
        "labels": list(task.labels),
        "metric": task.metric,
        "template": dict(task.template),
        "train rows": data_digest(task.train),
        "dev rows": data_digest(task.dev),
    }


def note_blob(out: Path, blob: PromptBlob) -> None:
    """End the log beside a blob with the digest of what was written there.

    Raises:
        FileFailed: It cannot be written.
    """
    _write(log_path(out), "a", [{"blob": blob.digest}])


def finished_run(path: Path) -> tuple[dict[str, Any], str] | None:
    """The identity in a log, and the digest of the blob that its run wrote.

    None where the run did not come so far.
    """
    lines = _lines(path)
    digests = [line["blob"] for line in lines if "blob" in line]
    run = lines[0].get("run") if digests else None
    return (run, str(digests[-1])) if isinstance(run, dict) else None


def _write(path: Path, mode: str, lines: list[dict[str, Any]]) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileFailed(
            f"{path}: {error.strerror}", "check folder and permissions"
        ) from None


def _trial(found: Any, path: Path) -> Trial:
    try:
        return Trial(**found)
    except TypeError:
        raise UsageError(
            f"{path} has a line of another version", "train without --resume"
        ) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FileFailed(f"{path}: {error}", "delete it") from None
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            break
        if not isinstance(item, dict):
            break
        found.append(item)
    return found
