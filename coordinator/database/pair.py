"""The shared database as the daemon uses it: opened at the start, kept by threads, asked for what is shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TypeVar

import structlog

from moe2.common.health import HealthWarning, Severity
from moe2.common.status import PairStatus
from moe2.coordinator.database.books import SharedBooks
from moe2.coordinator.database.bulletin import Bulletin, SharedAnswers
from moe2.coordinator.database.lender import RECALL, Lender
from moe2.coordinator.database.membership import Membership, trouble
from moe2.coordinator.database.postgresql import Cursor, DatabaseError, Session, defect_of
from moe2.coordinator.database.rates import SharedRates
from moe2.coordinator.database.settings import DatabaseSection
from moe2.coordinator.database.shared_trust import SUBJECT as REGISTER
from moe2.coordinator.database.shared_trust import KeyCopy, SharedRegister
from moe2.coordinator.database.shipper import Shipper
from moe2.coordinator.gate.feedback import Feedback
from moe2.coordinator.ledger.accounts import Accounts
from moe2.coordinator.provisioning.price_book import PriceBook
from moe2.coordinator.provisioning.steering import Wishes

CLOSE_S = 5.0
WATCH_EVERY_S = 1.0
RETRY_S = 1.0

log = structlog.get_logger()
T = TypeVar("T")


class Pair:
    """This coordinator's part in a group that shares a database, mostly a pair.

    url: of the database. ledger: path of this coordinator's own ledger, which is its journal. scores: what it has kept
    of users' scores. on_scores, on_wishes: called on the event loop with what other coordinators say. on_change: called
    there after copies were made anew. accounts: of what this coordinator's keys have used. prices: that it learns.
    on_lease: called there when requests that wait for a budget may look again.
    """

    def __init__(
        self,
        section: DatabaseSection,
        url: str,
        ledger: Path,
        *,
        scores: Iterable[Feedback],
        on_scores: Callable[[list[Feedback]], None],
        on_wishes: Callable[[Wishes], None],
        on_change: Callable[[], None],
        accounts: Accounts,
        prices: PriceBook,
        on_lease: Callable[[], None],
    ) -> None:
        self.name = section.own_name
        self.n_coordinators = section.coordinators
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions = [Session(url, name=self.name) for _ in range(7)]
        of_membership, of_shipper, of_register, of_lender, of_rates, of_answers, of_books = self._sessions
        self.keys = KeyCopy(lambda: self.membership.has_good_copies)
        self.register = SharedRegister(of_register, lambda: self.membership.has_good_copies)
        self.bulletin = Bulletin(scores, on_scores=self._on_loop(on_scores), on_wishes=self._on_loop(on_wishes))
        self.membership = Membership(
            of_membership,
            self.name,
            cell=section.cell,
            loads={
                "keys": self.keys.load,
                REGISTER: self.register.load,
                "feedback": self.bulletin.load_scores,
                "wishes": self.bulletin.load_wishes,
            },
            write=self._write,
            on_connected=self._connected,
            on_change=lambda: self._on_loop(lambda _: on_change())(None),
            on_news=self._on_loop(self._heard),
        )
        self.lender = Lender(
            of_lender,
            self.name,
            accounts=accounts,
            n_coordinators=section.coordinators,
            on_news=on_lease,
            wall_clock=self.membership.unix_s,
        )
        self.rates = SharedRates(of_rates, prices, n_coordinators=section.coordinators)
        self.answers = SharedAnswers(of_answers, self.bulletin)
        self.books = SharedBooks(of_books, self.name, section.cell)
        self._shipper = Shipper(of_shipper, ledger, self.name)
        self._failure: DatabaseError | None = None
        """Why a work that goes on all the time broke off, until it has gone on for a while."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Takes part for the length of the context; the ledger has to be open. Raises `DatabaseError`."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.membership.open)
        self.membership.start()
        self._shipper.start()
        watch, lend, rate = (
            asyncio.create_task(self._kept_running(work))
            for work in (self._cut_hanging, self.lender.run, self.rates.run)
        )
        try:
            yield
        finally:
            if not await asyncio.to_thread(self._shipper.stop, CLOSE_S):
                log.warning("journal_not_shipped_whole", waiting=self._shipper.state.n_waiting)
            await asyncio.to_thread(self.membership.stop, CLOSE_S)
            lend.cancel()
            rate.cancel()
            await self.lender.close()
            await self.rates.close()
            self.answers.close()
            self.books.close()
            watch.cancel()
            self.register.close()

    @property
    def does_chores(self) -> bool:
        """Whether this coordinator is the one that does what only one may do."""
        return self.membership.holds_chores

    @property
    def has_others(self) -> bool:
        """Whether another coordinator of this fleet was there when the database was last asked, a moment ago."""
        member = self.membership
        return member.is_current and any(
            peer.is_connected and peer.cell == member.cell for peer in member.standing.peers
        )

    def status(self) -> PairStatus:
        """Returns this coordinator's part as users see it."""
        return PairStatus(
            name=self.name,
            preferred=self.does_chores,
            reached=self.membership.is_current and self.membership.standing.error is None,
            unshipped=self._shipper.state.n_waiting,
            others=tuple(peer.name for peer in self.membership.standing.peers),
        )

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns warnings about the database and about entries on the way to it."""
        found = list(self.membership.warnings())
        state = self._shipper.state
        if state.error is not None and self.membership.standing.error is None:
            found.append(trouble(state.error))
        if self._failure is not None:
            found.append(trouble(self._failure))
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

    def _write(self, cursor: Cursor) -> None:
        """Says what there is to say at each poll: words, and how far the books have been shipped."""
        self.bulletin.write(cursor)
        complete_s = self._shipper.complete_s
        if complete_s is not None:
            cursor.execute(
                "UPDATE coordinators SET shipped_at = clock_timestamp() - make_interval(secs => %s) WHERE name = %s",
                [monotonic() - complete_s, self.name],
            )

    def _connected(self) -> None:
        self.register.doubt()
        self.bulletin.say_again()

    def _heard(self, word: str) -> None:
        if word.startswith(RECALL):
            self.lender.recalled(word.removeprefix(RECALL))

    def _on_loop(self, act: Callable[[T], None]) -> Callable[[T], None]:
        """Returns a function that a thread calls to have something done on the event loop."""

        def later(argument: T) -> None:
            # The loop may have ended before a thread that was given up.
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(act, argument)

        return later

    async def _kept_running(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does a work without end until it is cancelled, again where a defect has ended it."""
        while True:
            try:
                await work()
            except Exception as error:
                log.exception("database_work_failed")
                self._failure = defect_of(error)
            await asyncio.sleep(RETRY_S)

    async def _cut_hanging(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            for session in self._sessions:
                if session.cut_if_hanging(monotonic()):
                    log.error("database_connection_cut", reason="it answers nothing")
