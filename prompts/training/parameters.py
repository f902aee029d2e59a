"""The trained numbers of a method: virtual tokens as rows or as keys and values."""

import torch
from torch import Tensor, nn

from promptdial.export.errors import NoPrefix
from promptdial.export.forward import FULL, PromptState
from promptdial.prompts.training.base import PromptBase


class SoftPrompt(nn.Module):
    """Rows [P, H] of the input (prompt tuning, arXiv:2104.08691)."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float())

    def state(self, base: PromptBase) -> PromptState:
        """The rows ready to run on this base."""
        return base.state_of(self.rows)


class DeepPrompt(nn.Module):
    """Keys and values of every layer (prefix tuning, P-tuning v2).

    Starts from the real activations of rows [P, H]: random keys are looked at by
    nobody, and then nothing is learned (arXiv:2506.06266, section 3).
    """

    def __init__(self, base: PromptBase, rows: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            start = base.state_of(rows)
        # One parameter a layer and kind: [K, P, D].
        self.keys = nn.ParameterList([pair[0][0].clone() for pair in start])
        self.values = nn.ParameterList([pair[1][0].clone() for pair in start])

    def state(self, base: PromptBase) -> PromptState:
        """The keys and values themselves: L pairs [1, K, P, D]."""
        return [(k[None], v[None]) for k, v in zip(self.keys, self.values, strict=True)]


class NoPrompt(nn.Module):
    """No virtual token: class vectors alone (the linear probe)."""

    def state(self, base: PromptBase) -> PromptState:
        """Nothing."""
        return []


Prompt = SoftPrompt | DeepPrompt | NoPrompt


def make_prompt(method: str, base: PromptBase, rows: Tensor) -> Prompt:
    """The parameters of `prompt`, `prefix` or `probe`, started from rows [P, H].

    Raises:
        NoPrefix: As `require_method`.
    """
    require_method(method, base)
    if method == "prefix":
        return DeepPrompt(base, rows)
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


def flat(prompt: Prompt) -> Tensor:
    """All trained numbers of the prompt in one vector, detached, on the CPU."""
    parts = [item.detach().flatten().cpu() for item in prompt.parameters()]
    return torch.cat(parts) if parts else torch.zeros(0)
