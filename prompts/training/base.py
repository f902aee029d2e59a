"""The frozen model in training: texts and prompts in, hidden states out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from promptdial.export.forward import FrozenModel, PromptState
from promptdial.export.model import ENCODER, LoadedBase, load_base, resolve
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.graphs.graph_name import in_torch
from promptdial.prompts.training.recompute import recomputed, require_layers
from promptdial.runtime.manifest import Base, Dims
from promptdial.runtime.text import TextEncoder


class PromptBase(Protocol):
    """A frozen model of either family, as far as virtual tokens go."""

    @property
    def token_table(self) -> Tensor:
        """Token embeddings [V, H]."""

    @property
    def encoder(self) -> TextEncoder:
        """Text to tokens."""

    @property
    def attention(self) -> str:
        """`one_way` or `full`."""

    @property
    def dims(self) -> Dims:
        """Sizes of the model."""

    @property
    def base(self) -> Base:
        """Names and fingerprints."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def trained_on(self) -> str:
        """What runs in training, as the blob says it."""

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """(low, high) by input, outside of which prompts are cut; empty for none."""

    def state_of(self, rows: Tensor) -> PromptState:
        """Prompt rows [P, H] ready to run."""


class Passes(Protocol):
    """What runs a frozen encoder: the PyTorch model, or a bundle's graph."""

    def state_of(self, rows: Tensor) -> PromptState:
        """Prompt rows [P, H] ready to run."""

    def hidden(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> Tensor:
        """Hidden rows [B, T, H] of texts over a prompt."""

    def levels(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H]."""


@dataclass(frozen=True)
class FrozenBase:
    """A frozen model with its tokenizer.

    Attributes:
        model: The transformers model, in eval mode, without gradients of its own.
        attention: `one_way` (a prefix) or `full` (rows in front of the text).
        encoder: Text to tokens, cut as the runtime cuts: dev, test, golden inputs.
        short: The same for training rows, cut to `max_tokens`.
        dims: Sizes of the model.
        base: Names and fingerprints.
        device: Where the model is.
        bf16: Whether training runs the model in bfloat16.
        gradient_checkpointing: Whether training computes activations again.
        graph: What runs in place of the model; None for the model itself.
        table: Token embeddings [V, H] in place of the model's.
        graph_name: Variant and digest of the graph; "" for the model itself.
        ranges: (low, high) by name of the graph's inputs, outside of which it cuts
            prompts; empty where nothing is cut.
    """

    model: nn.Module
    attention: str
    encoder: TextEncoder
    short: TextEncoder
    dims: Dims
    base: Base
    device: torch.device
    bf16: bool = False
    gradient_checkpointing: bool = False
    graph: Passes | None = None
    table: Tensor | None = None
    graph_name: str = ""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def trained_on(self) -> str:
        """What runs in training, as the blob says it."""
        return self.graph_name or in_torch(bf16=self.bf16)

    @property
    def token_table(self) -> Tensor:
        """Token embeddings [V, H]."""
        if self.table is not None:
            return self.table
        table = self.model.get_input_embeddings().weight  # type: ignore[operator]
        assert isinstance(table, Tensor)
        return table

    @property
    def frozen(self) -> Passes:
        """The model, or the graph, as prompts run on it."""
        return self.graph or FrozenModel(self.model, self.dims, self.attention)

    def state_of(self, rows: Tensor) -> PromptState:
        """Prompt rows [P, H] ready to run: keys and values, or the rows themselves."""
        with self._precision(), self._memory():
            return self.frozen.state_of(rows)

    def hidden(self, batch: TextBatch, state: PromptState) -> Tensor:
        """Hidden states [B, T, H] of texts over a prompt (empty for none).

        Args:
            batch: The texts.
            state: The prompt, ready to run.
        """
        embeds = self.token_table[batch.ids]
        with self._precision(), self._memory():
            hidden = self.frozen.hidden(embeds, batch.mask, batch.type_ids, state)
        return hidden.float()

    def levels(self, batch: TextBatch, state: PromptState) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H]."""
        embeds = self.token_table[batch.ids]
        with self._precision(), self._memory():
            found = self.frozen.levels(embeds, batch.mask, batch.type_ids, state)
        return [level.float() for level in found]

    def _precision(self) -> torch.autocast:
        # Only where gradients flow: dev and test stay in the model's own float32.
        low = self.bf16 and torch.is_grad_enabled()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def _memory(self) -> AbstractContextManager[None]:
        less = self.gradient_checkpointing and torch.is_grad_enabled()
        return recomputed(self.model) if less else nullcontext()


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        UsageError: `cuda` was asked for and is not there.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UsageError("device is cuda but no CUDA device is visible", "use auto")
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def open_base(
    model: str, device: torch.device, bf16: bool = False, max_tokens: int = 0
) -> FrozenBase:
    """Load MODEL (hub id, folder or `minilm`) frozen, for training or reference.

    Args:
        model: What to load.
        device: Where to.
        bf16: Train in bfloat16.
        max_tokens: Longest training text; 0 for the base's window.

    Raises:
        ExportError: The model cannot be found, loaded or given a prefix.
        UsageError: It is a decoder.
    """
    loaded = load_base(resolve(model), device)
    if loaded.family != ENCODER:
        raise UsageError(
            f"{loaded.base.model} is a {loaded.family}, the task is for an encoder",
            "give an encoder, or rows with a target",
        )
    return encoder_base(loaded, device, bf16, max_tokens)


def encoder_base(
    loaded: LoadedBase,
    device: torch.device,
    bf16: bool = False,
    max_tokens: int = 0,
    gradient_checkpointing: bool = False,
) -> FrozenBase:
    """A loaded encoder, for training or reference; see `open_base`.

    Args:
        loaded: The model.
        device: Where it is.
        bf16: Train in bfloat16.
        max_tokens: Longest training text; 0 for the base's window.
        gradient_checkpointing: Compute activations again instead of keeping them.

    Raises:
        UsageError: The model has no layers for gradient checkpointing.
    """
    if gradient_checkpointing:
        require_layers(loaded.model)
    window = loaded.dims.max_positions
    encoder = short = TextEncoder(loaded.tokenizer_json, window)
    if 0 < max_tokens < window:
        short = TextEncoder(loaded.tokenizer_json, max_tokens)
    return FrozenBase(
        model=loaded.model,
        attention=loaded.attention,
        encoder=encoder,
        short=short,
        dims=loaded.dims,
        base=loaded.base,
        device=device,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
    )
