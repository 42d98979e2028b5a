"""What is told of a database that cannot be used, and what one that hangs keeps waiting."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from moe2.coordinator.ledger import schema
from tests.coordinator.ledger.entries import running


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (sqlite3.SQLITE_FULL, "Make room"),
        (sqlite3.SQLITE_BUSY, "Another process"),
        (sqlite3.SQLITE_LOCKED, "Another process"),
        (sqlite3.SQLITE_CORRUPT, "Move it away"),
        (sqlite3.SQLITE_NOTADB, "Move it away"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "Make it and its folder writable"),
    ],
)
def test_each_fault_of_a_database_has_its_remedy(code: int, remedy: str) -> None:
    """Also where SQLite says more than the kind of the fault, in its upper bits."""
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    told = schema.unusable(Path("ledger.sqlite"), error)
    assert str(told).startswith("The ledger ledger.sqlite cannot be used: no.")
    assert (told.remedy or "").startswith(remedy)


async def test_a_disk_that_hangs_keeps_no_coordinator_from_ending(tmp_path: Path) -> None:
    """The interpreter waits for no thread of the ledger's."""
    async with running(tmp_path / "ledger.sqlite"):
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("ledger-")]
        assert {thread.name for thread in threads} >= {"ledger-writer", "ledger-checkpoints"}
        assert all(thread.daemon for thread in threads)
