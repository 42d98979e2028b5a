"""A coordinator's membership among those that share a database: its name, its clock, its copies, who does the chores.

One thread polls once a second and whenever the database notifies: it says that this coordinator is alive, and reads
again what has changed since its copies were made. Both locks belong to its connection, so that a coordinator that dies
gives them back.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic, sleep, time
from typing import Any

import structlog

from moe2.common.clock import is_clock_wrong
from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.database.postgresql import (
    Cursor,
    DatabaseError,
    DatabaseUnreachableError,
    Session,
    defect_of,
)
from moe2.coordinator.database.schema import check_version
from moe2.coordinator.ledger.leases import LEASE_S

POLL_S = 1.0
RETRY_S = 0.5
CURRENT_S = 5.0
"""The time for which the chores stay with a coordinator after its last good poll. The database gives them to another
one no sooner: its keep-alives take 11 s."""
MAX_COPY_AGE_S = 300.0
"""The age from which copies count as unknown."""
MAX_CLOCK_OFFSET_S = 30.0
NAME_PATIENCE_S = 15.0
"""The time that a start waits for its own former connection to be given up by the server."""
_NAME_LOCK, _CHORES_LOCK = 0x6D6F6533, 0x6D6F6534
GOES_ON = "Requests go on, and what they cost waits in this coordinator's ledger."
GONE_S = 60.0
"""Other coordinators that have not been seen for so long are not spoken of."""

log = structlog.get_logger()

Load = Callable[[Cursor], None]
"""Reads one subject from the database, or writes what is to be said, in the membership's thread."""


class NameTakenError(DatabaseError):
    """Another coordinator is connected under this name."""


@dataclass(frozen=True)
class Peer:
    """A coordinator. clock_offset_s: its clock against the database's; None where unknown. gate_sha256: of the gate's
    file; None where it has none. is_connected: whether it is, else it was a moment ago."""

    name: str
    clock_offset_s: float | None
    gate_sha256: str | None = None
    cell: str = "main"
    is_connected: bool = True


@dataclass(frozen=True)
class Standing:
    """What the last poll has found. error: why it failed; None if it did not."""

    error: DatabaseError | None = None
    polled_s: float | None = None
    """When the last good poll began, monotonic; None before the first one."""
    clock_offset_s: float | None = None
    database_ahead_s: float | None = None
    """The database's time less the monotonic clock; None where unknown, or where that cannot be the time."""
    holds_chores: bool = False
    peers: tuple[Peer, ...] = ()


@dataclass
class _Locks:
    """The advisory locks of the present connection."""

    of_opening: int = 0
    chores: bool = False


class Membership:
    """Keeps this coordinator a member from `start` to `stop`.

    cell: the fleet that it serves; each has chores of its own. loads: how each subject is read, by its name; it is read
    whenever it changes. write: says what there is to say, at each poll. on_connected: called in the thread at the first
    poll of each connection, whose server may have failed over and not have all that was known before. on_change: called
    in the thread after subjects were read, or chores came or went. on_news: called there with each notification.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        cell: str = "main",
        loads: Mapping[str, Load] | None = None,
        write: Load | None = None,
        on_connected: Callable[[], None] = lambda: None,
        on_change: Callable[[], None] = lambda: None,
        on_news: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time,
    ) -> None:
        self.session = session
        self.name = name
        self.cell = cell
        self._instance = uuid.uuid4().hex
        self._loads = dict(loads or {})
        self._write = write
        self.gate_sha256: str | None = None
        """The digest of the gate's file that this coordinator uses."""
        self._on_connected, self._on_change, self._on_news = on_connected, on_change, on_news
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._locks = _Locks()
        self.standing = Standing()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-membership", daemon=True)

    def open(self) -> None:
        """Polls for the first time. Blocks. A database that cannot be reached now is no error.

        Raises `DatabaseError` where it refuses, is of another version, or has another coordinator of this name.
        """
        patience_s = monotonic() + NAME_PATIENCE_S
        while True:
            self._poll_and_tell()
            error = self.standing.error
            if error is None or isinstance(error, DatabaseUnreachableError):
                return
            if not isinstance(error, NameTakenError) or monotonic() >= patience_s:
                self.session.close()
                raise error
            sleep(RETRY_S)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread, which gives the locks back. Blocks."""
        self._stopping.set()
        # It waits for news that may be a second away.
        self.session.cut()
        self._thread.join(timeout_s)

    @property
    def is_current(self) -> bool:
        """Whether the database was reached within the last few seconds."""
        return self.age_s() < CURRENT_S

    @property
    def has_good_copies(self) -> bool:
        """Whether the copies are young enough to be believed."""
        return self.age_s() < MAX_COPY_AGE_S

    @property
    def holds_chores(self) -> bool:
        """Whether this coordinator does what only one may do."""
        return self.standing.holds_chores and self.is_current

    def age_s(self) -> float:
        """Returns the seconds since the last good poll; infinite before the first one."""
        polled_s = self.standing.polled_s
        return math.inf if polled_s is None else monotonic() - polled_s

    def unix_s(self) -> float:
        """Returns the time by which days begin and keys expire at all coordinators: the database's.

        It goes on by the monotonic clock between polls, so that this host's may jump. It is this host's where the
        database's is not known, or cannot be right.
        """
        ahead_s = self.standing.database_ahead_s
        return self._clock() if ahead_s is None else monotonic() + ahead_s

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns warnings about the database, its clock, and other coordinators' clocks."""
        standing, found = self.standing, []
        if standing.error is not None:
            found.append(trouble(standing.error, self._consequence()))
        found.extend(
            _clock_differs(peer.name, peer.clock_offset_s)
            for peer in (Peer(self.name, standing.clock_offset_s), *standing.peers)
            if peer.clock_offset_s is not None and abs(peer.clock_offset_s) > MAX_CLOCK_OFFSET_S
        )
        found.extend(
            _gate_differs(peer.name)
            for peer in standing.peers
            if self.is_current and peer.cell == self.cell and peer.gate_sha256 != self.gate_sha256
        )
        return tuple(found)

    def _consequence(self) -> str:
        """Returns what requests have to expect until the database answers again."""
        age_s = self.age_s()
        if age_s == math.inf:
            return "No key has been read from it yet: until it answers, requests with keys are answered with 503."
        end = datetime.fromtimestamp(self._clock() - age_s + MAX_COPY_AGE_S, UTC).strftime("%H:%M UTC")
        if not self.has_good_copies:
            return f"No key can be checked any more: since {end} requests with keys are answered with 503."
        return (
            f"{GOES_ON} Keys with limits are answered with 503 once what this coordinator has drawn for them is used "
            f"up, {LEASE_S:.0f} s after a draw at the latest, and all keys from {end} on."
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = POLL_S if self.standing.error is None else RETRY_S
            try:
                if self.standing.error is None:
                    for word in self.session.wait_for_news(wait_s):
                        self._on_news(word)
                else:
                    self._stopping.wait(wait_s)
            except DatabaseError as error:
                if not self._stopping.is_set():
                    self._failed(error)
            except Exception as error:
                self._failed_unforeseen(error)
            if not self._stopping.is_set():
                self._poll_and_tell()
        self.session.close()

    def _poll_and_tell(self) -> None:
        held, seen = self.standing.holds_chores, dict(self._seen)
        try:
            self.standing = self._poll()
        except DatabaseError as error:
            self._failed(error)
        except Exception as error:
            self._failed_unforeseen(error)
        if held != self.standing.holds_chores or seen != self._seen:
            self._on_change()

    def _failed_unforeseen(self, error: Exception) -> None:
        """Goes on after a defect: without this thread the copies would grow old until no key is believed any more."""
        fault = defect_of(error)
        if str(self.standing.error) != str(fault):
            log.error("database_work_failed", exc_info=error)
        self.session.close()
        self._failed(fault)

    def _failed(self, error: DatabaseError) -> None:
        former = self.standing
        if former.error is None or str(former.error) != str(error):
            log.error("database_failed", error=str(error))
        self.standing = replace(former, error=error, holds_chores=False)

    def _poll(self) -> Standing:
        began_s, began_unix_s = monotonic(), self._clock()
        with self.session.transaction() as cursor:
            # Each time: another host's `database init` may have changed the tables since this one joined.
            check_version(cursor)
            if self._locks.of_opening != self.session.n_opened:
                self._join(cursor)
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
            database_unix_s = float(_one(cursor)[0])
            # The question took its time, half of it on the way there.
            offset_s = (began_unix_s + self._clock()) / 2 - database_unix_s
            ahead_s = None if is_clock_wrong(database_unix_s) else database_unix_s - (began_s + monotonic()) / 2
            if not self._locks.chores:
                cursor.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", [_CHORES_LOCK, self.cell])
                [self._locks.chores] = _one(cursor)
            cursor.execute(_SEEN, [self.name, self._instance, offset_s, self.gate_sha256, self.cell])
            if self._write is not None:
                self._write(cursor)
            cursor.execute(_PEERS, [_NAME_LOCK, self.name, GONE_S])
            peers = tuple(Peer(*row) for row in cursor.fetchall())
            seen = self._load_changed(cursor)
        self._seen |= seen
        if self.standing.error is not None:
            log.info("database_reached", name=self.name)
        return Standing(None, began_s, offset_s, ahead_s, self._locks.chores, peers)

    def _join(self, cursor: Cursor) -> None:
        """Takes the name on a new connection, and listens."""
        cursor.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", [_NAME_LOCK, self.name])
        if _one(cursor) != (True,):
            raise NameTakenError(
                f"Another coordinator is connected to the database as {self.name!r}.",
                remedy="Give each coordinator a name of its own: database.name.",
            )
        cursor.execute("LISTEN moe2")
        self._seen = {}
        self._on_connected()
        self._locks = _Locks(self.session.n_opened)

    def _load_changed(self, cursor: Cursor) -> dict[str, int]:
        """Reads the subjects that have changed, and returns their revisions."""
        if not self._loads:
            return {}
        cursor.execute("SELECT subject, n FROM revisions")
        revisions = dict(cursor.fetchall())
        changed = {
            subject: revisions.get(subject, 0)
            for subject in self._loads
            if self._seen.get(subject) != revisions.get(subject, 0)
        }
        for subject in changed:
            self._loads[subject](cursor)
        return changed


def _one(cursor: Cursor) -> tuple[Any, ...]:
    found = cursor.fetchone()
    return () if found is None else found


def trouble(error: DatabaseError, consequence: str = GOES_ON) -> HealthWarning:
    """Returns the warning about a database that fails. consequence: for requests."""
    code = "database_unreachable" if isinstance(error, DatabaseUnreachableError) else "database_refused"
    return HealthWarning(
        code="coordinator_name_taken" if isinstance(error, NameTakenError) else code,
        severity=Severity.DEGRADED,
        message=f"{error.message} {consequence}",
        remedy=error.remedy or "",
    )


def _clock_differs(who: str, offset_s: float) -> HealthWarning:
    way = "ahead of" if offset_s > 0 else "behind"
    return HealthWarning(
        code="database_clock_differs",
        severity=Severity.DEGRADED,
        message=f"The clock of the coordinator {who} is {abs(offset_s):.0f} s {way} the database's. "
        "Limits and keys go by the database's; certificates and logs do not.",
        remedy="Have all hosts' clocks set by NTP, the database's first if several differ from it.",
    )


def _gate_differs(who: str) -> HealthWarning:
    return HealthWarning(
        code="gate_differs",
        severity=Severity.DEGRADED,
        message=f"The coordinator {who} uses another gate than this one: the same prompt may be sent to other experts.",
        remedy="Copy the same gate.safetensors to both, and send SIGHUP.",
    )


_SEEN = """
    INSERT INTO coordinators (name, instance, seen_at, clock_offset_s, gate_sha256, cell)
    VALUES (%s, %s, now(), %s, %s, %s)
    ON CONFLICT (name) DO UPDATE
    SET instance = excluded.instance, seen_at = excluded.seen_at, clock_offset_s = excluded.clock_offset_s,
        gate_sha256 = excluded.gate_sha256, cell = excluded.cell
"""
# Who is connected has the lock of its name; the catalog shows a lock's two numbers as unsigned ones.
_PEERS = """
    SELECT name, clock_offset_s, gate_sha256, cell, EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 2 AND classid = %s
        AND objid = (hashtext(name)::bigint & 4294967295)::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    FROM coordinators
    WHERE name <> %s AND abs(extract(epoch FROM now() - seen_at)) < %s ORDER BY name
"""
