"""What a repository's publisher decides: thresholds, lifetimes, where it goes."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import FileFailed, UsageError

NAME = "repository.json"
PRUNE_DAYS = 7.0
"""Days that what was replaced stays readable, when nothing else is said."""

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True)
class Signers:
    """How many keys a role has, and how many of them must sign."""

    threshold: int = 1
    keys: int = 1


@dataclass(frozen=True)
class Lifetimes:
    """Days from signing to expiry.

    Attributes:
        root: Of the root of trust.
        targets: Of the lists of targets, those of tenants and bins too.
        snapshot: Of the list of lists.
        timestamp: Of the one file that changes all the time. It bounds how long an
            attacker can hold a device back unnoticed.
    """

    root: float = 365
    targets: float = 180
    snapshot: float = 14
    timestamp: float = 1

    def of(self, role: str) -> float:
        """Days of a role; lists of tenants and bins live as long as `targets`."""
        by_role = {
            "root": self.root,
            "snapshot": self.snapshot,
            "timestamp": self.timestamp,
        }
        return by_role.get(role, self.targets)


@dataclass(frozen=True)
class Settings:
    """The publisher's own file beside the repository; it is not published.

    Attributes:
        lifetimes: Of each role.
        keys: Folder of the private keys.
        to: Where the static files go besides `public/`: a folder or an fsspec URL; ""
            for nowhere.
    """

    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    keys: str = ""
    to: str = ""


def read_settings(folder: Path) -> Settings:
    """The settings of a repository.

    Raises:
        FileFailed: The folder is no repository.
    """
    path = folder / NAME
    try:
        body = json.loads(path.read_text("utf-8"))
        return Settings(Lifetimes(**body["lifetimes"]), body["keys"], body["to"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFailed(
            f"{folder} is no repository: {error}", "make one with promptdial repo init"
        ) from None


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the settings of a repository.

    Raises:
        FileFailed: They cannot be written.
    """
    text = json.dumps(asdict(settings), indent=2, sort_keys=True) + "\n"
    write_atomic(folder / NAME, text.encode())


def parse_signers(texts: list[str]) -> dict[str, Signers]:
    """Read `ROLE=THRESHOLD/KEYS` words.

    Raises:
        UsageError: One is not of that form.
    """
    found = {}
    for text in texts:
        role, _, numbers = text.partition("=")
        threshold, _, keys = numbers.partition("/")
        if not role or not threshold.isdecimal() or not keys.isdecimal():
            raise UsageError(f"signers {text[:64]!r}", "give ROLE=THRESHOLD/KEYS")
        found[role] = Signers(int(threshold), int(keys))
    return found


def parse_days(texts: list[str], lifetimes: Lifetimes) -> Lifetimes:
    """Read `ROLE=DAYS` words over given lifetimes.

    Raises:
        UsageError: One is not of that form, or not between a minute and ten years.
    """
    for text in texts:
        role, _, days = text.partition("=")
        try:
            number = float(days)
        except ValueError:
            number = 0.0
        if role not in TOP_ROLES or not 1 / 1440 <= number <= 3653:
            raise UsageError(
                f"lifetime {text[:64]!r}",
                f"give ROLE=DAYS, ROLE one of {', '.join(TOP_ROLES)}",
            )
        lifetimes = replace(lifetimes, **{role: number})
    return lifetimes
