"""A base model in PyTorch, encoder or decoder: frozen, and ready to take prompts.

Class and sizes come from optimum (TasksManager, NormalizedConfigManager); what they
do not tell (position offset, whether a prefix is taken) is found by running it once
(model_probe.py).
"""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.tasks import TasksManager
from torch import nn
from transformers import AutoConfig, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from promptdial.export.decoder_forward import FrozenDecoder
from promptdial.export.errors import ModelInvalid, Unsupported
from promptdial.export.fingerprint import (
    checkpoint_fingerprint,
    read_json,
    tokenizer_fingerprint,
    weight_files,
)
from promptdial.export.forward import FULL, ONE_WAY, FrozenModel
from promptdial.export.model_probe import (
    dims_of,
    input_embeddings,
    layers_with_prefix,
    require_conv_state,
    require_encoder,
    require_known_layers,
    require_own_function,
    require_prefix,
)
from promptdial.export.prefix_attention import ATTENTION
from promptdial.export.source import BaseSource, resolve
from promptdial.runtime.manifest import DECODER, ENCODER, Base, Dims
from promptdial.runtime.tokenizer_rules import TokenizerRefused, check_tokenizer

__all__ = [
    "DECODER",
    "ENCODER",
    "BaseSource",
    "LoadedBase",
    "load_base",
    "resolve",
]

_TASKS = {ENCODER: "feature-extraction", DECODER: "text-generation"}
"""The family's name in optimum."""

_HALVES = {"t5", "mt5", "umt5"} & set(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES)
"""Encoders with decoders behind them whose encoder is a model of its own: that is what
is loaded, from checkpoints of either alone or of both.
"""


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base in PyTorch.

    Attributes:
        family: `encoder` or `decoder`.
        model: The model, a decoder with its head: eval mode, float32, no parameter
            requires a gradient.
        token_table: Input embeddings [V, H], float32, on the model's device.
        attention: `one_way` where its attention takes a prefix (it is then
            `ATTENTION`), `full` where prompt rows are put in front of the text.
        dims: Its sizes.
        base: Its name and fingerprints.
        tokenizer_json: The text of tokenizer.json.
        folder: Where it was loaded from.
    """

    family: str
    model: nn.Module
    token_table: torch.Tensor
    attention: str
    dims: Dims
    base: Base
    tokenizer_json: str
    folder: Path

    @property
    def frozen(self) -> FrozenModel:
        """An encoder as prompts run on it."""
        return FrozenModel(self.model, self.dims, self.attention)

    @property
    def decoder(self) -> FrozenDecoder:
        """A decoder as prompts run on it."""
        return FrozenDecoder(self.model)


def load_base(source: BaseSource, device: torch.device | str = "cpu") -> LoadedBase:
    """Load the encoder or decoder of `source`.

    Args:
        source: As `resolve` found it.
        device: As torch spells it (`cpu`, `cuda`, `cuda:1`).

    Raises:
        ModelInvalid: A file is missing or damaged, or weights are missing in it.
        Unsupported: The architecture cannot be exported yet.
        NoPrefix: Its attention does not take a prefix.
    """
    folder = source.folder
    config = read_json(folder / "config.json")
    weight_files(folder)
    tokenizer_json = _tokenizer_json(folder)
    family = _family(config)
    with quiet_transformers():
        model = _load(folder, str(config["model_type"]), family, ATTENTION)
        require_known_layers(model)
        attention = ONE_WAY
        if not layers_with_prefix(model):
            require_encoder(model, family)
            # The masks of ATTENTION are wrong for attention code that it never reaches.
            model = _load(folder, str(config["model_type"]), family, "eager")
            attention = FULL
        else:
            require_own_function(model)
    model = model.to(device)
    dims = dims_of(model, family)
    if attention == ONE_WAY:
        require_prefix(model, dims)
    if dims.conv_layers:
        require_conv_state(model, dims)
    base = Base(
        model=source.name,
        architecture=type(model).__name__,
        fingerprint=checkpoint_fingerprint(folder),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_json),
        license=source.license,
    )
    table = input_embeddings(model)
    return LoadedBase(
        family, model, table, attention, dims, base, tokenizer_json, folder
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report, progress bars and advice for a while.

    What matters of the report (missing weights) is checked here and raised.
    """
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _tokenizer_json(folder: Path) -> str:
    read_json(folder / "tokenizer.json")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    try:
        # What no device would open is better refused here.
        check_tokenizer(text)
    except TokenizerRefused as error:
        raise Unsupported(f"tokenizer.json: {error}", "use another base") from None
    return text


def _family(config: dict[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelInvalid("config.json has no model_type", "give a transformers model")
    if model_type in _HALVES:
        return ENCODER
    if not config.get("is_encoder_decoder"):
        is_masked = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if is_masked and not config.get("is_decoder"):
            return ENCODER
        if not is_masked and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return DECODER
    raise Unsupported(
        f"model_type {model_type!r} is a seq2seq or other model; encoders (BERT, "
        "MiniLM, RoBERTa, T5's, ...) and decoders (Llama, GPT-2, ...) are built so far",
        "give one of these",
    )


def _load(folder: Path, model_type: str, family: str, attention: str) -> nn.Module:
    auto_class: Any = AutoModelForTextEncoding
    if model_type not in _HALVES:
        auto_class = TasksManager.get_model_class_for_task(
            _TASKS[family], model_type=model_type
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        concrete = auto_class._model_mapping[type(config)]
        takes = inspect.signature(concrete.__init__).parameters
        # The pooler serves BERT's next-sentence task; no output here reads it.
        pooling = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
        model, report = concrete.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            local_files_only=True,
            **pooling,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "?"
        raise ModelInvalid(f"{folder} cannot be loaded: {reason}") from error
    missing = sorted(report["missing_keys"]) + sorted(
        map(str, report["mismatched_keys"])
    )
    if missing:
        raise ModelInvalid(
            f"{folder} has no weights for {len(missing)} tensors, e.g. {missing[0]}",
            "give the whole checkpoint; random weights are never exported",
        )
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(False)
