"""Prompts in and out of other formats: PEFT adapter folders, T5X arrays.

PEFT keeps a prompt as `prompt_embeddings` in adapter_model.safetensors: [P, H] for
prompt tuning and p-tuning, [P, L*2*K*D] for prefix tuning (layer by layer, keys then
values; `PeftModel.get_prompt` views it as [P, 2L, K, D]). T5X and the original prompt
tuning code keep rows [P, H] in a .npy file.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.metadata import LIKELIHOOD
from promptdial.prompts.strict_json import parse_json
from promptdial.prompts.tensors import (
    ContainerInvalid,
    read_container,
    write_container,
)

Floats = NDArray[np.float32]
KeyValue = tuple[Floats, Floats]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_MODEL = "adapter_model.safetensors"
OWN_META = "promptdial.json"
_MAX_ADAPTER = 64 * 1024 * 1024
_MAX_HEADER = 1024 * 1024
_ROWS = ("PROMPT_TUNING", "P_TUNING")
_HEAD_ENDINGS = ("classifier", "score", "head")


@dataclass(frozen=True)
class Imported:
    """The numbers of a foreign prompt, in float32.

    Attributes:
        embeddings: [P, H], or None.
        past: L pairs of [K, P, D]; () for rows.
        head_weight: [C, H], or None.
        head_bias: [C], or None.
        origin: Where it is from, for the blob's `training` metadata.
    """

    embeddings: Floats | None
    past: tuple[KeyValue, ...]
    head_weight: Floats | None
    head_bias: Floats | None
    origin: dict[str, Any]


def read_foreign(path: Path) -> Imported:
    """Read a PEFT adapter folder, or a .npy array of rows [P, H].

    Raises:
        DataInvalid: Not such a folder or array, or a method that is no prompt.
    """
    return read_peft(path) if path.is_dir() else read_npy(path)


def read_npy(path: Path) -> Imported:
    """Read rows [P, H] of a T5X prompt.

    Raises:
        DataInvalid: The file is no array of that shape.
    """
    data = _read(path)
    try:
        # allow_pickle stays False: a .npy of objects is code.
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataInvalid(f"{path}: {error}", "give a .npy of floats") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise DataInvalid(f"{path} is no array [P, H] of floats", "give one prompt")
    return Imported(rows.astype(np.float32), (), None, None, {"from": "t5x"})


def read_peft(folder: Path) -> Imported:
    """Read a PEFT adapter folder.

    Raises:
        DataInvalid: A file is missing or broken, or the adapter is no prompt.
    """
    config = _config(folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type"))
    try:
        _, tensors = read_container(_read(folder / ADAPTER_MODEL), _MAX_HEADER)
    except ContainerInvalid as error:
        raise DataInvalid(
            f"{folder / ADAPTER_MODEL}: {error}", "save it again"
        ) from None
    prompt = tensors.get("prompt_embeddings")
    if prompt is None or prompt.ndim != 2 or kind not in (*_ROWS, "PREFIX_TUNING"):
        raise DataInvalid(
            f"{folder}: peft_type {kind} with tensors {sorted(tensors)[:3]}",
            "give a PROMPT_TUNING, P_TUNING or PREFIX_TUNING adapter",
        )
    rows = prompt.astype(np.float32)
    weight, bias = _head(tensors)
    origin = {"from": "peft", "peft_type": kind}
    if kind in _ROWS:
        return Imported(rows, (), weight, bias, origin)
    return Imported(None, _split_layers(rows, config, folder), weight, bias, origin)


def write_peft(blob: PromptBlob, folder: Path) -> None:
    """Write a blob as a folder that PEFT loads, in float32.

    promptdial.json beside it keeps what PEFT has no place for.

    Raises:
        DataInvalid: The blob has no virtual tokens.
        FileFailed: The folder cannot be written.
    """
    rows = blob.prompt_embeddings
    pairs = blob.past_key_values
    if rows is None and not pairs:
        raise DataInvalid(
            f"{blob.meta.task!r} has no virtual tokens", "PEFT has nothing to load"
        )
    config: dict[str, Any] = {
        "base_model_name_or_path": blob.meta.base_model,
        "inference_mode": True,
        "num_virtual_tokens": blob.num_virtual_tokens,
        "task_type": _task_type(blob),
    }
    tensors: dict[str, NDArray[Any]] = {}
    if rows is not None:
        config |= {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        config |= {"token_dim": rows.shape[1], "num_transformer_submodules": 1}
        tensors["prompt_embeddings"] = rows
    else:
        heads, _, width = pairs[0][0].shape
        config |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
        config |= {"token_dim": heads * width, "num_transformer_submodules": 1}
        config |= {"num_layers": len(pairs), "num_attention_heads": heads}
        config |= {"encoder_hidden_size": heads * width}
        tensors["prompt_embeddings"] = _join_layers(pairs)
    if blob.head_weight is not None:
        tensors["head.weight"] = blob.head_weight
    if blob.head_bias is not None:
        tensors["head.bias"] = blob.head_bias
    folder.mkdir(parents=True, exist_ok=True)
    data = write_container({"format": "pt"}, tensors)
    write_atomic(folder / ADAPTER_MODEL, data)
    write_atomic(folder / ADAPTER_CONFIG, _json(config))


def _task_type(blob: PromptBlob) -> str:
    """PEFT's word for what the model is: one that writes, or one that reads."""
    writes = blob.meta.kind == "generation" or blob.meta.pooling == LIKELIHOOD
    return "CAUSAL_LM" if writes else "FEATURE_EXTRACTION"


def _split_layers(
    rows: Floats, config: dict[str, Any], folder: Path
) -> tuple[KeyValue, ...]:
    """Rows [P, L*2*K*D] as L pairs of [K, P, D]."""
    layers, heads = config.get("num_layers"), config.get("num_attention_heads")
    width = config.get("token_dim")
    fits = (
        type(layers) is int
        and type(heads) is int
        and type(width) is int
        and layers > 0
        and heads > 0
        and rows.shape[1] == 2 * layers * width
        and width % heads == 0
    )
    if not fits:
        raise DataInvalid(
            f"{folder}: prompt_embeddings {list(rows.shape)} does not fit "
            f"num_layers {layers}, num_attention_heads {heads}, token_dim {width}",
            "save the adapter again",
        )
    assert isinstance(layers, int) and isinstance(heads, int)
    shaped = rows.reshape(len(rows), 2 * layers, heads, -1).transpose(1, 2, 0, 3)
    found = np.ascontiguousarray(shaped)
    return tuple((found[2 * i], found[2 * i + 1]) for i in range(layers))


def _join_layers(pairs: tuple[KeyValue, ...]) -> Floats:
    """L pairs of [K, P, D] as rows [P, L*2*K*D]."""
    stacked = np.stack([array for pair in pairs for array in pair])
    rows = stacked.transpose(2, 0, 1, 3).reshape(stacked.shape[2], -1)
    return np.ascontiguousarray(rows)


def _head(tensors: dict[str, NDArray[Any]]) -> tuple[Floats | None, Floats | None]:
    """Class vectors saved beside the prompt, whatever PEFT called their module."""
    weights = [
        name
        for name, array in tensors.items()
        if name.endswith(".weight")
        and name.split(".")[-2] in _HEAD_ENDINGS
        and array.ndim == 2
    ]
    if len(weights) != 1:
        return None, None
    bias = tensors.get(weights[0].removesuffix("weight") + "bias")
    weight = tensors[weights[0]].astype(np.float32)
    return weight, None if bias is None else bias.astype(np.float32)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(_read(path).decode("utf-8"))
    except ValueError as error:
        raise DataInvalid(f"{path}: {error}", "save the adapter again") from None
    if not isinstance(config, dict):
        raise DataInvalid(f"{path} is no JSON object", "save the adapter again")
    return config


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_ADAPTER + 1)
    except OSError as error:
        raise DataInvalid(
            f"{path}: {error.strerror or error}", "give an adapter folder or .npy"
        ) from None
    if len(data) > _MAX_ADAPTER:
        raise DataInvalid(f"{path} is over {_MAX_ADAPTER} bytes", "is it a prompt?")
    return data


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
