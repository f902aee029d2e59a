"""A base model in PyTorch, encoder or decoder: frozen, and ready to take prompts.

Class and sizes come from optimum (TasksManager, NormalizedConfigManager); what they
do not tell (position offset, whether a prefix is taken) is found by running it once.
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
from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from promptdial.export.decoder_forward import FrozenDecoder
from promptdial.export.errors import ModelInvalid, NoPrefix, Unsupported
from promptdial.export.fingerprint import (
    checkpoint_fingerprint,
    read_json,
    tokenizer_fingerprint,
    weight_files,
)
from promptdial.export.forward import FULL, ONE_WAY, FrozenModel
from promptdial.export.masks import LAYER_KINDS
from promptdial.export.prefix_attention import ATTENTION, Prefix
from promptdial.export.source import BaseSource, resolve
from promptdial.runtime.manifest import Base, Dims
from promptdial.runtime.tokenizer_rules import TokenizerRefused, check_tokenizer

__all__ = ["BaseSource", "LoadedBase", "load_base", "resolve"]

ENCODER, DECODER = "encoder", "decoder"
_TASKS = {ENCODER: "feature-extraction", DECODER: "text-generation"}
"""The family's name in optimum."""

_PROBE_ROWS = 3
_MAX_OWN_DIFF = 1e-3  # of the largest value: another function differs by far more


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base in PyTorch.

    Attributes:
        family: `encoder` or `decoder`.
        model: The model, a decoder with its head: eval mode, float32, no parameter
            requires a gradient.
        attention: `one_way` where its attention takes a prefix (it is then
            `ATTENTION`), `full` where prompt rows are put in front of the text.
        dims: Its sizes.
        base: Its name and fingerprints.
        tokenizer_json: The text of tokenizer.json.
        folder: Where it was loaded from.
    """

    family: str
    model: nn.Module
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

    @property
    def token_table(self) -> torch.Tensor:
        """Input embeddings [V, H], float32, on the model's device."""
        return input_embeddings(self.model)


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
        attention = ONE_WAY
        if not _layers_with_prefix(model):
            _require_encoder(model, family)
            # The masks of ATTENTION are wrong for attention code that it never reaches.
            model = _load(folder, str(config["model_type"]), family, "eager")
            attention = FULL
        elif family == DECODER:
            _require_own_function(
                model, _load(folder, str(config["model_type"]), family, "eager")
            )
    model = model.to(device)
    _require_known_layers(model)
    dims = _dims(model, family)
    if attention == ONE_WAY:
        _require_prefix(model, dims)
    base = Base(
        model=source.name,
        architecture=type(model).__name__,
        fingerprint=checkpoint_fingerprint(folder),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_json),
        license=source.license,
    )
    return LoadedBase(family, model, attention, dims, base, tokenizer_json, folder)


def input_embeddings(model: nn.Module) -> torch.Tensor:
    """The token table [V, H] of a transformers model, as `inputs_embeds` takes it.

    Gemma 3 scales its rows on their way out of the table; others read them as they are.
    """
    module = model.get_input_embeddings()  # type: ignore[operator]
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if type(module) is nn.Embedding:
        return weight.detach()
    with torch.no_grad():
        rows = module(torch.arange(len(weight), device=weight.device))
    assert isinstance(rows, torch.Tensor)
    return rows


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
    if not config.get("is_encoder_decoder"):
        is_masked = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if is_masked and not config.get("is_decoder"):
            return ENCODER
        if not is_masked and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return DECODER
    raise Unsupported(
        f"model_type {model_type!r} is a seq2seq or other model; encoders (BERT, "
        "MiniLM, RoBERTa, ...) and decoders (Llama, GPT-2, ...) are built so far",
        "give one of these",
    )


def _require_encoder(model: nn.Module, family: str) -> None:
    if family != ENCODER:
        raise NoPrefix(
            f"{type(model).__name__} has an attention of its own that takes no prefix",
            "give a model of another architecture (Llama, Qwen, GPT-2, ...)",
        )


def _require_own_function(model: nn.Module, plain: nn.Module) -> None:
    """Check that promptdial's attention gives what the model's own code gives.

    Architectures hand arguments of their own to the attention function: one that is
    not known here would be dropped without a word.
    """
    rows = _probe_rows(model)
    with torch.no_grad():
        wanted = plain(inputs_embeds=rows, use_cache=False).logits
        found = model(inputs_embeds=rows, use_cache=False).logits
    limit = _MAX_OWN_DIFF * max(1.0, float(wanted.abs().max()))
    if not float((found - wanted).abs().max()) <= limit:
        raise Unsupported(
            f"{type(model).__name__} computes its attention in an unknown way",
            "give a model of another architecture",
        )


def _load(folder: Path, model_type: str, family: str, attention: str) -> nn.Module:
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


def _dims(model: nn.Module, family: str) -> Dims:
    config: Any = model.config
    try:
        kind = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:
        kind = NormalizedTextConfig
    sizes = kind(config)
    hidden, heads = int(sizes.hidden_size), int(sizes.num_attention_heads)
    vocab, width = input_embeddings(model).shape
    takes = inspect.signature(model.forward).parameters
    if "position_ids" not in takes:
        raise Unsupported(f"{type(model).__name__} takes no position_ids")
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    # A decoder numbers from 0, whatever it adds inside (OPT: 2).
    offset = _position_offset(model) if family == ENCODER else 0
    return Dims(
        layers=int(sizes.num_layers),
        hidden=hidden,
        embedding=int(width),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        vocab=int(vocab),
        max_positions=int(config.max_position_embeddings) - offset,
        position_offset=offset,
        token_types=types if types > 1 and "token_type_ids" in takes else 0,
    )


def _position_offset(model: nn.Module) -> int:
    """The first text token's position: the one that gives the model's own answer."""
    pad = getattr(model.config, "pad_token_id", None)
    inputs = _probe_rows(model)
    steps = torch.arange(inputs.shape[1], device=inputs.device)[None]
    with torch.no_grad():
        own = model(inputs_embeds=inputs).last_hidden_state
        for offset in (0, int(pad) + 1 if isinstance(pad, int) else 0):
            shifted = model(inputs_embeds=inputs, position_ids=steps + offset)
            if torch.allclose(own, shifted.last_hidden_state, atol=1e-5):
                return offset
    raise Unsupported(f"{type(model).__name__} numbers its positions in an unknown way")


def _require_known_layers(model: nn.Module) -> None:
    kinds = set(getattr(model.config, "layer_types", None) or LAYER_KINDS[:1])
    if not kinds <= set(LAYER_KINDS):
        raise Unsupported(
            f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}; built "
            f"are {' and '.join(LAYER_KINDS)}",
            "give a model of another architecture",
        )


def _layers_with_prefix(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the keys [1, K, 3, D] that reach promptdial's attention, in order."""
    prefix = Prefix()
    with torch.no_grad():
        model(inputs_embeds=_probe_rows(model), prefix=prefix)
    return [tuple(key.shape) for key, _ in prefix.present]


def _require_prefix(model: nn.Module, dims: Dims) -> None:
    shapes = _layers_with_prefix(model)
    if shapes != [(1, dims.kv_heads, _PROBE_ROWS, dims.head_dim)] * dims.layers:
        raise NoPrefix(
            f"{type(model).__name__} hands {len(shapes)} of {dims.layers} layers' keys "
            "and values to transformers' attention interface",
            "give a model of another architecture (BERT, RoBERTa, DistilBERT, ...)",
        )


def _probe_rows(model: nn.Module) -> torch.Tensor:
    """Rows [1, 3, H] of the token table, unlike each other."""
    table = input_embeddings(model)
    rows = torch.linspace(1, len(table) - 1, _PROBE_ROWS).long().to(table.device)
    return table[rows][None]
