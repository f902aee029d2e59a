"""The frozen model in training: texts and prompts in, hidden states out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptdial.export.model import load_base, resolve
from promptdial.export.prefix_attention import LayerKV, Prefix, text_mask
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.batches import TextBatch
from promptdial.runtime.manifest import Base, Dims
from promptdial.runtime.text import TextEncoder


@dataclass(frozen=True)
class FrozenBase:
    """A frozen model with its tokenizer.

    Attributes:
        model: The transformers model, in eval mode, without gradients of its own.
        encoder: Text to tokens, cut as the runtime cuts.
        dims: Sizes of the model.
        base: Names and fingerprints.
        device: Where the model is.
        bf16: Whether training runs the model in bfloat16.
    """

    model: nn.Module
    encoder: TextEncoder
    dims: Dims
    base: Base
    device: torch.device
    bf16: bool = False

    @property
    def token_table(self) -> Tensor:
        """Token embeddings [V, H]."""
        table = self.model.get_input_embeddings().weight  # type: ignore[operator]
        assert isinstance(table, Tensor)
        return table

    def prefix_of(self, rows: Tensor) -> list[LayerKV]:
        """Keys and values of prompt rows [P, H] seen alone: L pairs [1, K, P, D]."""
        length = rows.shape[0]
        prefix = Prefix()
        self._forward(
            rows[None],
            torch.ones(1, length, device=self.device),
            torch.zeros(1, length, dtype=torch.long, device=self.device),
            prefix,
        )
        return prefix.present

    def hidden(self, batch: TextBatch, past: list[LayerKV]) -> Tensor:
        """Hidden states [B, T, H] of texts over a prefix (empty list for none).

        Args:
            batch: The texts.
            past: L pairs of [1, K, P, D].
        """
        mask = batch.mask
        if past:
            seen = torch.ones(mask.shape[0], past[0][0].shape[2], device=self.device)
            mask = torch.cat([seen, mask.to(seen.dtype)], dim=1)
        embeds = self.token_table[batch.ids]
        return self._forward(embeds, mask, batch.type_ids, Prefix(past=past))

    def _forward(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, prefix: Prefix
    ) -> Tensor:
        batch, length = embeds.shape[:2]
        positions = torch.arange(length, device=self.device) + self.dims.position_offset
        types = {"token_type_ids": type_ids} if self.dims.token_types else {}
        # Only where gradients flow: dev and test stay in the model's own float32.
        low = self.bf16 and torch.is_grad_enabled()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            out = self.model(
                inputs_embeds=embeds,
                attention_mask=text_mask(mask, length),
                position_ids=positions.expand(batch, length),
                prefix=prefix,
                **types,
            )
        hidden = out.last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden.float()


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
        max_tokens: Longest text; 0 for the base's window.

    Raises:
        ExportError: The model cannot be found, loaded or given a prefix.
    """
    loaded = load_base(resolve(model), device)
    window = loaded.dims.max_positions
    return FrozenBase(
        model=loaded.model,
        encoder=TextEncoder(loaded.tokenizer_json, min(max_tokens or window, window)),
        dims=loaded.dims,
        base=loaded.base,
        device=device,
        bf16=bf16,
    )
