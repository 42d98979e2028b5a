"""The one door to PostgreSQL: connections that come back after they broke, and errors with what to do about them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from time import monotonic
from types import ModuleType
from typing import Any, Protocol, cast

from moe2.common.errors import Moe2Error

CONNECT_TIMEOUT_S = 3
STATEMENT_TIMEOUT_S = 10
MAX_BUSY_S = 15.0
"""The time after which a transaction counts as hanging, so that its connection is cut."""
_OPTIONS = (
    f"-c search_path=moe2 -c statement_timeout={STATEMENT_TIMEOUT_S}s -c lock_timeout={STATEMENT_TIMEOUT_S}s "
    # The server, too, has to notice a peer that is gone, whose locks it would keep.
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
    "-c idle_in_transaction_session_timeout=30s -c client_min_messages=warning"
)
_REFUSED = ("authentication failed", "does not exist", "permission denied", "no pg_hba.conf")


class DatabaseError(Moe2Error):
    """The database refuses what was asked, and will until somebody changes something."""


class DatabaseUnreachableError(DatabaseError):
    """The database cannot be reached or cannot work now; the same may succeed later."""


class DatabaseRowError(DatabaseError):
    """The database will never take one of the rows that it was given."""


class Cursor(Protocol):
    """The part of psycopg's cursor that is used."""

    @property
    def rowcount(self) -> int: ...

    @property
    def description(self) -> Any: ...

    def execute(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> object: ...

    def executemany(self, query: str, params_seq: Iterable[Sequence[Any]]) -> None: ...

    def fetchone(self) -> tuple[Any, ...] | None: ...

    def fetchall(self) -> list[tuple[Any, ...]]: ...


@lru_cache(maxsize=1)
def driver() -> ModuleType:
    """Returns psycopg. Raises `Moe2Error` where it is not installed."""
    try:
        # Imported where it is used, as only those need it who share a database.
        import psycopg
    except ImportError as error:
        raise Moe2Error(
            f"PostgreSQL cannot be used: {error}.",
            remedy="Install moe2[postgresql], on a host with `sudo ./install.sh coordinator --postgresql`, or leave "
            "database.url out.",
        ) from error
    return psycopg


class Session:
    """A connection that is opened when it is needed, and again after it broke. For one thread at a time.

    url: as libpq reads it. name: what the server shows it as.
    """

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: Any = None
        self.n_opened = 0
        """How often the connection was opened; a change means that the server may be another one."""
        self._busy_since_s: float | None = None
        self._listens = False
        """Whether the server may send something without having been asked."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that has not broken as far as anybody has noticed."""
        return self._connection is not None and not self._connection.closed

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """One transaction, committed at the end of the block. Raises `DatabaseError`; nothing is changed then."""
        psycopg = driver()
        self._busy_since_s = monotonic()
        try:
            connection = self._opened()
            with connection.transaction(), connection.cursor() as cursor:
                yield cast(Cursor, cursor)
        except psycopg.Error as error:
            if self._connection is not None and (self._connection.closed or _is_broken(error)):
                self.close()
            raise _explained(error) from error
        finally:
            self._busy_since_s = None

    def wait_for_news(self, timeout_s: float) -> set[str]:
        """Waits for notifications on channels that this session listens to, and returns their payloads.

        Returns after the first ones, or after `timeout_s`. Raises `DatabaseError`.
        """
        psycopg = driver()
        self._listens = True
        try:
            return {news.payload for news in self._opened().notifies(timeout=timeout_s, stop_after=1)}
        except psycopg.Error as error:
            self.close()
            raise _explained(error) from error

    def cut_if_hanging(self, now_s: float) -> bool:
        """Cuts the connection of a transaction that takes too long, from another thread. True if it was cut."""
        since_s, connection = self._busy_since_s, self._connection
        if since_s is None or connection is None or now_s - since_s < MAX_BUSY_S:
            return False
        self.cut()
        return True

    def cut(self) -> None:
        """Cuts the connection from another thread, so that whoever waits for it is told at once."""
        connection = self._connection
        with suppress(OSError, driver().Error):
            if connection is not None:
                with socket.socket(fileno=os.dup(connection.fileno())) as copy:
                    copy.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection; the next use opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(driver().Error):
                connection.close()

    def _opened(self) -> Any:
        if self.is_open and not self._listens and _has_ended(self._connection):
            # The server was restarted while nothing was asked; whoever asks now need not be told.
            self.close()
        if not self.is_open:
            self._connection = driver().connect(
                self._url,
                autocommit=True,
                application_name=f"moe2 {self._name}"[:63],
                connect_timeout=CONNECT_TIMEOUT_S,
                options=_OPTIONS,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,
            )
            self.n_opened += 1
        return self._connection


def _has_ended(connection: Any) -> bool:
    """Whether the server has said something on a connection where nothing was asked: that it ends it, or its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def defect_of(error: Exception) -> DatabaseError:
    """Returns the error for work with the database that failed in a way that nobody has foreseen."""
    return DatabaseError(
        f"The work with the database failed: {type(error).__name__}: {error}.",
        remedy="It is tried again; see the coordinator's log, and report it as a defect of moe2.",
    )


def _is_broken(error: Exception) -> bool:
    """Whether no later transaction can succeed on the connection that raised this."""
    return isinstance(error, driver().OperationalError | driver().InterfaceError)


def _explained(error: Exception) -> DatabaseError:
    psycopg = driver()
    said = " ".join(str(error).split()).rstrip(".?")
    match error:
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedColumn():
            return DatabaseError(
                f"The database has no tables of this release: {said}.",
                remedy="Run `moe2-coordinator database init` once.",
            )
        case psycopg.errors.InsufficientPrivilege():
            return DatabaseError(
                f"The database refuses: {said}.", remedy="Let the user of database.url own the database."
            )
        case psycopg.errors.DiskFull():
            return DatabaseUnreachableError(
                f"The database cannot write: {said}.", remedy="Make room on the disk of the database's host."
            )
        case psycopg.DataError() | psycopg.IntegrityError():
            return DatabaseRowError(f"The database does not take a row: {said}.", remedy="Report the defect.")
        case psycopg.ProgrammingError() if not isinstance(error, psycopg.OperationalError):
            return DatabaseError(
                f"The database does not understand: {said}.",
                remedy="Correct database.url, or restore the tables whole where they come from a backup.",
            )
    if "no password supplied" in said:
        return DatabaseError(
            f"The database refuses this coordinator: {said}.",
            remedy="Name a password file in database.url (?passfile=…): it has to belong to the user that reads it, "
            "mode 0600, and to have a line for this host, port, database and user.",
        )
    if any(word in said for word in _REFUSED):
        return DatabaseError(
            f"The database refuses this coordinator: {said}.",
            remedy="Correct user, password and database in database.url, or make them on the server.",
        )
    return DatabaseUnreachableError(
        f"The database cannot be reached: {said}.", remedy="Start it, or correct the address in database.url."
    )
