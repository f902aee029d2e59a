"""What a store answers requests with: looked up again only where something changed."""

from dataclasses import dataclass, field

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import FileFailed, MarkedBad, TaskNotFound
from promptdial.prompts.store.blobs import BlobFiles
from promptdial.prompts.store.index import Index, Token
from promptdial.prompts.store.rows import GOOD, TRIAL

_KEPT = 256
"""Blobs kept between calls, and tasks that are looked up."""

_READS = 5
"""Times to look again where a blob was collected since its version was looked up."""

_QUERY = """
SELECT a.digest, a.state, p.digest
FROM tasks t
LEFT JOIN versions a
    ON a.tenant = t.tenant AND a.task = t.task AND a.version = t.active
LEFT JOIN versions p
    ON p.tenant = t.tenant AND p.task = t.task AND p.version = t.previous
WHERE t.tenant = ? AND t.task = ?
"""

Served = tuple[PromptBlob | None, str | None]
"""The good blob that answers now, and the digest of the one that is on trial."""


@dataclass
class _Known:
    """Tasks that were looked up since the index last changed."""

    token: Token
    tasks: dict[str, Served] = field(default_factory=dict)


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
        """What a task is answered with; microseconds where nothing changed.

        Raises:
            TaskNotFound: The tenant has no version of it that is active.
            MarkedBad: Every version that was active failed here.
            PromptError: The blob cannot be read.
        """
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

    def _look_up(self, task: str) -> Served:
        for _ in range(_READS):
            good, on_trial = self._digests(task)
            try:
                return None if good is None else self.blob(good), on_trial
            except FileNotFoundError:
                continue
        raise FileFailed(
            f"the store's blob of task {task!r} is gone", "install the prompt again"
        )

    def _digests(self, task: str) -> tuple[str | None, str | None]:
        """Digests of the good version that serves, and of the one on trial."""
        with self._index.reading() as connection:
            row = connection.execute(_QUERY, (self._tenant, task)).fetchone()
            active, state, previous = row or (None, None, None)
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
            return active, None
        return previous, active if state == TRIAL else None
