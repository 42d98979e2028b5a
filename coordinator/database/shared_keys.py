"""API keys in the shared database: the table that commands change, and the copy that a coordinator checks keys by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from moe2.coordinator.database.postgresql import Cursor, DatabaseError, Session
from moe2.coordinator.keys.keys import DailyLimits, KeyRecord, KeySet


class KeyTable:
    """The keys in the database, as the commands read and change them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changing: tuple[Cursor, KeySet] | None = None

    def read(self) -> KeySet:
        """Returns the keys. Raises `DatabaseError`."""
        with self._session.transaction() as cursor:
            return _read(cursor)

    @contextmanager
    def changing(self) -> Iterator[KeySet]:
        """Locks the keys and yields them, to be changed by `write` within the block. Raises `DatabaseError`."""
        with self._session.transaction() as cursor:
            cursor.execute("LOCK TABLE keys IN SHARE ROW EXCLUSIVE MODE")
            keys = _read(cursor)
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
        self._known = (self._known[0] + 1, _read(cursor))


def _read(cursor: Cursor) -> KeySet:
    cursor.execute("SELECT record FROM keys ORDER BY made")
    try:
        return KeySet(keys=tuple(KeyRecord.model_validate(record) for (record,) in cursor.fetchall()))
    except ValidationError as error:
        places = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
        raise DatabaseError(
            f"The API keys in the database cannot be used: {', '.join(places)}.",
            remedy="They were written by a newer moe2, or by hand: install that release, or correct the table keys.",
        ) from None
