"""The shared database as the daemon uses it: opened at the start, kept by threads, asked for warnings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import structlog

from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.database.membership import Membership, trouble
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.settings import DatabaseSection
from moe2.coordinator.database.shipper import Shipper

CLOSE_S = 5.0
WATCH_EVERY_S = 1.0

log = structlog.get_logger()


class Pair:
    """This coordinator's part in a group that shares a database, mostly a pair.

    url: of the database. ledger: path of this coordinator's own ledger, which is its journal.
    """

    def __init__(self, section: DatabaseSection, url: str, ledger: Path) -> None:
        self.name = section.own_name
        self._sessions = [Session(url, name=self.name) for _ in range(2)]
        self.membership = Membership(self._sessions[0], self.name)
        self._shipper = Shipper(self._sessions[1], ledger, self.name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Takes part for the length of the context; the ledger has to be open. Raises `DatabaseError`."""
        await asyncio.to_thread(self.membership.open)
        self.membership.start()
        self._shipper.start()
        watch = asyncio.create_task(self._cut_hanging())
        try:
            yield
        finally:
            if not await asyncio.to_thread(self._shipper.stop, CLOSE_S):
                log.warning("journal_not_shipped_whole", waiting=self._shipper.state.n_waiting)
            await asyncio.to_thread(self.membership.stop, CLOSE_S)
            watch.cancel()

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns warnings about the database and about entries on the way to it."""
        found = list(self.membership.warnings())
        state = self._shipper.state
        if state.error is not None and not found:
            found.append(trouble(state.error))
        if state.n_refused:
            found.append(
                HealthWarning(
                    code="database_rows_refused",
                    severity=Severity.DEGRADED,
                    message=f"The database did not take {state.n_refused} entries of the ledger since the start: its "
                    "sums are too low.",
                    remedy="See the log for why; the entries are in this coordinator's own ledger.",
                )
            )
        return tuple(found)

    async def _cut_hanging(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            for session in self._sessions:
                if session.cut_if_hanging(monotonic()):
                    log.error("database_connection_cut", reason="it answers nothing")
