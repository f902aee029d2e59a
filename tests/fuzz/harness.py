"""Running one fuzz target under atheris: instrumentation, mutation, final figures."""

import sys
from collections.abc import Callable, Sequence
from random import Random

import atheris

OPTIONS = (
    "-print_final_stats=1",
    "-rss_limit_mb=2048",
    "-timeout=10",
    "-max_len=16384",
)
REPORT_EVERY = 10_000
Target = Callable[[bytes], bool]
Damage = Callable[[bytes, Random], bytes]


def check_message(error: Exception) -> None:
    """An error of ours is one line that any terminal takes."""
    text = str(error)
    if "\n" in text or not text:
        raise AssertionError(f"message {text!r} is not one line")
    text.encode("utf-8")


def run(target: Target, damage: Damage, seeds: Sequence[bytes]) -> None:
    """Fuzz with libFuzzer's arguments; does not return.

    Lines on stderr say how many inputs the reader took: with blind bytes alone it
    would be none.

    Args:
        target: Takes one input and says whether the reader took it; any exception that
            leaves it is a crash.
        damage: Structural damage to one input.
        seeds: Valid inputs.
    """
    inputs, taken = 0, 0

    def one_input(data: bytes) -> None:
        nonlocal inputs, taken
        inputs += 1
        taken += target(data)
        if inputs % REPORT_EVERY == 0:
            # libFuzzer ends the process itself: nothing of ours runs after the last.
            print(f"taken: {taken} of {inputs}", file=sys.stderr, flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        # libFuzzer prefers short inputs, and those are no files any more: half of the
        # time a valid one is damaged anew. What stays well-formed outside reaches the
        # deep checks; one of eight inputs is blind bytes.
        if random.randrange(8):
            found = damage(random.choice((bytes(data), random.choice(seeds))), random)
            if found != data and len(found) <= max_size:
                return found
        return bytes(atheris.Mutate(data, len(data) + 16))[:max_size]

    atheris.Setup([*sys.argv, *OPTIONS], one_input, custom_mutator=mutate)
    atheris.Fuzz()
