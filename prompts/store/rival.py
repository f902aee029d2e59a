"""A version that answers a share of a task's requests, and which of them."""

import random
from dataclasses import dataclass
from hashlib import blake2b

from promptdial.prompts.blob import PromptBlob

_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Rival:
    """The challenger of a task's good, active version.

    Attributes:
        versions: Of the incumbent, and its own.
        digests: The same of their blobs.
        percent: Percent of the requests that it answers.
        experiment: What the answers of both are counted under.
        on_trial: It was never found good, and has to be tried before it answers.
        blob: What it answers with; None while it is on trial.
    """

    versions: tuple[int, int]
    digests: tuple[str, str]
    percent: int
    experiment: int
    on_trial: bool
    blob: PromptBlob | None = None

    @property
    def digest(self) -> str:
        """Of its own blob."""
        return self.digests[1]

    def takes(self, unit: str | None) -> bool:
        """Whether it answers a request of a unit; by chance for None.

        The place of a unit is a hash of it and both digests. So it is the same on all
        devices that compare the two, another one for the next two, and whoever had the
        challenger at some percentage has it at a higher one.
        """
        if unit is None:
            return 100 * random.random() < self.percent
        said = "\n".join((*self.digests, unit)).encode("utf-8", "surrogatepass")
        place = int.from_bytes(blake2b(said, digest_size=_DIGEST_BYTES).digest(), "big")
        return 100 * place < self.percent << (8 * _DIGEST_BYTES)
