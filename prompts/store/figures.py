"""What a store counted of one tenant's answers, and what that says."""

from collections.abc import Sequence
from contextlib import suppress

from promptdial.prompts.errors import PromptError, UsageError
from promptdial.prompts.store.comparison import Comparison, compare
from promptdial.prompts.store.counters import Counters
from promptdial.prompts.store.index import Index
from promptdial.prompts.store.rows import known_versions, share_of, versions_of
from promptdial.prompts.store.serving import Serving
from promptdial.prompts.store.shifts import Shift, shifts_of
from promptdial.prompts.store.tally import Tally


class Figures:
    """Counts of one tenant's answers. Safe to share among threads.

    Other processes' counts are among them as far as those were written, which happens
    twice a minute and when a store is closed; this process's all are.
    """

    def __init__(
        self, index: Index, serving: Serving, counters: Counters, tenant: str
    ) -> None:
        """Take a store's parts; nothing is read yet."""
        self._index = index
        self._serving = serving
        self._counters = counters
        self._tenant = tenant

    def count(
        self,
        task: str,
        version: int,
        confidence: float | None,
        tokens: int,
        milliseconds: float | None,
        abstained: bool,
    ) -> None:
        """Count an answer, as PromptStore.count."""
        experiment = self._serving.experiment(task, version)
        key = (self._tenant, task, version, experiment)
        self._counters.count(key, confidence, tokens, milliseconds, abstained)

    def counted(self) -> dict[tuple[str, int], Tally]:
        """What was counted of each version ever, by task and version."""
        found: dict[tuple[str, int], Tally] = {}
        for (task, version, _), tally in self._counters.read(self._tenant).items():
            found.setdefault((task, version), Tally()).add(tally)
        return found

    def compare(self, task: str) -> Comparison:
        """What the newest share of a task shows, or showed until it ended.

        Raises:
            TaskNotFound: There is no such task.
            UsageError: No version of it ever answered a share.
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            known_versions(connection, self._tenant, task)
            share = share_of(connection, self._tenant, task)
        if share is None:
            raise UsageError(
                f"no two versions of task {task!r} ever shared it",
                "let a second one answer a part: store share",
            )
        counted = self._counters.read(self._tenant)
        one, two = [
            counted.get((task, version, share.experiment), Tally())
            for version in (share.incumbent, share.challenger)
        ]
        return compare(share, one, two)

    def shifts(self) -> Sequence[Shift]:
        """Where answers are unlike those of the dev rows, for the versions in use.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        counted = self.counted()
        with self._index.reading() as connection:
            versions = versions_of(connection, self._tenant)
        found: list[Shift] = []
        for item in versions:
            tally = counted.get((item.task, item.version))
            if tally is None or not (item.active or item.share):
                continue
            # Of a blob that is damaged, `inspect` tells.
            with suppress(FileNotFoundError, PromptError):
                found += shifts_of(self._serving.blob(item.digest).meta, tally)
        return found

    def forget_the_gone(self) -> None:
        """Forget the counts of versions that are no longer there, whoever's they were.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            rows = connection.execute("SELECT tenant, task, version FROM versions")
            known = {(who, task, number) for who, task, number in rows.fetchall()}
            rows = connection.execute("SELECT experiment FROM shares")
            experiments = {number for (number,) in rows.fetchall()}
        self._counters.keep(known, experiments)
