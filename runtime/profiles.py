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
        mapped_table: Token rows are looked up in a mapped file. Each row brings the
            64 KB around it into memory, in time the whole table; without, a row is
            read when it is used and nothing stays.
    """

    threads: int
    spinning: bool
    prepacking: bool
    arena: bool
    mapped_table: bool


PROFILES: dict[str, Profile] = {
    "latency": Profile(
        threads=0, spinning=True, prepacking=True, arena=True, mapped_table=True
    ),
    "memory": Profile(
        threads=1, spinning=False, prepacking=False, arena=False, mapped_table=False
    ),
    "battery": Profile(
        threads=1, spinning=False, prepacking=True, arena=True, mapped_table=True
    ),
}


def profile_named(name: str) -> Profile:
    """A profile by name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PROFILES:
        raise UsageError(f"profile {name!r}", f"choose from {', '.join(PROFILES)}")
    return PROFILES[name]
