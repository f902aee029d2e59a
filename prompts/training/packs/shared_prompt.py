"""The trained numbers of a pack: one shared prompt, and factors for each task.

Multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861), with a mix of the shared
rows where the paper scales each one. Of a deep prompt the keys are the same for all
tasks ("Learned Structure in Cartridges", arXiv:2508.17032), and the values have a mix
alone: what a width for every layer would take goes to class vectors of a level more.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.pack import Factor
from promptdial.prompts.tensor_rules import PROMPT
from promptdial.prompts.training.base import PromptBase
from promptdial.prompts.training.parameters import require_method

FACTORED = (PROMPT, "value")
"""Parts that have factors; keys have none."""

WIDE = (PROMPT,)
"""Parts whose factors have a width beside their mix."""

Array = NDArray[np.float32]


class TaskFactors(nn.Module):
    """Factors of one task: by part, mix [L, P, S], and width [L, W] where it is WIDE.

    They start so that every task's rows are the shared ones.
    """

    def __init__(self, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.mix = nn.ParameterDict()
        self.width = nn.ParameterDict()
        for part, rows in shared.items():
            layers, count, width = rows.shape
            same = torch.eye(count, device=rows.device).repeat(layers, 1, 1)
            self.mix[part] = nn.Parameter(same)
            if part in WIDE:
                self.width[part] = nn.Parameter(rows.new_ones(layers, width))

    def of(self, part: str, shared: Tensor) -> Tensor:
        """The task's rows [L, P, W] of the shared ones [L, S, W]."""
        mixed: Tensor = self.mix[part] @ shared
        return mixed * self.width[part][:, None] if part in self.width else mixed


class SharedPrompt(nn.Module):
    """Shared rows [L, S, W] of each part and the factors of N tasks."""

    def __init__(self, start: dict[str, Tensor], tasks: int, kv_heads: int) -> None:
        """Start from shared rows (`start_of`), the same for all tasks."""
        super().__init__()
        self.shared = nn.ParameterDict(
            {part: nn.Parameter(value) for part, value in start.items()}
        )
        own = {part: value for part, value in start.items() if part in FACTORED}
        self.tasks = nn.ModuleList([TaskFactors(own) for _ in range(tasks)])
        self._heads = kv_heads

    def rows(self, index: int, part: str) -> Tensor:
        """The rows [L, P, W] of one task."""
        rows, factors = self.shared[part], self.tasks[index]
        assert isinstance(factors, TaskFactors)
        return factors.of(part, rows) if part in factors.mix else rows

    def state(self, index: int, base: PromptBase) -> PromptState:
        """The prompt of one task ready to run."""
        if PROMPT in self.shared:
            return base.state_of(self.rows(index, PROMPT)[0])
        keys, values = self.rows(index, "key"), self.rows(index, "value")
        return [
            (self._split(key)[None], self._split(value)[None])
            for key, value in zip(keys, values, strict=True)
        ]

    def flat(self, index: int) -> Tensor:
        """All rows of one task in one vector, detached, on the CPU."""
        parts = [
            self.rows(index, part).detach().flatten().cpu() for part in self.shared
        ]
        return torch.cat(parts)

    def stored_rows(self) -> Array | None:
        """The shared rows [S, H]; None of a deep prompt."""
        return _array(self.shared[PROMPT][0]) if PROMPT in self.shared else None

    def stored_pairs(self) -> tuple[Array, Array] | None:
        """The shared keys and values [L, K, S, D]; None of a soft prompt."""
        if PROMPT in self.shared:
            return None
        keys, values = (
            _array(torch.stack([self._split(layer) for layer in self.shared[part]]))
            for part in ("key", "value")
        )
        return keys, values

    def stored_factors(self) -> dict[str, Factor]:
        """The factors of all tasks by part."""
        first = self.tasks[0]
        assert isinstance(first, TaskFactors)
        return {
            part: Factor(
                self._stacked("mix", part),
                self._stacked("width", part) if part in first.width else None,
            )
            for part in first.mix
        }

    def _stacked(self, which: str, part: str) -> Array:
        return _array(torch.stack([getattr(task, which)[part] for task in self.tasks]))

    def _split(self, rows: Tensor) -> Tensor:
        """[P, K*D] as [K, P, D]."""
        return rows.reshape(rows.shape[0], self._heads, -1).transpose(0, 1)


def start_of(method: str, base: PromptBase, rows: Tensor) -> dict[str, Tensor]:
    """Shared rows [L, S, W] by part: rows [S, H], or their real keys and values.

    Raises:
        NoPrefix: `prefix` on a base that takes none.
    """
    require_method(method, base)
    if method == "prompt":
        return {PROMPT: rows.detach().clone().float()[None]}
    with torch.no_grad():
        pairs = base.state_of(rows)
    return {
        part: torch.stack([_flat(pair[index][0]) for pair in pairs])
        for index, part in enumerate(("key", "value"))
    }


def _flat(rows: Tensor) -> Tensor:
    """[K, P, D] as [P, K*D]."""
    return rows.transpose(0, 1).reshape(rows.shape[1], -1).clone()


def _array(tensor: Tensor) -> Array:
    return tensor.detach().float().cpu().contiguous().numpy()
