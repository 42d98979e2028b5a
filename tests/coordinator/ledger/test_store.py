"""The ledger on a real file: acknowledged entries are there, and a database that fails stops nobody."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from moe2.coordinator.ledger import schema
from moe2.coordinator.ledger import store as ledger_module
from moe2.coordinator.ledger import writer as writer_module
from moe2.coordinator.ledger.entry import ATTEMPT_COLUMNS, REQUEST_COLUMNS, RequestEntry
from moe2.coordinator.ledger.journal import everything
from moe2.coordinator.ledger.report import Span, requests
from moe2.coordinator.ledger.schema import VERSION, LedgerError, open_for_writing, reading
from moe2.coordinator.ledger.store import Ledger
from tests.coordinator.ledger.entries import POLL_S, attempt_entry, request_entry, reservation, running, until


def kept(path: Path) -> list[str]:
    """Returns the request ids in the database, as another process reads them."""
    with reading(path) as connection:
        return [row.request_id for row in requests(connection, Span())]


async def test_what_is_recorded_can_be_read_while_the_ledger_is_open(tmp_path: Path) -> None:
    """A second connection sees an entry as soon as it is acknowledged."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        assert await ledger.record(request_entry("req-1"))
        assert kept(path) == ["req-1"]


async def test_entries_that_come_together_are_all_written(tmp_path: Path) -> None:
    """More entries than one statement and one commit can hold are all written."""
    path = tmp_path / "ledger.sqlite"
    names = [f"req-{number:04d}" for number in range(700)]
    async with running(path) as ledger:
        recorded = [ledger.record(request_entry(name)) for name in names]
        assert all(await asyncio.gather(*recorded))
    assert sorted(kept(path)) == names


@pytest.mark.parametrize("entry", [request_entry("req-1", attempt_entry()), request_entry("req-1", attempts=())])
def test_requests_need_one_statement(tmp_path: Path, entry: RequestEntry) -> None:
    """With each statement the writer waits for the event loop; one by itself is a transaction, too."""
    path = tmp_path / "ledger.sqlite"
    connection = open_for_writing(path)
    writer = writer_module.LedgerWriter(connection, schema.open_beside(path), lambda _: None)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    writer.put(writer_module.Batch(1, (entry,)))
    writer.put(writer_module.Stop())
    writer.start()
    assert writer.join(60.0)
    # What its trigger does is traced, too, as the statement itself or as a comment.
    assert len({one for one in statements if not one.startswith("--")}) == 1
    assert kept(path) == ["req-1"]


async def test_a_request_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    """A request with an attempt that no database takes leaves nothing behind, and stops no other."""
    path = tmp_path / "ledger.sqlite"
    sound, faulty = attempt_entry("req-1"), attempt_entry("req-1", place=1, expert=None)
    async with running(path) as ledger:
        ledger.record(request_entry("req-1", sound, faulty))
        ledger.record(request_entry("req-2", attempt_entry("req-2")))
        await until(lambda: ledger.n_dropped == 1)
    _, *parts = everything(path, 9)
    of = ATTEMPT_COLUMNS.index("request_id")
    assert kept(path) == ["req-2"]
    assert [row[of] for part in parts for row in part.attempts] == ["req-2"]


async def test_all_that_a_ledger_holds_is_read_in_parts(tmp_path: Path) -> None:
    """Each part has so many requests at most, oldest first, each with its own attempts and no other's."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        for name in ("req-b", "req-c", "req-a"):
            attempts = (attempt_entry(name), attempt_entry(name, place=1, joules=None))
            assert await ledger.record(request_entry(name, *attempts))
    standing, *parts = everything(path, 2)
    assert (standing.requests, standing.attempts) == ((), ())
    at, place = REQUEST_COLUMNS.index("request_id"), ATTEMPT_COLUMNS.index("place")
    names = [[row[at] for row in part.requests] for part in parts]
    assert names == [["req-b", "req-c"], ["req-a"]]
    of = ATTEMPT_COLUMNS.index("request_id")
    assert [[(row[of], row[place]) for row in part.attempts] for part in parts] == [
        [(name, number) for name in part for number in (0, 1)] for part in names
    ]


def test_the_writers_end_is_not_waited_for_without_a_bound(tmp_path: Path) -> None:
    """A writer that was not told to stop still runs when the time to wait is up; one that was told has ended."""
    path = tmp_path / "ledger.sqlite"
    connection = open_for_writing(path, is_journal=False)
    writer = writer_module.LedgerWriter(connection, schema.open_beside(path), lambda _: None)
    writer.start()
    assert not writer.join(0.0)
    writer.put(writer_module.Stop())
    assert writer.join(60.0)


async def test_a_later_entry_of_a_request_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """A later entry of a request replaces the earlier one."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        first = attempt_entry(outcome="stopping", joules=None, quality="unmeasured")
        ledger.record(request_entry("req-1", first, joules=None, quality="unmeasured"))
        await ledger.record(request_entry("req-1", attempt_entry(outcome="cancelled")))
    with reading(path) as connection:
        [row] = requests(connection, Span())
    assert (row.joules, row.wasted_j) == (5.0, {"cancelled": 5.0})


async def test_a_reservation_that_a_crash_left_stays_charged(tmp_path: Path) -> None:
    """The reservation of an interrupted request stays charged, with unknown joules."""
    path = tmp_path / "ledger.sqlite"
    with closing(open_for_writing(path)) as connection:
        values = ("req-1", 1000.0, "1970-01-01", "k1", "app", "moe2", 8.0, 90)
        connection.execute("INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    async with running(path):
        pass
    with reading(path) as connection:
        [row] = requests(connection, Span())
        assert connection.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
    assert (row.outcome, row.joules, row.charged_j) == ("interrupted", None, 8.0)


async def test_the_end_of_a_request_ends_its_reservation(tmp_path: Path) -> None:
    """After a request's end a restart finds nothing interrupted."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        ledger.record(reservation("req-1"))
        await ledger.record(request_entry("req-1", was_reserved=True))
    with reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM reservations").fetchone() == (0,)


async def test_todays_sums_are_there_after_a_restart(tmp_path: Path) -> None:
    """Today's sums are there after a restart, by key, with unknown ones counted; so are those written last."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        ledger.record(request_entry("req-1"))
        ledger.record(request_entry("req-2", joules=None, charged_j=8.0, outcome="failed", code="crash_suspected"))
        await ledger.record(request_entry("req-3", day="1970-01-02"))
    async with running(path, clock=lambda: 2000.0) as ledger:
        [today] = ledger.days["1970-01-01"]
        assert [one.n_requests for one in ledger.days["1970-01-02"]] == [1]
    assert (today.key_id, today.energy_j, today.held_j) == ("k1", 13.0, 8.0)
    assert (today.tokens, today.n_requests, today.n_unmeasured, today.n_crash_suspected) == (34, 2, 1, 1)


DAY_S = 86_400.0
JANUARY_UNIX_S = 1_767_225_600.0
"""2026-01-01."""


def tenth() -> float:
    """The noon of the tenth of January 2026."""
    return JANUARY_UNIX_S + 9.5 * DAY_S


def entry_of(name: str, day: int) -> RequestEntry:
    """An entry of a day of January 2026."""
    return request_entry(name, day=f"2026-01-{day:02}", at_unix_s=JANUARY_UNIX_S + (day - 1) * DAY_S)


async def test_old_days_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old days are forgotten with their attempts; a kept day stays whole."""
    monkeypatch.setattr(writer_module, "PRUNED_AT_ONCE", 2)
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        for number in range(5):
            ledger.record(entry_of(f"old-{number}", 7))
        await ledger.record(entry_of("new", 8))
    async with running(path, retention_days=2, clock=tenth):
        await until(lambda: kept(path) == ["new"])
    with reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (1,)


async def test_what_was_written_while_the_clock_said_1970_is_as_old_as_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is forgotten with the days around it, and not as soon as the clock is right."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        for entry in (entry_of("old", 1), request_entry("lost-1"), entry_of("next", 2), request_entry("lost-2")):
            await ledger.record(entry)
        await ledger.record(entry_of("new", 8))
    async with running(path, retention_days=8, clock=tenth):
        await until(lambda: "old" not in kept(path))
    assert sorted(kept(path)) == ["lost-1", "lost-2", "new", "next"]
    async with running(path, retention_days=7, clock=tenth):
        await until(lambda: "next" not in kept(path))
    assert sorted(kept(path)) == ["lost-2", "new"]


@pytest.mark.parametrize("years", [4, 73, -56])
async def test_a_clock_that_is_wrong_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """Neither at the start nor later: the log says why nothing was deleted."""
    monkeypatch.setattr(ledger_module, "PRUNE_EVERY_S", POLL_S)
    now_unix_s = [JANUARY_UNIX_S]
    path = tmp_path / "ledger.sqlite"
    for _ in range(2):
        async with running(path, retention_days=2, clock=lambda: now_unix_s[0]) as ledger:
            await ledger.record(entry_of("today", 1))
            with structlog.testing.capture_logs() as logged:
                now_unix_s[0] = JANUARY_UNIX_S + years * 365 * DAY_S
                await until(lambda: len([one for one in logged if one["event"] == "ledger_not_pruned"]) > 1)
            assert kept(path) == ["today"]


# --- Databases that fail ----------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused_at_the_start(tmp_path: Path) -> None:
    """A file that is no database is refused at the start, with its name and a remedy."""
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be used: file is not a database\. Move it away"):
        async with running(path):
            pass


async def test_a_damaged_database_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A damaged database is an error at the start, and to whoever reads it."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await asyncio.gather(*(ledger.record(request_entry(f"req-{number:04d}")) for number in range(300)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"cannot be used: .*\. Move it away"):
        async with running(path):
            pass
    with pytest.raises(LedgerError, match=r"cannot be used: .*\. Move it away"):
        kept(path)


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A newer database is refused, as its tables are not known."""
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerError, match=f"{path} was written by a newer moe2"):
        async with running(path):
            pass


async def test_an_older_database_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older database is brought up to date step by step; whoever only reads it is told to wait for that."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await ledger.record(request_entry("req-1"))
    step = "ALTER TABLE requests ADD COLUMN note TEXT;"
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, step))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    with pytest.raises(LedgerError, match="Start the coordinator once"):
        kept(path)
    async with running(path) as ledger:
        await ledger.record(request_entry("req-2"))
    assert kept(path) == ["req-1", "req-2"]


async def test_a_locked_database_is_refused_at_the_start(tmp_path: Path) -> None:
    """A database that another process holds is refused at the start."""
    path = tmp_path / "ledger.sqlite"
    open_for_writing(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked"):
            async with running(path):
                pass


async def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    """A folder that cannot be made is an error at the start, with the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"cannot be opened: .*ledger\.path"):
        async with running(tmp_path / "file" / "ledger.sqlite"):
            pass


async def test_entries_wait_for_a_locked_database(tmp_path: Path) -> None:
    """Entries for a locked database wait with a warning, hold no request up, and are written in the end."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await ledger.record(request_entry("req-0"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert not await ledger.record(request_entry("req-1"))
            assert not await ledger.record(request_entry("req-2"))
            [warning] = ledger.warnings()
            assert (warning.code, "locked" in warning.message) == ("ledger_not_written", True)
            other.execute("ROLLBACK")
        await until(lambda: not ledger.is_failing)
        assert ledger.warnings() == ()
        assert ledger.n_waiting == 0
    assert kept(path) == ["req-0", "req-1", "req-2"]


async def test_nobody_waits_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests stop waiting for a disk that hangs, with a warning; their entries are written when it comes back."""
    monkeypatch.setattr(ledger_module, "STALLED_S", 0.01)
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await ledger.record(request_entry("req-0"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert not await ledger.record(request_entry("req-1"))
            [warning] = ledger.warnings()
            assert "nothing has been written" in warning.message
            other.execute("ROLLBACK")
        await until(lambda: not ledger.is_failing)
    assert kept(path) == ["req-0", "req-1"]


async def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged once, and entries are written once there is room."""
    path = tmp_path / "ledger.sqlite"
    opened: list[sqlite3.Connection] = []

    def opening(path: Path, *, is_journal: bool) -> sqlite3.Connection:
        opened.append(open_for_writing(path, is_journal=is_journal))
        return opened[-1]

    monkeypatch.setattr(ledger_module, "open_for_writing", opening)
    async with running(path) as ledger:
        pages = opened[0].execute("PRAGMA page_count").fetchone()[0]
        opened[0].execute(f"PRAGMA max_page_count = {pages}")
        with structlog.testing.capture_logs() as logged:
            answers = []
            for number in range(100):
                answers.append(await ledger.record(request_entry(f"req-{number:03d}")))
                await until(lambda: ledger._progress.handled == ledger._n_put)
        assert not answers[-1]
        # However often it is tried.
        assert [one["event"] for one in logged].count("ledger_not_written") == 1
        [warning] = ledger.warnings()
        assert "its disk is full" in warning.message
        opened[0].execute("PRAGMA max_page_count = 1000000")
        await until(lambda: not ledger.is_failing)
    assert len(kept(path)) == 100


@pytest.mark.slow
async def test_what_cannot_be_kept_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many waiting entries the oldest are dropped, and a warning tells how many."""
    monkeypatch.setattr(writer_module, "MAX_KEPT", 3)
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(5):
                ledger.record(request_entry(f"req-{number}"))
            await until(lambda: ledger.n_dropped == 2)
            other.execute("ROLLBACK")
        await until(lambda: not ledger.is_failing)
        [warning] = ledger.warnings()
        assert (warning.code, warning.message[:9]) == ("ledger_entries_lost", "2 entries")
    assert kept(path) == ["req-2", "req-3", "req-4"]


async def test_an_entry_that_no_database_takes_stops_no_other(tmp_path: Path) -> None:
    """An entry that no database takes is left out and counted, and stops no other."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        recorded = [ledger.record(request_entry(f"req-{n}", total_s=object() if n == 1 else 1.0)) for n in range(3)]
        await asyncio.gather(*recorded)
        assert ledger.n_dropped == 1
    assert kept(path) == ["req-0", "req-2"]


async def test_of_two_entries_the_good_one_is_written(tmp_path: Path) -> None:
    """Of two entries that come together the one that a database takes is written."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await asyncio.gather(
            ledger.record(request_entry("req-0", total_s=object())), ledger.record(request_entry("req-1"))
        )
        assert ledger.n_dropped == 1
    assert kept(path) == ["req-1"]


async def test_every_entry_that_comes_too_early_or_too_late_is_counted(tmp_path: Path) -> None:
    """Nobody writes outside of `running()`: each such entry is lost at once, and told."""
    ledger = Ledger(tmp_path / "ledger.sqlite", retention_days=36_500)
    for number in range(3):
        assert await ledger.record(request_entry(f"req-{number}")) is False
        assert ledger.n_dropped == number + 1
    [warning] = ledger.warnings()
    assert (warning.code, warning.message[:9]) == ("ledger_entries_lost", "3 entries")


async def test_every_refused_entry_is_counted(tmp_path: Path) -> None:
    """The count of lost entries grows with each of them."""
    async with running(tmp_path / "ledger.sqlite") as ledger:
        for number in range(3):
            await ledger.record(request_entry(f"req-{number}", total_s=object()))
            assert ledger.n_dropped == number + 1


async def test_what_is_written_reaches_the_database_file_while_the_ledger_runs(tmp_path: Path) -> None:
    """A checkpoint follows a commit, so that the log beside the database does not grow without end."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await ledger.record(request_entry("req-of-the-checkpoint"))
        await until(lambda: b"req-of-the-checkpoint" in path.read_bytes())


async def test_the_log_begins_anew_while_entries_never_cease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint beside the writing never reaches a log's end that moves: it grew for as long as there was load."""
    monkeypatch.setattr(writer_module, "CHECKPOINT_EVERY_S", 0.01)
    monkeypatch.setattr(writer_module, "MAX_LOG_PAGES", 50)
    path = tmp_path / "ledger.sqlite"
    log = path.with_name("ledger.sqlite-wal")
    async with running(path) as ledger:
        waiting = deque(ledger.record(request_entry(f"req-{number}")) for number in range(4))
        for number in range(4, 4000):
            await waiting.popleft()
            waiting.append(ledger.record(request_entry(f"req-{number}")))
        assert log.stat().st_size < 10e6
    assert len(kept(path)) == 4000


async def test_a_client_that_leaves_breaks_nothing(tmp_path: Path) -> None:
    """The cancelled wait of a client that left is passed over."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        ledger.record(request_entry("req-1")).cancel()
        assert await ledger.record(request_entry("req-2"))
    assert kept(path) == ["req-1", "req-2"]


async def test_the_ledger_is_not_for_everybody(tmp_path: Path) -> None:
    """Only the owner can read the database."""
    path = tmp_path / "ledger.sqlite"
    async with running(path):
        assert path.stat().st_mode & 0o007 == 0
