"""What every peer's process does: get ready, say so, time a round whenever it is told.

A round: the first request after a switch (`cold`), the same again (`warm`), and the
mean of STEPS later tokens (`per_token`), in milliseconds.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

THREADS = 2
PROMPT, TEXT, STEPS, VOCAB, WIDTH = 20, 32, 16, 49152, 576
_RNG = np.random.default_rng(0)
PROMPT_ROWS = (0.04 * _RNG.standard_normal((PROMPT, WIDTH))).astype(np.float32)
PROMPT_IDS = _RNG.integers(3, VOCAB, PROMPT).tolist()
TEXT_IDS = _RNG.integers(3, VOCAB, TEXT).tolist()

Round = Callable[[], dict[str, float]]


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def serve(about: str, one_round: Round) -> None:
    """Print one line when ready, then one for every line read."""
    print(json.dumps({"ready": about}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(one_round()), flush=True)
