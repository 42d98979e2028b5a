"""The database's tables: made and brought up to date by plain SQL, and refused where they are too new.

Each file in `migrations/` leads from one version to the next one, and says the oldest release that may still use the
tables, so that coordinators are upgraded one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from moe2.coordinator.database.postgresql import Cursor, DatabaseError, Session

MIGRATING_LOCK = 0x6D6F6532  # "moe2"
"""The advisory lock that is held while tables are changed."""


@dataclass(frozen=True)
class Version:
    """The version of a database's tables, 0 where there are none. usable_by: the oldest version of moe2's that may
    use them."""

    number: int
    usable_by: int


def migrations() -> tuple[str, ...]:
    """Returns the SQL of each version, from the first one on."""
    folder = files(__package__) / "migrations"
    return tuple(
        entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".sql")
    )


def known_version() -> int:
    """Returns the version that this release brings a database to."""
    return len(migrations())


def version_of(cursor: Cursor) -> Version:
    """Returns the version of the database's tables. Raises `DatabaseError`."""
    cursor.execute("SELECT to_regclass('moe2.version')")
    if cursor.fetchone() == (None,):
        return Version(0, 0)
    cursor.execute("SELECT number, usable_by FROM moe2.version")
    found = cursor.fetchone()
    return Version(*found) if found else Version(0, 0)


def check_version(cursor: Cursor) -> None:
    """Raises `DatabaseError` if this release cannot use the database."""
    found, known = version_of(cursor), known_version()
    _refuse_newer(found, known)
    if found.number < known:
        had = "has no tables yet" if found.number == 0 else f"is of version {found.number}; this release needs {known}"
        raise DatabaseError(f"The database {had}.", remedy="Run `moe2-coordinator database init` once.")


def migrate(session: Session) -> tuple[int, int]:
    """Brings the database up to date, and returns the version before and after. Raises `DatabaseError`.

    Of several that do so at once, one works and the others wait for it.
    """
    steps = migrations()
    with session.transaction() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATING_LOCK])
        found = version_of(cursor)
        _refuse_newer(found, len(steps))
        for number in range(found.number, len(steps)):
            cursor.execute(steps[number])
        return found.number, max(found.number, len(steps))


def _refuse_newer(found: Version, known: int) -> None:
    if found.usable_by > known:
        raise DatabaseError(
            f"The database was brought up to date by a newer moe2 (version {found.number} of its tables, this release "
            f"knows {known}).",
            remedy="Install that release on this host, too.",
        )
