"""Pruning: files that no metadata of today names, and no reader of yesterday's needs.

A device in the middle of an update goes on with the snapshot that its timestamp named,
and that one may have been replaced meanwhile. So a generation (a snapshot, the lists
that it names, the content that they name) is kept until no device can be reading it. A
root is never removed: devices go from the one that they know to the newest by each.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import UsageError
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.publishing.destination import (
    SNAPSHOT,
    FolderDestination,
    open_destination,
    rank,
)
from promptdial.prompts.updates.publishing.draft import Draft, Signing, utc_now
from promptdial.prompts.updates.publishing.files import METADATA, TARGETS, content_path
from promptdial.prompts.updates.publishing.layout import TOP, used_lists
from promptdial.prompts.updates.publishing.repository import LOCK, Repository, send
from promptdial.prompts.updates.publishing.settings import PRUNE_DAYS

_SNAPSHOT = re.compile(r"([0-9]+)\.snapshot\.json")
_OURS = re.compile(
    rf"{METADATA}/[0-9]+\.[a-z0-9_.-]+\.json|{TARGETS}/(.+/)?[0-9a-f]{{64}}\.[^/]+"
)
"""Names that publishing gives; whatever else lies there is somebody else's."""

_MOST_DAYS = 3653


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        removed: Files that were removed from the public folder.
        bytes: Bytes of them.
        removed_there: Files that were removed from the destination.
        generations: Generations that are kept, the current one among them.
        sent: Files that were sent to the destination before.
    """

    removed: int
    bytes: int
    removed_there: int
    generations: int
    sent: int


def prune(repository: Repository, older: float | None = None) -> Pruned:
    """Remove what was replaced longer ago than so many days; needs no keys.

    Cut short at any moment, it leaves a repository that is whole: it removes what
    nothing names, a generation's snapshot before its lists, and those before content.

    Args:
        repository: Where.
        older: Days since a generation was replaced, by the time of the file that
            replaced it; None for `PRUNE_DAYS`, or a timestamp's lifetime where that is
            longer. A device may follow a generation for that lifetime.

    Raises:
        UsageError: Less than the lifetime of a timestamp, or more than ten years.
        UpdateBusy: Another process changes the repository.
        Untrusted: A file of today's is not what was signed; nothing was removed.
        PromptError: A file cannot be read, removed or sent.
    """
    least = repository.settings.lifetimes.timestamp
    days = max(PRUNE_DAYS, least) if older is None else older
    if not least <= days <= _MOST_DAYS:
        raise UsageError(
            f"older than {days:g} days, allowed: {least:g}, which a timestamp lives, "
            f"to {_MOST_DAYS}",
            "devices may read what was replaced a shorter time ago",
        )
    with locked(repository.folder / LOCK, "a change of the repository"):
        now = utc_now()
        horizon = now - timedelta(days=days)
        kept = _kept(repository.metadata, _verified(repository, now), horizon)
        generations = len([name for name in kept if rank(name) == SNAPSHOT])
        # First, so that what is removed there is not what is current there.
        sent, there = send(repository), 0
        public = FolderDestination(repository.public)
        names = _unused(public.names(), kept)
        size = 0
        for name in names:
            size += _stat(repository.public / name).st_size
            public.remove(name)
        if repository.settings.to:
            destination = open_destination(repository.settings.to)
            for name in _unused(destination.names(), kept):
                destination.remove(name)
                there += 1
        return Pruned(len(names), size, there, generations, sent)


def _verified(repository: Repository, now: datetime) -> int:
    """Version of the current snapshot, where all that it leads to is there and signed.

    Raises:
        FileFailed: A file is missing.
        Untrusted: A file is not what was signed.
    """
    draft = Draft(repository.metadata, Signing({}, repository.settings.lifetimes, now))
    for name in used_lists(draft):
        draft.targets(name)
    return draft.snapshot.version


def _unused(names: set[str], kept: set[str]) -> list[str]:
    """Names to remove, in order: what names comes before what it names."""
    found = (x for x in names - kept if _OURS.fullmatch(x) and rank(x) <= SNAPSHOT)
    return sorted(found, key=lambda name: (-rank(name), name))


def _kept(folder: Path, current: int, horizon: datetime) -> set[str]:
    """Names of the files of all generations that were current after a time."""
    kept, lists = set[str](), dict[str, Targets]()
    for version in _generations(folder, current, horizon):
        file = f"{version}.snapshot.json"
        snapshot = _read(folder / file)
        if not isinstance(snapshot, Snapshot):
            continue
        kept.add(f"{METADATA}/{file}")
        files = {
            name.removesuffix(".json"): f"{meta.version}.{name}"
            for name, meta in snapshot.meta.items()
        }
        kept |= {f"{METADATA}/{name}" for name in files.values()}
        for target in _reachable(folder, files, lists):
            path = content_path(Path(), target.path, target.hashes.get("sha256", ""))
            kept.add(path.as_posix())
    return kept


def _generations(folder: Path, current: int, horizon: datetime) -> list[int]:
    """Versions of the snapshots that were current after a time."""
    names = (_SNAPSHOT.fullmatch(path.name) for path in folder.iterdir())
    versions = sorted(int(match[1]) for match in names if match)
    found = [current]
    for version, after in pairwise(versions):
        replaced = _stat(folder / f"{after}.snapshot.json").st_mtime
        if after <= current and replaced >= horizon.timestamp():
            found.append(version)
    return found


def _reachable(
    folder: Path, files: Mapping[str, str], lists: dict[str, Targets]
) -> Iterator[TargetFile]:
    """The targets of a generation that a device can come to.

    Args:
        folder: Of the metadata.
        files: Name to file of its lists.
        lists: What was read before, by file; most lists are those of the generation
            before.
    """
    waiting, seen = [TOP], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in files:
            continue
        seen.add(name)
        file = files[name]
        if file not in lists:
            found = _read(folder / file)
            lists[file] = found if isinstance(found, Targets) else Targets()
        yield from lists[file].targets.values()
        delegations = lists[file].delegations
        if delegations is not None:
            waiting += delegations.roles or ()
            bins = delegations.succinct_roles
            waiting += bins.get_roles() if bins else ()


def _read(path: Path) -> Any:
    """What a metadata file says, its signatures unseen: who forges it keeps files.

    None where it is not there or none: a generation whose files are not there is of no
    use to a reader.
    """
    try:
        return Metadata[Any].from_bytes(path.read_bytes()).signed
    except (FileNotFoundError, RepositoryError):
        return None
    except OSError as error:
        raise disk_failure(path, error) from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise disk_failure(path, error) from None
