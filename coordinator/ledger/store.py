"""The ledger as the event loop uses it: it takes entries and tells when each is safe from the coordinator's death."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, time

import structlog

from moe2.common.clock import MAX_AWAY_S, SteadyClock
from moe2.common.health import HealthWarning, Severity
from moe2.common.standby import StandingEnergy
from moe2.coordinator.ledger.accounts import DaySum, day_of
from moe2.coordinator.ledger.report import booked_counters, day_sums, first_written_unix_s, last_days
from moe2.coordinator.ledger.schema import open_beside, open_for_writing, unusable
from moe2.coordinator.ledger.writer import MAX_KEPT, Batch, Entry, LedgerWriter, Progress, Prune, Stop

PRUNE_EVERY_S = 3600.0
STALLED_S = 1.0
"""The time after which a write counts as stalled; an answer waits for its entry at most twice as long."""
CLOSE_S = 5.0

log = structlog.get_logger()

Recorded = asyncio.Future[bool]
"""A future that is done when the entry is safe (True), or when nobody should wait for it any longer (False)."""


class Ledger:
    """The ledger's database, written while `running()` is entered.

    retention_days: whole days that are kept besides today. is_journal: whether entries are noted for shipping to a
    database that coordinators share (`moe2.coordinator.ledger.journal`). clock: seconds since the epoch.
    """

    def __init__(
        self, path: Path, *, retention_days: int, is_journal: bool = False, clock: Callable[[], float] = time
    ) -> None:
        self.path = path
        self._clock = clock
        self._is_journal = is_journal
        self._retention_days = retention_days
        self._writer: LedgerWriter | None = None
        self._waiting: deque[tuple[int, Recorded]] = deque()
        self._n_put = 0
        self._progress = Progress(0, None, 0, 0)
        self._n_turned_away = 0
        self._gathered: list[Entry] = []
        self._is_stalled = False
        self.days: dict[str, tuple[DaySum, ...]] = {}
        self.booked_counters: dict[str, StandingEnergy] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the database for the length of the context. Raises LedgerError.

        `days` then has the sums of today and of the days that were written last, `booked_counters` the agents' counters
        of joules that are in the ledger.
        """
        connection = open_for_writing(self.path, is_journal=self._is_journal)
        try:
            self.booked_counters = booked_counters(connection)
            checkpointer = open_beside(self.path)
            now_unix_s = self._clock()
            today = day_of(now_unix_s)
            self.days = {day: day_sums(connection, day) for day in {today, *last_days(connection)}}
            clock = SteadyClock(first_written_unix_s(connection, day_of(max(0.0, now_unix_s - MAX_AWAY_S)), today))
        except sqlite3.Error as error:
            connection.close()
            raise unusable(self.path, error) from error
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            # The loop may have ended before a thread that was given up.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._progressed, progress)

        self._writer = LedgerWriter(connection, checkpointer, tell, is_journal=self._is_journal)
        self._writer.start()
        steady = [asyncio.create_task(work) for work in (self._keep_pruning(self._writer, clock), self._keep_watch())]
        try:
            yield
        finally:
            for task in steady:
                task.cancel()
            await self._close(self._writer)

    def record(self, entry: Entry) -> Recorded:
        """Hands over an entry and returns at once. Outside of `running()` the entry is lost, and counted as such."""
        loop = asyncio.get_running_loop()
        recorded: Recorded = loop.create_future()
        if self._writer is None or self.n_waiting >= MAX_KEPT:
            self._n_turned_away += 1
            recorded.set_result(False)
            return recorded
        self._n_put += 1
        if not self._gathered:
            # What else this turn of the loop brings goes with it: waking the writer costs more than a row.
            loop.call_soon(self._hand_over)
        self._gathered.append(entry)
        if self.is_failing:
            recorded.set_result(False)
        else:
            self._waiting.append((self._n_put, recorded))
        return recorded

    @property
    def n_waiting(self) -> int:
        """The number of entries that are not written yet."""
        return self._n_put - self._progress.handled + self._progress.n_waiting

    @property
    def n_dropped(self) -> int:
        """The number of entries that were lost since the start."""
        return self._progress.n_dropped + self._n_turned_away

    @property
    def is_failing(self) -> bool:
        """Whether entries wait in memory because they cannot be written."""
        return self._is_stalled or self._progress.error is not None

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns warnings about a database that cannot be written and about entries that were lost."""
        warnings = []
        if self.is_failing:
            error = self._progress.error or f"nothing has been written for more than {STALLED_S:.0f} s"
            warnings.append(
                HealthWarning(
                    code="ledger_not_written",
                    severity=Severity.DEGRADED,
                    message=f"The ledger {self.path} cannot be written: {error}. Requests are answered all the same; "
                    f"{self.n_waiting} entries wait in memory, of at most {MAX_KEPT}.",
                    remedy="Make room on its disk, end what locks it, or look at its permissions; it is tried again "
                    "every second.",
                )
            )
        if self.n_dropped:
            warnings.append(
                HealthWarning(
                    code="ledger_entries_lost",
                    severity=Severity.DEGRADED,
                    message=f"{self.n_dropped} entries of the ledger were lost since the start: its sums are too low.",
                    remedy="See the log for why the ledger could not be written; a restart ends this warning.",
                )
            )
        return tuple(warnings)

    def _progressed(self, progress: Progress) -> None:
        self._progress = progress
        self._is_stalled = False
        self._settle(progress.handled, is_safe=progress.error is None)

    def _settle(self, upto: int, *, is_safe: bool) -> None:
        while self._waiting and self._waiting[0][0] <= upto:
            _, recorded = self._waiting.popleft()
            # Its client may have left.
            if not recorded.done():
                recorded.set_result(is_safe)

    def _hand_over(self) -> None:
        if self._gathered and self._writer is not None:
            self._writer.put(Batch(self._n_put, tuple(self._gathered)))
            self._gathered.clear()

    async def _keep_watch(self) -> None:
        """Ends the wait for entries of a disk that hangs."""
        seen = 0
        while True:
            await asyncio.sleep(STALLED_S)
            if self._waiting and self._waiting[0][0] <= seen:
                self._is_stalled = True
                log.error("ledger_stalled", waiting=self.n_waiting)
                self._settle(self._n_put, is_safe=False)
            seen = self._n_put

    async def _keep_pruning(self, writer: LedgerWriter, clock: SteadyClock) -> None:
        """Has too old entries deleted, while the clock can be trusted to say which these are."""
        while True:
            now_unix_s = self._clock()
            if clock.is_trusted(now_unix_s, monotonic()):
                oldest = datetime.fromtimestamp(now_unix_s, UTC).date() - timedelta(days=self._retention_days)
                writer.put(Prune(oldest.isoformat()))
            else:
                # As after every first start.
                log.info("ledger_not_pruned", reason="the clock has not been seen to go on evenly for a day yet")
            await asyncio.sleep(PRUNE_EVERY_S)

    async def _close(self, writer: LedgerWriter) -> None:
        self._hand_over()
        writer.put(Stop())
        if not await asyncio.to_thread(writer.join, CLOSE_S):
            log.error("ledger_close_timed_out", not_written=self.n_waiting)
        elif self._progress.n_waiting:
            log.error("ledger_entries_lost", not_written=self._progress.n_waiting)
        self._settle(self._n_put, is_safe=False)
