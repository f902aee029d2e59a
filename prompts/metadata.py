"""What a blob says about itself: the metadata of the file and its schema.

safetensors metadata holds strings only; what has structure is canonical JSON text.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from promptdial.prompts.errors import BlobInvalid, BlobTooNew
from promptdial.prompts.scores import (
    PLAIN,
    Scores,
    check_scores,
    from_object,
    to_object,
)
from promptdial.prompts.strict_json import JsonInvalid, parse_json

FORMAT = "promptdial.prompt"
FORMAT_VERSION = 1
KINDS = ("classification", "pair", "token", "generation", "embedding")
ATTENTIONS = ("one_way", "full")
LIKELIHOOD = "likelihood"
"""Pooling of labels that a decoder writes: no class vectors, their own tokens count."""

APART = "apart_l2"
"""Pooling of pairs whose texts the base reads one after the other, not as one input."""

POOLINGS = {
    "classification": ("mean_l2", LIKELIHOOD),
    "pair": ("segments_l2", "mean_l2", APART),
    "token": ("first_token",),
    "embedding": ("mean_l2",),
    "generation": ("",),
}


def feature_width(pooling: str, hidden: int) -> int:
    """Numbers that a class vector reads of one level [H], or [2 H] of texts apart."""
    return 2 * hidden if pooling == APART else hidden


NEUTRAL = "neutral"
"""Key of a template: a text that says nothing, by which likelihoods are calibrated."""

MAX_LABEL_CHARS = 64
_MAX_VERSION = 2**31 - 1
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_TASK = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}(?<!\.pack)")
"""Also a file's name: no separators, and not the ending of a pack's."""
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FINGERPRINT = re.compile(r"(ckpt1|tok1):[0-9a-f]{64}")


@dataclass(frozen=True)
class Golden:
    """An input whose answer is known, for the self-test on the device.

    Attributes:
        text: The input.
        text_pair: The second text of a pair.
        tokens: Its token ids, special tokens included.
        label: The expected label; tags joined by blanks for token prompts; the text of
            the first tokens for generation (promptdial.runtime.selftest).
        margin: Distance of the two best scores where the prompt was made; the least one
            of all tokens for generation.
    """

    text: str
    text_pair: str | None
    tokens: tuple[int, ...]
    label: str
    margin: float


@dataclass(frozen=True)
class PromptMeta:
    """Everything in a blob but its numbers.

    Attributes:
        task: Name, equal to the file's stem.
        version: Positive integer; a newer prompt has a larger one.
        kind: One of KINDS.
        attention: `one_way` (a prefix) or `full` (concatenated rows).
        base_model: The base, for people.
        base_fingerprint: `ckpt1:...` of the base.
        tokenizer_fingerprint: `tok1:...` of its tokenizer.
        labels: Names of the classes, in the order of the head's rows.
        template: Texts `before` and `after` the input; with pooling `likelihood`, a
            `neutral` one in place of the input asks for calibration (off without it).
        pooling: How features are read; see promptdial.runtime.pooling.
        generation: Defaults for generating.
        scores: How logits become scores, and which answers are abstentions.
        golden: Inputs with known answers.
        metrics: Figures of the maker, such as dev_accuracy in percent.
        training: Recipe, seed, data digest, graph trained on.
        license: Licence of the data, an SPDX id where there is one.
        created: UTC time as 2026-11-24T00:00:00Z.
    """

    task: str
    version: int
    kind: str
    attention: str
    base_model: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    labels: tuple[str, ...] = ()
    template: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    scores: Scores = PLAIN
    golden: tuple[Golden, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    created: str = ""


TEXT_KEYS = (
    "task",
    "kind",
    "attention",
    "base_model",
    "base_fingerprint",
    "tokenizer_fingerprint",
    "pooling",
    "license",
    "created",
)
OBJECT_KEYS = ("template", "generation", "metrics", "training")
_KEYS = {
    *TEXT_KEYS,
    *OBJECT_KEYS,
    "format",
    "format_version",
    "version",
    "labels",
    "golden",
}
_SCORES = "scores"
"""The one key that may be absent: prompts without it are read as plain softmax."""


def is_task_name(name: str) -> bool:
    """Whether a name may be a task's."""
    return _TASK.fullmatch(name) is not None


def to_strings(meta: PromptMeta) -> dict[str, str]:
    """The metadata as the strings of the file."""
    golden = [
        [item.text, item.text_pair, list(item.tokens), item.label, item.margin]
        for item in meta.golden
    ]
    found = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "version": str(meta.version),
        "labels": canonical(list(meta.labels)),
        "golden": canonical(golden),
    }
    found.update({key: getattr(meta, key) for key in TEXT_KEYS})
    found.update({key: canonical(getattr(meta, key)) for key in OBJECT_KEYS})
    if meta.scores != PLAIN:
        found[_SCORES] = canonical(to_object(meta.scores))
    return found


def from_strings(found: dict[str, str]) -> PromptMeta:
    """The metadata of a file's strings, checked.

    Raises:
        BlobTooNew: The format is newer than this reader.
        BlobInvalid: A key is missing, unknown or out of its range.
    """
    _check_format(found)
    keys = set(found) - {_SCORES}
    if keys != _KEYS:
        odd = sorted(keys ^ _KEYS)[0]
        what = "unknown" if odd in found else "missing"
        raise _invalid(f"metadata key {odd[:64]!r} is {what}")
    version = found["version"]
    if not _VERSION.fullmatch(version) or int(version) > _MAX_VERSION:
        raise _invalid(f"version {version[:16]!r} is no positive integer")
    texts: dict[str, Any] = {key: found[key] for key in TEXT_KEYS}
    objects: dict[str, Any] = {key: _object(found, key) for key in OBJECT_KEYS}
    meta = PromptMeta(
        **texts,
        **objects,
        version=int(version),
        labels=_labels(found),
        scores=from_object(_object(found, _SCORES) if _SCORES in found else {}),
        golden=_golden(found),
    )
    check_meta(meta)
    return meta


def check_meta(meta: PromptMeta) -> None:
    """Check every rule that needs no tensors.

    Raises:
        BlobInvalid: One is broken; the message names it.
    """
    if not is_task_name(meta.task):
        raise _invalid(f"task {meta.task[:64]!r} is not {_TASK.pattern}")
    if type(meta.version) is not int or not 1 <= meta.version <= _MAX_VERSION:
        raise _invalid(f"version {meta.version!r} is no positive integer")
    if meta.kind not in KINDS:
        raise _invalid(f"kind {meta.kind[:32]!r} is not one of {', '.join(KINDS)}")
    if meta.attention not in ATTENTIONS:
        raise _invalid(f"attention {meta.attention[:32]!r} is not one_way or full")
    if meta.pooling not in POOLINGS[meta.kind]:
        raise _invalid(f"pooling {meta.pooling[:32]!r} does not fit kind {meta.kind}")
    for value in (meta.base_fingerprint, meta.tokenizer_fingerprint):
        if not _FINGERPRINT.fullmatch(value):
            raise _invalid(f"fingerprint {value[:80]!r}")
    if meta.created and not _CREATED.fullmatch(meta.created):
        raise _invalid(f"created {meta.created[:32]!r} is no UTC time")
    _check_labels(meta)
    _check_template(meta)
    check_scores(meta.scores, meta.kind, meta.labels)


def _check_template(meta: PromptMeta) -> None:
    texts = meta.template
    if not set(texts) <= {"before", "after", NEUTRAL} or not all(
        isinstance(value, str) for value in texts.values()
    ):
        raise _invalid("template has other keys than before, after, neutral or no text")
    if NEUTRAL in texts and (meta.pooling != LIKELIHOOD or not texts[NEUTRAL].strip()):
        raise _invalid(
            f"the template's neutral text is blank, or with pooling {meta.pooling!r}"
        )


def _check_format(found: dict[str, str]) -> None:
    if found.get("format") != FORMAT:
        raise _invalid(f"format {found.get('format', '')[:32]!r} is not {FORMAT!r}")
    version = found.get("format_version", "")
    if not _VERSION.fullmatch(version):
        raise _invalid(f"format_version {version[:16]!r} is no positive integer")
    if int(version) > FORMAT_VERSION:
        raise BlobTooNew(
            f"format_version {version}, known up to {FORMAT_VERSION}",
            "upgrade promptdial on this device",
        )


def _check_labels(meta: PromptMeta) -> None:
    if len(set(meta.labels)) != len(meta.labels):
        twice = next(item for item in meta.labels if meta.labels.count(item) > 1)
        raise _invalid(
            f"label {twice[:64]!r} occurs {meta.labels.count(twice)} times, allowed: "
            "once"
        )
    for label in meta.labels:
        if not label or len(label) > MAX_LABEL_CHARS or not label.isprintable():
            raise _invalid(
                f"label {label[:64]!r} is empty, unprintable or over "
                f"{MAX_LABEL_CHARS} characters"
            )
        if meta.kind == "token" and label != "O" and label[:2] not in ("B-", "I-"):
            raise _invalid(f"tag {label!r} is not O, B-x or I-x")
    if meta.kind == "token":
        names = set(meta.labels)
        for label in meta.labels:
            if label.startswith("I-") and f"B-{label[2:]}" not in names:
                raise _invalid(f"tag {label!r} has no B-{label[2:]}")


def _labels(found: dict[str, str]) -> tuple[str, ...]:
    labels = _json(found, "labels")
    if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise _invalid("labels is no list of strings")
    return tuple(labels)


def _golden(found: dict[str, str]) -> tuple[Golden, ...]:
    items = _json(found, "golden")
    if not isinstance(items, list):
        raise _invalid("golden is no list")
    return tuple(_golden_item(item) for item in items)


def _golden_item(item: object) -> Golden:
    if not isinstance(item, list) or len(item) != 5:
        raise _invalid("a golden entry is not [text, text_pair, tokens, label, margin]")
    text, text_pair, tokens, label, margin = item
    shaped = (
        isinstance(text, str)
        and (text_pair is None or isinstance(text_pair, str))
        and isinstance(tokens, list)
        and all(type(token) is int and 0 <= token < 2**31 for token in tokens)
        and isinstance(label, str)
        and type(margin) in (int, float)
        and abs(margin) < 1e30
    )
    if not shaped:
        raise _invalid("a golden entry has values of the wrong type")
    return Golden(text, text_pair, tuple(tokens), label, float(margin))


def _object(found: dict[str, str], key: str) -> dict[str, Any]:
    value = _json(found, key)
    if not isinstance(value, dict):
        raise _invalid(f"{key} is no JSON object")
    return value


def _json(found: dict[str, str], key: str) -> Any:
    try:
        return parse_json(found[key])
    except JsonInvalid as error:
        raise _invalid(f"{key} is no JSON: {str(error)[:100]}") from None


def canonical(value: object) -> str:
    """The one JSON text of a value.

    Raises:
        BlobInvalid: It has none.
    """
    try:
        return json.dumps(
            value,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"metadata cannot be JSON: {error}") from None


def _invalid(rule: str) -> BlobInvalid:
    return BlobInvalid(rule, "get the prompt again from its maker")
