"""Whom coordinators trust together, in the shared database: API keys and the register of agents.

Each is a table that is changed in one transaction, and a copy in memory that every coordinator checks by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from pydantic import ValidationError

from moe2.coordinator.database.postgresql import Cursor, DatabaseError, Session
from moe2.coordinator.fleet.register import EnrolledAgent, EnrolmentToken, Register
from moe2.coordinator.keys.keys import DailyLimits, KeyRecord, KeySet

T = TypeVar("T")
SUBJECT = "agents"
Row = TypeVar("Row", EnrolledAgent, EnrolmentToken)


class KeyTable:
    """The keys in the database, as the commands read and change them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changing: tuple[Cursor, KeySet] | None = None

    def read(self) -> KeySet:
        """Returns the keys. Raises `DatabaseError`."""
        with self._session.transaction() as cursor:
            return _read_keys(cursor)

    @contextmanager
    def changing(self) -> Iterator[KeySet]:
        """Locks the keys and yields them, to be changed by `write` within the block. Raises `DatabaseError`."""
        with self._session.transaction() as cursor:
            cursor.execute("LOCK TABLE keys IN SHARE ROW EXCLUSIVE MODE")
            keys = _read_keys(cursor)
            self._changing = (cursor, keys)
            try:
                yield keys
            finally:
                self._changing = None

    def write(self, keys: KeySet) -> None:
        """Writes the keys that were added or changed, within `changing`; none is removed. Raises `DatabaseError`."""
        if self._changing is None:
            raise RuntimeError("keys are written within `changing` only")
        cursor, before = self._changing
        known = before.by_id()
        cursor.executemany(
            "INSERT INTO keys (id, record) VALUES (%s, %s::jsonb) "
            "ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            [(key.id, key.model_dump_json(exclude_none=True)) for key in keys.keys if known.get(key.id) != key],
        )


class KeyCopy:
    """A coordinator's copy of the keys; a `KeySource`. is_believed: whether it is young enough to be believed."""

    def __init__(self, is_believed: Callable[[], bool]) -> None:
        self._is_believed = is_believed
        self._known: tuple[int, KeySet] = (0, KeySet())

    @property
    def is_believed(self) -> bool:
        """Whether the copy is young enough to be believed."""
        return self._is_believed()

    def stamp(self) -> int:
        """Returns a number that changes whenever the keys do."""
        return self._known[0]

    def read(self) -> KeySet:
        """Returns the keys."""
        return self._known[1]

    def limits_of(self, key_id: str | None) -> DailyLimits:
        """Returns the daily limits of a key by its id, wherever it is used; none of a key that is not known."""
        known = self.read().by_id()
        return known[key_id].principal.daily if key_id in known else DailyLimits()

    def load(self, cursor: Cursor) -> None:
        """Makes the copy anew, in the membership's thread."""
        self._known = (self._known[0] + 1, _read_keys(cursor))


def _read_keys(cursor: Cursor) -> KeySet:
    cursor.execute("SELECT record FROM keys ORDER BY made")
    try:
        return KeySet(keys=tuple(KeyRecord.model_validate(record) for (record,) in cursor.fetchall()))
    except ValidationError as error:
        places = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
        raise DatabaseError(
            f"The API keys in the database cannot be used: {', '.join(places)}.",
            remedy="They were written by a newer moe2, or by hand: install that release, or correct the table keys.",
        ) from None


class SharedRegister:
    """The register as coordinators and commands read and change it; a `RegisterStore`.

    session: for changes, which threads make one after the other. is_believed: whether the copy is young enough.
    """

    def __init__(self, session: Session, is_believed: Callable[[], bool] = lambda: True) -> None:
        self._session = session
        self._is_believed = is_believed
        self._lock = threading.Lock()
        self._known: tuple[int, Register] | None = None

    @property
    def is_believed(self) -> bool:
        """Whether the copy is young enough to be believed."""
        return self._is_believed()

    def current(self) -> Register:
        """Returns the copy; an empty register before the first one was made."""
        return self._known[1] if self._known else Register()

    def change(self, change: Callable[[Register], tuple[T, Register]]) -> T:
        """Applies `change` to the register in the database and keeps its outcome.

        Raises `DatabaseError`, and whatever `change` raises. Blocks.
        """
        with self._lock, self._session.transaction() as cursor:
            cursor.execute("LOCK TABLE agents, enrolment_tokens IN SHARE ROW EXCLUSIVE MODE")
            before = self._fresh(cursor)
            told, after = change(before)
            if after is not before:
                write_register(cursor, before, after)
            found = (_register_revision(cursor), after)
        # Also where nothing was changed: what was decided on may be newer than the copy.
        self._adopt(found)
        return told

    def refresh(self) -> None:
        """Makes the copy anew. Raises `DatabaseError`. Blocks."""
        with self._lock, self._session.transaction() as cursor:
            self.load(cursor)

    def close(self) -> None:
        """Closes the connection for changes, unless one is being made."""
        if self._lock.acquire(blocking=False):
            self._session.close()
            self._lock.release()

    def doubt(self) -> None:
        """Has the copy be made anew at the next load, also of a database that failed over and has not got the last
        changes."""
        if self._known is not None:
            self._known = (-1, self._known[1])

    def load(self, cursor: Cursor) -> None:
        """Makes the copy anew where it is not that of the last change. Raises `DatabaseError`."""
        self._adopt((_register_revision(cursor), self._fresh(cursor)))

    def _fresh(self, cursor: Cursor) -> Register:
        """Returns the register as it is in the database; the copy, where nothing has changed since it was made."""
        known = self._known
        return known[1] if known and known[0] == _register_revision(cursor) else _read_register(cursor)

    def _adopt(self, found: tuple[int, Register]) -> None:
        # Two threads adopt: what was read before a change must not replace what came after it.
        if self._known is None or found[0] > self._known[0]:
            self._known = found


def write_register(cursor: Cursor, before: Register, after: Register) -> None:
    """Writes the rows in which a register differs from the former one."""
    _write_rows(
        cursor,
        "agents",
        "agent_id",
        {one.agent_id: one for one in before.agents},
        {one.agent_id: one for one in after.agents},
    )
    _write_rows(
        cursor,
        "enrolment_tokens",
        "name",
        {one.name: one for one in before.tokens},
        {one.name: one for one in after.tokens},
    )


def _write_rows(cursor: Cursor, table: str, key: str, before: Mapping[str, Row], after: Mapping[str, Row]) -> None:
    # Names of our own tables and columns, no input.
    changed = [
        (name, msgspec.json.encode(row).decode())
        for name, row in after.items()
        if (former := before.get(name)) is not row and former != row
    ]
    gone: Sequence[str] = [name for name in before if name not in after]
    if changed:
        cursor.executemany(
            f"INSERT INTO {table} ({key}, record) VALUES (%s, %s::jsonb) "  # noqa: S608
            f"ON CONFLICT ({key}) DO UPDATE SET record = excluded.record",
            changed,
        )
    if gone:
        cursor.execute(f"DELETE FROM {table} WHERE {key} = ANY(%s)", [list(gone)])  # noqa: S608


def _register_revision(cursor: Cursor) -> int:
    cursor.execute("SELECT n FROM revisions WHERE subject = %s", [SUBJECT])
    found = cursor.fetchone()
    return int(found[0]) if found else 0


def _read_register(cursor: Cursor) -> Register:
    try:
        cursor.execute("SELECT record FROM enrolment_tokens ORDER BY made")
        tokens = tuple(msgspec.convert(record, EnrolmentToken) for (record,) in cursor.fetchall())
        cursor.execute("SELECT record FROM agents ORDER BY made")
        agents = tuple(msgspec.convert(record, EnrolledAgent) for (record,) in cursor.fetchall())
    except msgspec.ValidationError as error:
        raise DatabaseError(
            f"The register of agents in the database cannot be used: {error}.",
            remedy="It was written by a newer moe2, or by hand: install that release, or correct the table agents.",
        ) from error
    return Register(tokens=tokens, agents=agents)
