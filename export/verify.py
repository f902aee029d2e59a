"""Parity of an encoder's graphs with PyTorch, and what parity asks of any graph.

Every text runs without a prompt and over one of the prompts. A graph must agree with
PyTorch, a prompt must change its answer, and a row must not feel its neighbours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from promptdial.export.calibration import joined
from promptdial.export.errors import ParityFailed
from promptdial.export.model import LoadedBase
from promptdial.export.sides import (
    Floats,
    GraphSide,
    Side,
    State,
    TakesPrompts,
    TorchSide,
    batch_of,
    pooled,
)
from promptdial.export.targets.parity import StaticSide
from promptdial.runtime.rows import Row
from promptdial.runtime.text import Encoded, TextEncoder

MAX_FP32_DIFF = 1e-4  # of the largest hidden value where that is above 1
MIN_COSINE = {"fp32": 0.995, "int8": 0.995, "int4": 0.95}
"""By precision. 4 bits leave a weight some 8 % off, 8 bits some 0.7 %: MiniLM is at
0.98 with them. A graph that is wrong and not just coarse is far below any of these."""
MIN_PROMPT_EFFECT = 1e-3
# FP32 sums inside a graph may depend on a batch's shape and tip a rounding; a shared
# activation scale moves rows ten times as far.
MAX_BATCH_DIFF = 0.03
NEIGHBOUR_TIE = 0.01  # cosines this close have no order worth keeping
REFERENCE_BATCH = 8
RANDOM_PROMPTS = (1, 5, 20)


@dataclass(frozen=True)
class VariantParity:
    """How close one graph is to PyTorch.

    Attributes:
        max_abs_diff: Largest difference of a hidden value (encoder) or a logit
            (decoder), token rows exact.
        cosine: Mean cosine of the mean-pooled outputs (encoder) or of a row's logits
            about their mean (decoder), token rows from the bundle.
        cosine_min: The smallest of them.
        agreement: Share of texts whose nearest other text is PyTorch's nearest, or
            one that PyTorch has as near to within 0.01 (encoder); share of positions
            that choose PyTorch's token (decoder).
        prompt_effect: Smallest share by which a prompt moves the output.
        batch_diff: Largest difference of a row between a batch and alone; of a
            decoder's as a share of the row's largest logit.
    """

    max_abs_diff: float
    cosine: float
    cosine_min: float
    agreement: float
    prompt_effect: float
    batch_diff: float


@dataclass(frozen=True)
class Parity:
    """What `verify` found.

    Attributes:
        texts: Number of texts; each ran without and with a prompt.
        prompts: Lengths P of the prompts.
        hidden_max: Largest magnitude of a hidden value or logit in PyTorch.
        variants: Figures by variant name.
    """

    texts: int
    prompts: tuple[int, ...]
    hidden_max: float
    variants: dict[str, VariantParity]

    def to_dict(self) -> dict[str, Any]:
        """As parity.json has it: the worst of all variants on top."""
        rows = list(self.variants.values())
        return {
            "texts": self.texts,
            "prompts": list(self.prompts),
            "hidden_max": self.hidden_max,
            "max_abs_diff": max(row.max_abs_diff for row in rows),
            "cosine": min(row.cosine for row in rows),
            "agreement": min(row.agreement for row in rows),
            "variants": {name: asdict(row) for name, row in self.variants.items()},
        }


def merged(parts: Sequence[Parity]) -> Parity:
    """Comparisons over the same texts and prompts as one."""
    variants = {name: row for part in parts for name, row in part.variants.items()}
    largest = max(part.hidden_max for part in parts)
    return replace(parts[0], hidden_max=largest, variants=variants)


@dataclass(frozen=True)
class Prompt:
    """A prompt to compare over: embedding rows [P, H], or keys and values."""

    rows: Floats | None = None
    past: tuple[tuple[Floats, Floats], ...] = ()

    @property
    def length(self) -> int:
        """P."""
        return len(self.rows) if self.rows is not None else self.past[0][0].shape[1]

    def state(self, side: TakesPrompts) -> State:
        """The prompt ready to run, as `side` makes it."""
        if self.rows is not None:
            return side.state(self.rows)
        return [(key[None], value[None]) for key, value in self.past]


def random_prompts(
    table: Floats, lengths: Sequence[int] = RANDOM_PROMPTS
) -> list[Prompt]:
    """Prompts drawn like token embeddings, the same on every call."""
    rng = np.random.default_rng(0)
    mean, spread = table.mean(axis=0), table.std(axis=0)
    return [
        Prompt(np.asarray(rng.normal(mean, spread, (length, len(mean))), np.float32))
        for length in lengths
    ]


def compare(
    loaded: LoadedBase,
    graphs: Mapping[str, GraphSide | StaticSide],
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    window: int | None = None,
) -> Parity:
    """Run all texts on PyTorch and on every graph.

    Args:
        loaded: The reference.
        graphs: The bundle's graphs by variant, over the bundle's own token table.
        rows: The texts; text i runs over prompt i modulo their number.
        prompts: At least one.
        window: Tokens of the longest text; None for the base's positions.
    """
    window = window or loaded.dims.max_positions
    encoder = TextEncoder(loaded.tokenizer_json, window)
    texts = [encoder.encode(row.text, row.text_pair) for row in rows]
    texts.append(encoder.encode(joined(rows)[:2000]))
    reference = _answers(TorchSide(loaded), texts, prompts, REFERENCE_BATCH)
    exact_table = loaded.token_table.cpu().numpy()
    variants = {}
    for name, graph in graphs.items():
        exact = replace(graph, table=exact_table)
        variants[name] = _judge(
            reference,
            _answers(exact, texts, prompts),
            _answers(graph, texts, prompts),
            _batch_diff(graph, texts[:4], prompts[-1]),
        )
    lengths = tuple(prompt.length for prompt in prompts)
    largest = float(max(np.abs(hidden).max() for hidden in reference.hidden))
    return Parity(len(texts), lengths, largest, variants)


def require(
    parity: Parity,
    precisions: Mapping[str, str],
    min_cosine: Mapping[str, float] = MIN_COSINE,
) -> None:
    """Refuse graphs that are too far from PyTorch.

    Args:
        parity: As `compare` found it.
        precisions: Precision (`fp32`, `int8`, `int4`) by variant name.
        min_cosine: Least mean cosine by precision.

    Raises:
        ParityFailed: Naming the variant, the figure and its limit.
    """
    hint = "report the model; it may need texts of the task: --calibrate FILE.jsonl"
    float_limit = MAX_FP32_DIFF * max(1.0, parity.hidden_max)
    for name, found in parity.variants.items():
        least = min_cosine.get(precisions[name], min_cosine["int8"])
        checks = [
            ("batch_diff", found.batch_diff <= MAX_BATCH_DIFF, MAX_BATCH_DIFF),
            ("cosine", found.cosine >= least, least),
            (
                "prompt_effect",
                found.prompt_effect >= MIN_PROMPT_EFFECT,
                MIN_PROMPT_EFFECT,
            ),
        ]
        if precisions[name] == "fp32":
            good = found.max_abs_diff <= float_limit
            checks.append(("max_abs_diff", good, float_limit))
        for figure, is_good, limit in checks:
            if not is_good:
                value = getattr(found, figure)
                raise ParityFailed(
                    f"graph {name}: {figure} is {value:.6g}, the limit {limit:.6g}",
                    hint,
                )


@dataclass(frozen=True)
class _Answers:
    """Hidden rows [T, H] and pooled rows [N, H], without and with a prompt."""

    hidden: list[Floats]
    plain: Floats
    prompted: Floats


def _answers(
    side: Side, texts: Sequence[Encoded], prompts: Sequence[Prompt], size: int = 1
) -> _Answers:
    """Answers of one side; `size` texts of like length run together."""
    states = [prompt.state(side) for prompt in prompts]
    width = side.hidden(batch_of(texts[:1]), []).shape[2]
    hidden: list[Floats] = [np.empty(0, np.float32)] * (2 * len(texts))
    parts = np.empty((2, len(texts), width), np.float32)
    for indices, state in _chunks(texts, states, size):
        batch = batch_of([texts[index] for index in indices])
        for part, used in enumerate(([], state)):
            rows = side.hidden(batch, used)
            parts[part, indices] = pooled(rows, batch.mask)
            for index, row in zip(indices, rows, strict=True):
                hidden[2 * index + part] = row[: len(texts[index])]
    return _Answers(hidden, parts[0], parts[1])


def _chunks(
    texts: Sequence[Encoded], states: Sequence[State], size: int
) -> Iterator[tuple[list[int], State]]:
    """Indices of texts that run together, and the prompt that they run over."""
    for number, state in enumerate(states):
        mine = list(range(number, len(texts), len(states)))
        mine.sort(key=lambda index: len(texts[index]))
        for start in range(0, len(mine), size):
            yield mine[start : start + size], state


def _judge(
    reference: _Answers, exact: _Answers, real: _Answers, batch_diff: float
) -> VariantParity:
    wanted = np.concatenate([reference.plain, reference.prompted])
    found = np.concatenate([real.plain, real.prompted])
    cosines = (wanted * found).sum(axis=1)
    pairs = zip(reference.hidden, exact.hidden, strict=True)
    agreed = [
        _same_neighbours(theirs, ours)
        for theirs, ours in (
            (reference.plain, real.plain),
            (reference.prompted, real.prompted),
        )
    ]
    effect = np.linalg.norm(real.prompted - real.plain, axis=1).min()
    return VariantParity(
        max_abs_diff=float(max(np.abs(a - b).max() for a, b in pairs)),
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        agreement=float(np.mean(agreed)),
        prompt_effect=float(effect),
        batch_diff=batch_diff,
    )


def _same_neighbours(reference: Floats, found: Floats) -> float:
    """Share of rows [N, H] whose nearest other row is the reference's, ties allowed."""
    wanted, likeness = reference @ reference.T, found @ found.T
    for matrix in (wanted, likeness):
        np.fill_diagonal(matrix, -2.0)
    chosen = wanted[np.arange(len(wanted)), likeness.argmax(axis=1)]
    return float((chosen >= wanted.max(axis=1) - NEIGHBOUR_TIE).mean())


def _batch_diff(side: Side, texts: Sequence[Encoded], prompt: Prompt) -> float:
    state = prompt.state(side)
    together = side.hidden(batch_of(texts), state)
    worst = 0.0
    for row, text in zip(together, texts, strict=True):
        alone = side.hidden(batch_of([text]), state)[0]
        worst = max(worst, float(np.abs(row[: len(text)] - alone).max()))
    return worst
