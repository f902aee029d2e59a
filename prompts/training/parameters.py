"""The trained numbers of a method: virtual tokens as rows or as keys and values.

Reparametrisations (residual, p-tuning) exist in training alone: what they make is
folded into plain rows, so that the device never knows of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promptdial.export.errors import NoPrefix
from promptdial.export.forward import FULL, PromptState
from promptdial.prompts.training.base import PromptBase
from promptdial.prompts.training.storage import EXACT, Storage
from promptdial.runtime.graph_state import past_names
from promptdial.runtime.static_feed import EMBEDS_NAME

Pair = tuple[Tensor, Tensor]

_INSIDE = 0.995
"""Of a range: what is left of it has room for the rounding of a blob's numbers."""


class SoftPrompt(nn.Module):
    """Rows [P, H] of the input (prompt tuning, arXiv:2104.08691)."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float())

    def embeddings(self) -> Tensor:
        """The rows [P, H] themselves."""
        return self.rows

    def state(self, base: PromptBase, storage: Storage = EXACT) -> PromptState:
        """The rows, as stored, ready to run on this base."""
        return base.state_of(storage.rows(self.embeddings()))


class ResidualPrompt(nn.Module):
    """Rows [P, H] plus what a small network makes of them (arXiv:2305.03937).

    The network is shared by the rows, so that they learn from one another; it starts
    at nothing, so that the start is that of the rows. The paper's layer norm is left
    out: its rows of unit variance are far longer than embeddings of small models.
    """

    def __init__(self, rows: Tensor, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float())
        self.down = nn.Linear(rows.shape[1], width)
        self.up = nn.Linear(width, rows.shape[1])
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def embeddings(self) -> Tensor:
        """The rows [P, H] and the network folded into them."""
        hidden = torch.relu(self.down(self.rows))
        made: Tensor = self.rows + self.up(hidden)
        return made

    def state(self, base: PromptBase, storage: Storage = EXACT) -> PromptState:
        """The folded rows, as stored, ready to run on this base."""
        return base.state_of(storage.rows(self.embeddings()))


class EncodedPrompt(nn.Module):
    """Rows [P, H] that a network of three layers makes (P-tuning, arXiv:2103.10385).

    The network is PEFT's PromptEncoder of type MLP, and as there nothing of the start
    is kept but as its input.
    """

    def __init__(self, rows: Tensor, width: int) -> None:
        super().__init__()
        size = rows.shape[1]
        self.rows = nn.Parameter(rows.detach().clone().float())
        self.network = nn.Sequential(
            nn.Linear(size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, size),
        )

    def embeddings(self) -> Tensor:
        """The rows [P, H] that the network makes."""
        made: Tensor = self.network(self.rows)
        return made

    def state(self, base: PromptBase, storage: Storage = EXACT) -> PromptState:
        """The folded rows, as stored, ready to run on this base."""
        return base.state_of(storage.rows(self.embeddings()))


class DeepPrompt(nn.Module):
    """Keys and values [K, P, D] of every layer (prefix tuning, P-tuning v2)."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        # One parameter a layer and kind.
        self.keys = nn.ParameterList([key.detach().clone() for key, _ in pairs])
        self.values = nn.ParameterList([value.detach().clone() for _, value in pairs])

    def pairs(self) -> list[Pair]:
        """Keys and values [K, P, D] by layer."""
        return list(zip(self.keys, self.values, strict=True))

    def state(self, base: PromptBase, storage: Storage = EXACT) -> PromptState:
        """The keys and values, as stored: L pairs [1, K, P, D]."""
        return [
            (storage.tokens(key)[None], storage.tokens(value)[None])
            for key, value in self.pairs()
        ]


class NoPrompt(nn.Module):
    """No virtual token: class vectors alone (the linear probe)."""

    def state(self, base: PromptBase, storage: Storage = EXACT) -> PromptState:
        """Nothing."""
        return []


RowPrompt = SoftPrompt | ResidualPrompt | EncodedPrompt
Prompt = RowPrompt | DeepPrompt | NoPrompt


def make_prompt(method: str, base: PromptBase, rows: Tensor, width: int = 0) -> Prompt:
    """The parameters of a method, started from rows [P, H].

    Args:
        method: One of promptdial.prompts.training.config.METHODS.
        base: The frozen model.
        rows: The start. Keys and values start from their real activations: random keys
            are looked at by nobody, and then nothing is learned (arXiv:2506.06266,
            section 3).
        width: Of the network of `residual` and `p-tuning`; 0 for H.

    Raises:
        NoPrefix: As `require_method`.
    """
    require_method(method, base)
    width = width or rows.shape[1]
    if method == "prefix":
        with torch.no_grad():
            state = base.state_of(rows)
        return DeepPrompt([(key[0], value[0]) for key, value in state])
    if method == "residual":
        return ResidualPrompt(rows, width).to(rows.device)
    if method == "p-tuning":
        return EncodedPrompt(rows, width).to(rows.device)
    return SoftPrompt(rows) if method == "prompt" else NoPrompt()


def require_method(method: str, base: PromptBase) -> None:
    """Refuse a method that has no meaning on a base.

    Raises:
        NoPrefix: `prefix` on a base whose attention takes none, or where some layers
            are convolutions, which have no keys and values.
    """
    if method == "prefix" and (base.attention == FULL or base.dims.conv_layers):
        where = " in its convolutions" if base.dims.conv_layers else ""
        raise NoPrefix(
            f"method prefix: {base.base.architecture} takes no keys and values{where}",
            "use method prompt",
        )


def keep_within(prompt: Prompt, base: PromptBase) -> None:
    """Put numbers that the base's graph would cut back into its ranges, in place.

    They would stay where they are otherwise, for a number that is cut has no gradient,
    and the device would refuse the prompt. Reparametrisations are left alone: their
    rows are a network's, and what lies outside is told at the end.
    """
    if not base.ranges:
        return
    with torch.no_grad():
        if isinstance(prompt, DeepPrompt):
            for names, pair in zip(past_names(base.dims), prompt.pairs(), strict=True):
                for name, part in zip(names, pair, strict=True):
                    _clamp(part, base.ranges[name])
        elif isinstance(prompt, SoftPrompt):
            _clamp(prompt.rows, base.ranges[EMBEDS_NAME])


def _clamp(values: Tensor, span: tuple[float, float]) -> None:
    low, high = (_INSIDE * end for end in span)
    values.clamp_(low, high)


def flat(prompt: Prompt) -> Tensor:
    """All numbers that the blob will hold in one vector, detached, on the CPU."""
    if isinstance(prompt, DeepPrompt):
        parts = [item for pair in prompt.pairs() for item in pair]
    else:
        parts = [] if isinstance(prompt, NoPrompt) else [prompt.embeddings()]
    found = [item.detach().flatten().cpu() for item in parts]
    return torch.cat(found) if found else torch.zeros(0)
