"""Parity of a static decoder with PyTorch, with prompts and without.

It runs as the device does, on the CPU where nothing else is asked for: a text is read
but for its last tokens, which go one by one as an answer's do, and the logits behind
each of those are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from promptdial.export.calibration import take_evenly
from promptdial.export.decoder_sides import TorchDecoder
from promptdial.export.decoder_verify import MAX_TEXTS, Figures
from promptdial.export.model import LoadedBase
from promptdial.export.sides import Floats, State, batch_of
from promptdial.export.targets.decoder_calibrate import WRITTEN
from promptdial.export.verify import Parity, Prompt
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.graph_state import by_layer
from promptdial.runtime.manifest import Dims, GraphVariant
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.rows import Row
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.text import Encoded, TextEncoder


@dataclass(frozen=True)
class StaticDecoderSide:
    """A variant of static graphs over a token table [V, H]."""

    session: StaticDecoderSession
    dims: Dims
    table: Floats

    def state(self, rows: Floats) -> State:
        """See `promptdial.export.sides.TakesPrompts`."""
        return by_layer(self.session.state_of(rows), self.dims)

    def last_logits(self, text: Encoded, state: State) -> Floats:
        """Logits [R, V] behind the last R tokens of a text, R as `_last` has it."""
        parts = tuple(part for pair in state for part in pair)
        held = parts or self.session.no_prompt
        cache = self.session.begin(held, held[0].shape[2])
        rows = self.table[text.ids][None]
        first = len(text) - _last(text) + 1
        found = [cache.forward(rows[:, :first])[0]]
        for place in range(first, len(text)):
            found.append(cache.forward(rows[:, place : place + 1])[0])
        return np.concatenate(found)


def compare_static_decoder(
    loaded: LoadedBase,
    folder: Path,
    name: str,
    variant: GraphVariant,
    table: Floats,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    providers: Sequence[str] = (CPU,),
) -> Parity:
    """Run texts on PyTorch and on a variant, without a prompt and over one.

    Args:
        loaded: The reference.
        folder: The bundle's.
        name: The variant's.
        variant: Its graphs.
        table: The bundle's own token table [V, H].
        rows: Where the texts are taken from; text i runs over prompt i modulo their
            number.
        prompts: At least one.
        providers: What runs the graphs.

    Raises:
        RuntimeFailure, MissingExtra: As `StaticDecoderSession`.
    """
    session = StaticDecoderSession(
        folder, variant, loaded.dims, PROFILES["battery"], 0, providers
    )
    real = StaticDecoderSide(session, loaded.dims, table)
    exact = replace(real, table=loaded.token_table.cpu().numpy())
    reference = TorchDecoder(loaded)
    room = session.limits.rows + 1 - max(prompt.length for prompt in prompts)
    encoder = TextEncoder(loaded.tokenizer_json, room)
    texts = [
        encoder.encode(row.text, row.text_pair) for row in take_evenly(rows, MAX_TEXTS)
    ]
    wanted_states = [prompt.state(reference) for prompt in prompts]
    states = [prompt.state(real) for prompt in prompts]
    figures, largest = Figures(), 0.0
    for number, text in enumerate(texts):
        chosen = number % len(prompts)
        wanted = [
            reference.logits(batch_of([text]), state)[0, -_last(text) :]
            for state in ([], wanted_states[chosen])
        ]
        largest = max(largest, *(float(np.abs(logits).max()) for logits in wanted))
        figures.add_exact(wanted, _pair(exact, text, states[chosen]))
        figures.add_real(wanted, _pair(real, text, states[chosen]))
    figures.batch_diff = _later_diff(real, texts, states[-1])
    lengths = tuple(prompt.length for prompt in prompts)
    return Parity(len(texts), lengths, largest, {name: figures.result()})


def _last(text: Encoded) -> int:
    """Tokens of a text whose logits are compared: those that go alone and one more."""
    return min(WRITTEN + 1, len(text))


def _pair(
    side: StaticDecoderSide, text: Encoded, state: State
) -> tuple[Floats, Floats]:
    return side.last_logits(text, []), side.last_logits(text, state)


def _later_diff(
    side: StaticDecoderSide, texts: Sequence[Encoded], state: State
) -> float:
    """What another text in between makes of a text's logits; nothing goes together."""
    first = side.last_logits(texts[0], state)
    side.last_logits(texts[-1], [])
    later = side.last_logits(texts[0], state)
    return float(np.abs(later - first).max() / np.abs(first).max())
