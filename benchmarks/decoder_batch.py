"""Answers of several requests on a decoder: written together, and one after the other.

    python benchmarks/decoder_batch.py BUNDLE [--tokens N] [--rounds N]

Each request has its own text, of 8 to 40 tokens, and writes N tokens greedily. Together
is `Engine.run_batch`; both give the same tokens, which is checked.
"""

import argparse
from pathlib import Path

import numpy as np
from timing import alternate

from promptdial.runtime import Engine
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    TextStream,
    written,
)
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.writing_together import written_together

SIZES = (2, 4, 8, 16)
TOKENS, ROUNDS, THREADS = 32, 7, 2


def requests_of(
    model: DecoderModel, count: int, tokens: int
) -> list[GenerationRequest]:
    """Requests of different lengths, which no end token cuts short."""
    rng = np.random.default_rng(count)
    options = GenerationOptions(max_new_tokens=tokens)
    return [
        GenerationRequest(
            None,
            rng.integers(3, model.manifest.dims.vocab, int(length)),
            False,
            options,
            0.0,
            frozenset(),
        )
        for length in rng.integers(8, 41, count)
    ]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    engine = Engine(options.bundle, threads=THREADS)
    model = engine._decoder_model()
    for size in SIZES:
        requests = requests_of(model, size, options.tokens)

        def one_by_one(these: list[GenerationRequest] = requests) -> list[object]:
            return [written(TextStream(request, model)).tokens for request in these]

        def together(these: list[GenerationRequest] = requests) -> list[object]:
            return [answer.tokens for answer in written_together(these, model)]

        assert one_by_one() == together()
        found = alternate(
            {"one by one": one_by_one, "together": together}, options.rounds
        )
        share = found["one by one"].p50 / found["together"].p50
        print(
            f"{size:2} requests: together {found['together']}, {share:.2f} times faster"
        )


if __name__ == "__main__":
    main()
