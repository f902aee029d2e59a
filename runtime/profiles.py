"""Ways to run: for latency, for memory, for the battery."""

from dataclasses import dataclass

from promptdial.prompts.errors import UsageError


@dataclass(frozen=True)
class Profile:
    """How a session is set up.

    Attributes:
        threads: Threads of one request; 0 lets onnxruntime take every core.
        spinning: Idle threads spin for a while: faster, and hot.
        prepacking: Weights are copied into the processor's own layout.
        arena: Buffers are kept between requests.
    """

    threads: int
    spinning: bool
    prepacking: bool
    arena: bool


PROFILES: dict[str, Profile] = {
    "latency": Profile(threads=0, spinning=True, prepacking=True, arena=True),
    "memory": Profile(threads=1, spinning=False, prepacking=False, arena=False),
    "battery": Profile(threads=1, spinning=False, prepacking=True, arena=True),
}


def profile_named(name: str) -> Profile:
    """A profile by name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PROFILES:
        raise UsageError(f"profile {name!r}", f"choose from {', '.join(PROFILES)}")
    return PROFILES[name]
