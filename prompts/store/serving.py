"""What a store answers requests with: looked up again only where something changed."""

from dataclasses import dataclass, field, replace

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import FileFailed, MarkedBad, PromptError, TaskNotFound
from promptdial.prompts.store.blobs import BlobFiles
from promptdial.prompts.store.index import Index, Token
from promptdial.prompts.store.rival import Rival
from promptdial.prompts.store.rows import GOOD, TRIAL

_KEPT = 256
"""Blobs kept between calls, and tasks that are looked up."""

_READS = 5
"""Times to look again where a blob was collected since its version was looked up."""

_QUERY = """
SELECT a.digest, a.state, p.digest, t.active, c.version, c.digest, c.state, s.percent,
       s.experiment
FROM tasks t
LEFT JOIN versions a
    ON a.tenant = t.tenant AND a.task = t.task AND a.version = t.active
LEFT JOIN versions p
    ON p.tenant = t.tenant AND p.task = t.task AND p.version = t.previous
LEFT JOIN shares s
    ON s.tenant = t.tenant AND s.task = t.task AND s.incumbent = t.active
    AND s.percent > 0
LEFT JOIN versions c
    ON c.tenant = s.tenant AND c.task = s.task AND c.version = s.challenger
WHERE t.tenant = ? AND t.task = ?
"""

Served = tuple[PromptBlob | None, str | None]
"""The good blob that answers now, and the digest of the one that is on trial."""


@dataclass(frozen=True)
class _Found:
    """What was looked up of a task.

    Attributes:
        served: What answers where no rival does.
        rival: What answers a share of the requests instead; None for nothing.
    """

    served: Served
    rival: Rival | None


@dataclass
class _Known:
    """Tasks that were looked up since the index last changed."""

    token: Token
    tasks: dict[str, _Found] = field(default_factory=dict)


class Serving:
    """Answers of one tenant. Safe to share among threads."""

    def __init__(self, index: Index, blobs: BlobFiles, tenant: str) -> None:
        """Take a store's parts; nothing is read yet."""
        self._index = index
        self._blobs = blobs
        self._tenant = tenant
        self._known = _Known(())
        self._kept: dict[str, PromptBlob] = {}
        # No lock: one that another thread holds at a fork stays locked in the child.

    def served(self, task: str) -> Served:
        """What the active version answers a task with, whoever shares it.

        Microseconds where nothing changed.

        Raises:
            TaskNotFound: The tenant has no version of it that is active.
            MarkedBad: Every version that was active failed here.
            PromptError: The blob cannot be read.
        """
        return self._find(task).served

    def drawn(self, task: str, unit: str | None) -> Served:
        """What one request is answered with: of two versions that share, either.

        Args:
            task: The task.
            unit: Whoever has it gets the same version each time; None for either by
                chance.

        Raises:
            PromptError: As `served`.
        """
        found = self._find(task)
        rival = found.rival
        if rival is None or not rival.takes(unit):
            return found.served
        if rival.blob is None:
            return found.served[0], rival.digest
        return rival.blob, None

    def experiment(self, task: str, version: int) -> int:
        """What a version's answers are counted under: its share's number, or 0."""
        found = self._known.tasks.get(task)
        if found is None:
            # More tasks than are kept, or the index has just changed.
            try:
                found = self._look_up(task)
            except PromptError:
                return 0
        rival = found.rival
        return rival.experiment if rival and version in rival.versions else 0

    def _find(self, task: str) -> _Found:
        token = self._index.token()
        known = self._known
        if known.token != token:
            # Another thread may see an older token yet and swap it back: what it then
            # looks up is as new as ours.
            known = self._known = _Known(token)
        found = known.tasks.get(task)
        if found is None:
            found = self._look_up(task)
            if len(known.tasks) < _KEPT:
                known.tasks[task] = found
        return found

    def blob(self, digest: str) -> PromptBlob:
        """The blob of a digest, read where it is not kept.

        Raises:
            FileNotFoundError: It is gone.
            PromptError: It cannot be read, or its content is another's.
        """
        found = self._kept.get(digest)
        if found is None:
            found = self._blobs.read(digest)
            if len(self._kept) >= _KEPT:
                self._kept = {}
            self._kept[digest] = found
        return found

    def _look_up(self, task: str) -> _Found:
        for _ in range(_READS):
            good, on_trial, rival = self._digests(task)
            try:
                blob = None if good is None else self.blob(good)
                return _Found((blob, on_trial), self._read_rival(rival))
            except FileNotFoundError:
                continue
        raise FileFailed(
            f"the store's blob of task {task!r} is gone", "install the prompt again"
        )

    def _read_rival(self, rival: Rival | None) -> Rival | None:
        """A rival with its blob; None where that cannot be used: no answer needs it."""
        if rival is None or rival.on_trial:
            return rival
        try:
            return replace(rival, blob=self.blob(rival.digest))
        except (FileNotFoundError, PromptError):
            return None

    def _digests(self, task: str) -> tuple[str | None, str | None, Rival | None]:
        """Digests of the good version that serves and of the one on trial; a rival."""
        with self._index.reading() as connection:
            row = connection.execute(_QUERY, (self._tenant, task)).fetchone()
            active, state, previous, *share = row or (None, None, None)
            if active is None:
                failed = connection.execute(
                    "SELECT version, failure FROM versions WHERE tenant = ? "
                    "AND task = ? AND state = 'bad' ORDER BY version DESC",
                    (self._tenant, task),
                ).fetchone()
        if active is None and row is not None and failed is not None:
            raise MarkedBad(
                f"task {task!r} has no good version; {failed[0]} failed: {failed[1]}"
            )
        if active is None:
            raise TaskNotFound(f"no task {task[:64]!r} in the store")
        if state == GOOD:
            return active, None, _rival(active, *share)
        return previous, active if state == TRIAL else None, None


def _rival(
    active: str,
    incumbent: int,
    version: int | None,
    digest: str,
    state: str,
    percent: int,
    experiment: int,
) -> Rival | None:
    """What shares a task with its good version; None for nothing."""
    if version is None or state not in (GOOD, TRIAL):
        return None
    return Rival(
        versions=(incumbent, version),
        digests=(active, digest),
        percent=percent,
        experiment=experiment,
        on_trial=state == TRIAL,
    )
