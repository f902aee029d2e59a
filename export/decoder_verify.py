"""Parity of a decoder's graphs with PyTorch, with prompts and without.

Every position of every text is compared: its logits, and the token they would choose.
Texts go one by one, since logits [T, V] of many would fill the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from promptdial.export.calibration import take_evenly
from promptdial.export.decoder_sides import DecoderSide, GraphDecoder, TorchDecoder
from promptdial.export.model import LoadedBase
from promptdial.export.sides import Floats, State, batch_of
from promptdial.export.verify import Parity, Prompt, VariantParity
from promptdial.runtime.rows import Row
from promptdial.runtime.text import Encoded, TextEncoder

MAX_TEXTS = 12

MIN_COSINE = {"fp32": 0.98, "int8": 0.98, "int4": 0.8}
"""By precision. Single rows of logits, where encoders compare means over a text's rows.
Trained models are far above; thirty layers of random weights are the worst there is."""


def compare_decoder(
    loaded: LoadedBase,
    graphs: Mapping[str, GraphDecoder],
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
) -> Parity:
    """Run texts on PyTorch and on every graph, without a prompt and over one.

    Args:
        loaded: The reference.
        graphs: The bundle's graphs by variant, over the bundle's own token table.
        rows: Where the texts are taken from; text i runs over prompt i modulo their
            number.
        prompts: At least one.
    """
    encoder = TextEncoder(loaded.tokenizer_json, loaded.dims.max_positions // 2)
    chosen_rows = take_evenly(rows, MAX_TEXTS)
    texts = [encoder.encode(row.text, row.text_pair) for row in chosen_rows]
    table = loaded.token_table.cpu().numpy()
    exact = {name: replace(graph, table=table) for name, graph in graphs.items()}
    reference = TorchDecoder(loaded)
    wanted_states = [prompt.state(reference) for prompt in prompts]
    largest = 0.0
    figures = {name: Figures() for name in graphs}
    states = {name: [p.state(graph) for p in prompts] for name, graph in exact.items()}
    for number, text in enumerate(texts):
        chosen = number % len(prompts)
        wanted = _pair(reference, text, wanted_states[chosen])
        largest = max(largest, *(float(np.abs(logits).max()) for logits in wanted))
        for name, figure in figures.items():
            state = states[name][chosen]
            figure.add_exact(wanted, _pair(exact[name], text, state))
            figure.add_real(wanted, _pair(graphs[name], text, state))
    for name, figure in figures.items():
        figure.batch_diff = _batch_diff(graphs[name], texts[:4], states[name][-1])
    variants = {name: figure.result() for name, figure in figures.items()}
    lengths = tuple(prompt.length for prompt in prompts)
    return Parity(len(texts), lengths, largest, variants)


@dataclass
class Figures:
    """What is gathered about one graph, text by text."""

    difference: float = 0.0
    cosines: list[Floats] = field(default_factory=list)
    same: list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]] = field(
        default_factory=list
    )
    effects: list[float] = field(default_factory=list)
    batch_diff: float = 0.0

    def add_exact(self, wanted: Sequence[Floats], found: Sequence[Floats]) -> None:
        """A text over the exact token rows."""
        for theirs, ours in zip(wanted, found, strict=True):
            self.difference = max(self.difference, float(np.abs(theirs - ours).max()))

    def add_real(self, wanted: Sequence[Floats], found: Sequence[Floats]) -> None:
        """A text over the bundle's token rows."""
        for theirs, ours in zip(wanted, found, strict=True):
            self.cosines.append(_cosines(theirs, ours))
            self.same.append(theirs.argmax(-1) == ours.argmax(-1))
        plain, prompted = found
        effect = np.linalg.norm(prompted - plain) / np.linalg.norm(plain)
        self.effects.append(float(effect))

    def result(self) -> VariantParity:
        """All of it."""
        cosines = np.concatenate(self.cosines)
        return VariantParity(
            max_abs_diff=self.difference,
            cosine=float(cosines.mean()),
            cosine_min=float(cosines.min()),
            agreement=float(np.concatenate(self.same).mean()),
            prompt_effect=min(self.effects),
            batch_diff=self.batch_diff,
        )


def _pair(side: DecoderSide, text: Encoded, state: State) -> tuple[Floats, Floats]:
    """Logits [T, V] of a text without and with a prompt."""
    batch = batch_of([text])
    return side.logits(batch, [])[0], side.logits(batch, state)[0]


def _cosines(wanted: Floats, found: Floats) -> Floats:
    """Of every row's logits about their mean: what is added to all changes nothing."""
    wanted = wanted - wanted.mean(axis=-1, keepdims=True)
    found = found - found.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(found, axis=-1)
    return np.asarray((wanted * found).sum(-1) / np.maximum(norms, 1e-12), np.float32)


def _batch_diff(graph: GraphDecoder, texts: Sequence[Encoded], state: State) -> float:
    """Largest difference of a text's logits in company, as a share of the largest.

    In company texts are read without a prompt, padded, and go on by a token over one:
    a graph with a packed cache takes several rows of several texts over nothing else.
    """
    together = graph.logits(batch_of(texts), [])
    worst = 0.0
    for row, text in zip(together, texts, strict=True):
        alone = graph.logits(batch_of([text]), [])[0]
        worst = max(worst, _share(row[: len(text)], alone))
    length = min(len(text) for text in texts) - 1
    ids = np.stack([batch_of([text]).ids[0, : length + 1] for text in texts])
    table = graph.table[ids]

    def after(rows: Floats, own: State) -> tuple[Floats, State]:
        return graph.run(graph.feed(rows, np.ones(rows.shape[:2], np.int64), own))

    # Texts of one token have nothing before it: a pass of no rows is refused.
    states = [after(rows[None, :-1], state)[1] if length else state for rows in table]
    stepped, _ = after(table[:, -1:], join(states))
    for number, own in enumerate(states):
        alone, _ = after(table[number, None, -1:], own)
        worst = max(worst, _share(stepped[number], alone[0]))
    return worst


def join(states: Sequence[State]) -> State:
    """States of one sequence each, all of one length, as that of a batch."""
    return [
        tuple(np.concatenate(parts) for parts in zip(*layer, strict=True))
        for layer in zip(*states, strict=True)
    ]


def _share(found: Floats, wanted: Floats) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
