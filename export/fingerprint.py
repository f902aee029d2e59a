"""Fingerprints of a checkpoint and of a tokenizer: what ties a prompt to its base.

`ckpt1:` is a SHA-256 over the tensors as they are stored (names, dtypes, shapes,
bytes) and over the configuration keys that change the function. It is streamed from
the safetensors files and never looks at a loaded model, whose class and dtype would
change it. Sharding does not matter. `tok1:` is a SHA-256 over tokenizer.json.

A matrix that is stored twice (tied embedding and output head, written by some tools
and dropped by others) counts once, under one chosen name: not the output head's, of
the rest the one with the fewest parts, of those the first.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptdial.export.errors import ModelInvalid, file_errors

CHECKPOINT_PREFIX = "ckpt1:"
TOKENIZER_PREFIX = "tok1:"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Keys of config.json that leave the function of the frozen model as it is: where it
# came from, how it was trained or stored, what is returned, and task labels.
IGNORED_KEYS = frozenset(
    {
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "classifier_bias",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)
IGNORED_ENDINGS = ("dropout", "dropout_prob", "dropout_rate")

_HEAD_NAMES = ("lm_head", "decoder", "embed_out", "output", "head")
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of a checkpoint lies.

    Attributes:
        name: Its name in the file.
        dtype: As safetensors spells it (`F32`, `BF16`, ...).
        shape: Its sizes.
        path: The file.
        start: Offset of its first byte in the file.
        size: Its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int


def checkpoint_fingerprint(folder: Path) -> str:
    """`ckpt1:` and the SHA-256 of the checkpoint in `folder`.

    Raises:
        ModelInvalid: No safetensors weights, no config.json, or a damaged one.
        FileFailed: A file cannot be read.
    """
    digests = [(tensor, _digest(tensor)) for tensor in stored_tensors(folder)]
    total = hashlib.sha256()
    for tensor, digest in _without_duplicates(digests):
        entry = [tensor.name, tensor.dtype, list(tensor.shape), digest]
        total.update(_canonical(entry) + b"\n")
    total.update(_canonical(functional_config(read_json(folder / "config.json"))))
    return CHECKPOINT_PREFIX + total.hexdigest()


def tokenizer_fingerprint(tokenizer_json: str) -> str:
    """`tok1:` and the SHA-256 of tokenizer.json without `truncation` and `padding`.

    Raises:
        ModelInvalid: The text is not a JSON object.
    """
    try:
        body = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"tokenizer.json is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ModelInvalid("tokenizer.json is not a JSON object")
    kept = {k: v for k, v in body.items() if k not in ("truncation", "padding")}
    return TOKENIZER_PREFIX + hashlib.sha256(_canonical(kept)).hexdigest()


def functional_config(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of config.json that change the function; keys set to null are left out.

    Sub-configurations are treated alike.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if value is None or key in IGNORED_KEYS or key.endswith(IGNORED_ENDINGS):
            continue
        kept[key] = functional_config(value) if isinstance(value, dict) else value
    return kept


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of the checkpoint, sorted by name.

    Raises:
        ModelInvalid: No safetensors weights, or files that break the format.
        FileFailed: A file cannot be read.
    """
    tensors = [tensor for path in weight_files(folder) for tensor in _header(path)]
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise ModelInvalid(f"{folder}: a tensor is stored in two shards")
    return sorted(tensors, key=lambda tensor: tensor.name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
        ModelInvalid: There are none, or a shard is missing.
    """
    index = folder / INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not index.is_file():
        raise ModelInvalid(
            f"{folder} has no {WEIGHTS_NAME}",
            "give a safetensors checkpoint; pickled weights are never loaded",
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelInvalid(f"{index} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelInvalid(f"{index} names the shard {name!r}, which is not there")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelInvalid: The file is missing or holds no JSON object.
    """
    if not path.is_file():
        raise ModelInvalid(f"{path.parent} has no {path.name}", "give a whole model")
    try:
        with file_errors(path):
            body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ModelInvalid(f"{path} is not a JSON object")
    return body


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with file_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> Iterator[StoredTensor]:
    """Entries of one safetensors file (format: huggingface/safetensors README)."""
    with file_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        total = path.stat().st_size
        if not 2 <= length <= min(_MAX_HEADER_BYTES, total - 8):
            raise ModelInvalid(f"{path} is no safetensors file: header of {length}")
        text = file.read(length)
    try:
        entries = json.loads(text)
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= total - 8 - length:
                raise ModelInvalid(f"{path}: {name} lies outside the file")
            shape = tuple(int(size) for size in entry["shape"])
            start = 8 + length + begin
            yield StoredTensor(name, entry["dtype"], shape, path, start, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelInvalid(f"{path} has a broken header: {error}") from None


def _digest(tensor: StoredTensor) -> str:
    digest = hashlib.sha256()
    with file_errors(tensor.path), tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.size
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ModelInvalid(f"{tensor.path} ended inside {tensor.name}")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _without_duplicates(
    digests: list[tuple[StoredTensor, str]],
) -> list[tuple[StoredTensor, str]]:
    """Each matrix once; vectors stay, since many of them are equal by their nature."""
    chosen: dict[tuple[str, tuple[int, ...], str], str] = {}
    for tensor, digest in digests:
        key = (tensor.dtype, tensor.shape, digest)
        chosen[key] = min(chosen.get(key, tensor.name), tensor.name, key=_preference)
    return [
        (tensor, digest)
        for tensor, digest in digests
        if len(tensor.shape) < 2
        or chosen[tensor.dtype, tensor.shape, digest] == tensor.name
    ]


def _preference(name: str) -> tuple[bool, int, str]:
    parts = name.split(".")
    return len(parts) > 1 and parts[-2] in _HEAD_NAMES, len(parts), name


def _canonical(body: object) -> bytes:
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8", "surrogatepass")
