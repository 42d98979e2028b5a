"""Entries that cannot be written or may not have arrived: kept, counted, told, and shipped again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from time import time

import pytest

from moe2.coordinator.ledger import journal as journal_module
from moe2.coordinator.ledger import store as ledger_module
from moe2.coordinator.ledger import writer as writer_module
from moe2.coordinator.ledger.journal import KEEP_SHIPPED_S, Journal
from moe2.coordinator.ledger.schema import open_for_writing
from moe2.coordinator.ledger.store import Ledger
from tests.coordinator.ledger.entries import request_entry, running, until


async def test_entries_beyond_those_that_are_kept_are_lost_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a disk cannot be written for another reason than room, that is told, and how many entries are lost."""
    opened: list[sqlite3.Connection] = []

    def opening(path: Path, *, is_journal: bool) -> sqlite3.Connection:
        opened.append(open_for_writing(path, is_journal=is_journal))
        return opened[-1]

    monkeypatch.setattr(ledger_module, "open_for_writing", opening)
    monkeypatch.setattr(writer_module, "MAX_KEPT", 2)
    async with running(tmp_path / "ledger.sqlite") as ledger:
        opened[0].execute("PRAGMA query_only = ON")
        for number in range(5):
            await ledger.record(request_entry(f"req-{number}"))
            await until(lambda: ledger._progress.handled == ledger._n_put)
        assert ledger.n_dropped == 3
        codes = {warning.code: warning.message for warning in ledger.warnings()}
        assert "readonly" in codes["ledger_not_written"]
        assert "3 entries" in codes["ledger_entries_lost"]


async def test_what_waits_when_a_ledger_closes_is_not_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that a locked disk has not taken until the end is told as one that may be lost."""
    monkeypatch.setattr(ledger_module, "CLOSE_S", 0.01)
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, retention_days=36_500)
    async with ledger.running():
        await ledger.record(request_entry("req-0"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = ledger.record(request_entry("req-1"))
    assert waiting.done()
    assert not waiting.result()
    other.close()


async def test_what_was_shipped_lately_is_shipped_again_and_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover the entries of the last minutes are shipped once more; those before them have long arrived."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, retention_days=36_500, is_journal=True)
    async with ledger.running():
        await ledger.record(request_entry("req-0"))
    journal = Journal(path)
    journal.shipped(journal.next(10).upto)
    assert journal.again() == 1
    assert journal.n_waiting() == 1
    journal.shipped(journal.next(10).upto)
    monkeypatch.setattr(journal_module, "time", lambda: time() + 2 * KEEP_SHIPPED_S)
    assert journal.again() == 0
    journal.close()
