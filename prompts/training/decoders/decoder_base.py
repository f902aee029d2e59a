"""A frozen decoder in training: texts and targets in, the loss of the targets out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptdial.export.decoder_forward import FrozenDecoder
from promptdial.export.forward import ONE_WAY, PromptState
from promptdial.export.model import LoadedBase
from promptdial.prompts.training.decoders.generation_rows import GenerationBatch
from promptdial.prompts.training.graphs.graph_name import in_torch
from promptdial.prompts.training.recompute import recomputed, require_layers
from promptdial.runtime.manifest import Base, Dims
from promptdial.runtime.stop_tokens import end_token, stop_tokens
from promptdial.runtime.text import TextEncoder


@dataclass(frozen=True)
class DecoderBase:
    """A frozen decoder with its tokenizer.

    Attributes:
        decoder: The model, in eval mode, without gradients of its own.
        token_table: Token embeddings [V, H].
        encoder: Text to tokens, cut to the base's window.
        dims: Sizes of the model.
        base: Names and fingerprints.
        device: Where the model is.
        end_token: Id that ends every target; None where the model has none.
        stop_tokens: Ids that end an answer, the end token among them.
        bf16: Whether training runs the model in bfloat16.
        gradient_checkpointing: Whether training computes activations again.
    """

    decoder: FrozenDecoder
    token_table: Tensor
    encoder: TextEncoder
    dims: Dims
    base: Base
    device: torch.device
    end_token: int | None
    stop_tokens: frozenset[int] = frozenset()
    bf16: bool = False
    gradient_checkpointing: bool = False
    attention: str = ONE_WAY

    @property
    def trained_on(self) -> str:
        """What runs in training, as the blob says it."""
        return in_torch(bf16=self.bf16)

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """None: no training runs on a decoder's graph."""
        return {}

    def state_of(self, rows: Tensor) -> PromptState:
        """What prompt rows [P, H] leave in each layer."""
        with self._precision(), self._memory():
            return self.decoder.state_of(rows)

    def losses(
        self, batch: GenerationBatch, state: PromptState, label_smoothing: float = 0.0
    ) -> Tensor:
        """Cross-entropy [N] of every target token, in the order of the batch.

        Args:
            batch: Texts with their targets.
            state: The prompt, ready to run; empty for none.
            label_smoothing: Share of a target spread over the vocabulary.
        """
        with self._precision(), self._memory():
            logits = self.decoder.logits(self.token_table[batch.ids], batch.mask, state)
        # The row before a token is the one that chooses it.
        chosen = batch.wanted[:, 1:]
        rows, wanted = logits[:, :-1][chosen], batch.ids[:, 1:][chosen]
        return nn.functional.cross_entropy(
            rows.float(), wanted, reduction="none", label_smoothing=label_smoothing
        )

    def _precision(self) -> torch.autocast:
        # Only where gradients flow: dev stays in the model's own float32.
        low = self.bf16 and torch.is_grad_enabled()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def _memory(self) -> AbstractContextManager[None]:
        less = self.gradient_checkpointing and torch.is_grad_enabled()
        return recomputed(self.decoder.model) if less else nullcontext()


def decoder_base(
    loaded: LoadedBase,
    device: torch.device,
    bf16: bool = False,
    max_tokens: int = 0,
    gradient_checkpointing: bool = False,
) -> DecoderBase:
    """A loaded decoder, for training or reference.

    Args:
        loaded: The model.
        device: Where it is.
        bf16: Train in bfloat16.
        max_tokens: Longest text with its target; 0 for the base's window.
        gradient_checkpointing: Compute activations again instead of keeping them.

    Raises:
        UsageError: The model has no layers for gradient checkpointing.
    """
    if gradient_checkpointing:
        require_layers(loaded.model)
    window = loaded.dims.max_positions
    folder, vocab = loaded.folder, loaded.dims.vocab
    names = [path.name for path in folder.iterdir()]
    return DecoderBase(
        decoder=loaded.decoder,
        token_table=loaded.token_table,
        encoder=TextEncoder(loaded.tokenizer_json, min(max_tokens or window, window)),
        dims=loaded.dims,
        base=loaded.base,
        device=device,
        end_token=end_token(folder, names, vocab),
        stop_tokens=stop_tokens(folder, names, vocab),
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
    )
