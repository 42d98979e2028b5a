"""Membership on a real PostgreSQL: names, versions, clocks, copies, and who does the chores."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest

from moe2.coordinator.database import membership as module
from moe2.coordinator.database.membership import Membership, NameTakenError
from moe2.coordinator.database.postgresql import Cursor, DatabaseError, DatabaseUnreachableError, Session
from moe2.coordinator.database.schema import known_version, migrate, version_of
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = needs_postgres
POLL_S = 0.005


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(POLL_S)


@contextmanager
def member(url: str, name: str, **options: Any) -> Iterator[Membership]:
    one = Membership(Session(url, name=name), name, **options)
    one.open()
    one.start()
    try:
        yield one
    finally:
        one.stop(10)


def codes(one: Membership) -> list[str]:
    return [warning.code for warning in one.warnings()]


@pytest.mark.slow
async def test_one_of_two_does_the_chores_until_it_ends(url: str) -> None:
    """The first member holds the chores; the second takes them over as soon as the first has gone."""
    with member(url, "a") as one:
        with member(url, "b") as two:
            assert (one.holds_chores, two.holds_chores) == (True, False)
            one.stop(10)
            await until(lambda: two.holds_chores)


async def test_who_has_gone_is_spoken_of_for_a_while_and_counts_as_gone_at_once(url: str) -> None:
    """A member sees that another one is connected, and as soon as that has ended, that it was."""
    with member(url, "a") as one:
        with member(url, "b"):
            await until(lambda: [(peer.name, peer.is_connected) for peer in one.standing.peers] == [("b", True)])
        await until(lambda: [(peer.name, peer.is_connected) for peer in one.standing.peers] == [("b", False)])


def test_two_coordinators_with_one_name_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second coordinator of a name ends at its start, and is told what to set."""
    monkeypatch.setattr(module, "NAME_PATIENCE_S", 0.0)
    with member(url, "a"):
        with pytest.raises(NameTakenError, match="'a'") as raised:
            Membership(Session(url, name="a"), "a").open()
    assert "database.name" in (raised.value.remedy or "")


async def test_a_name_that_is_taken_while_it_was_away_is_told(server: Postgres, url: str) -> None:
    """A member whose connection broke while another one took its name warns, and takes no lock."""
    with member(url, "a") as one:
        thief = Session(url, name="thief")

        def steal() -> None:
            with thief.transaction() as cursor:
                cursor.execute("SELECT pg_advisory_lock(%s, hashtext('a'))", [module._NAME_LOCK])

        stealing = asyncio.create_task(asyncio.to_thread(steal))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: server.sql(waiting) == [("1",)])
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'moe2 a'")
        await stealing
        await until(lambda: codes(one) == ["coordinator_name_taken"])
        assert not one.holds_chores
        thief.close()
        await until(lambda: codes(one) == [])


async def test_tables_that_a_newer_release_changes_meanwhile_are_told(url: str, session: Session) -> None:
    """A member that runs on is told at its next poll that it may not use the tables any more, and does no chores."""

    def usable_by(number: int) -> None:
        with session.transaction() as cursor:
            cursor.execute("UPDATE moe2.version SET usable_by = %s", [number])

    with member(url, "a") as one:
        usable_by(known_version() + 1)
        await until(lambda: codes(one) == ["database_refused"])
        assert not one.holds_chores
        usable_by(known_version())
        await until(lambda: codes(one) == [] and one.holds_chores)


def test_a_clock_that_differs_is_told_by_both(url: str) -> None:
    """A coordinator that is two minutes ahead is named by itself and by the other one."""
    with member(url, "ahead", clock=lambda: time() + 120):
        with member(url, "right") as other:
            assert codes(other) == ["database_clock_differs"]
            assert "coordinator ahead is 120 s ahead" in other.warnings()[0].message


async def test_all_go_by_the_databases_time_whatever_their_own_clocks_say(server: Postgres, url: str) -> None:
    """Its time goes on without it; a coordinator's own counts before it was reached, and where it cannot be right."""
    said = [time() + 40 * 86_400]
    with member(url, "a", clock=lambda: said[0]) as one:
        assert abs(one.unix_s() - time()) < 600
        said[0] = 100_000.0
        assert abs(one.unix_s() - time()) < 600
        await asyncio.to_thread(server.kill)
        try:
            await until(lambda: codes(one)[:1] == ["database_unreachable"])
            assert abs(one.unix_s() - time()) < 600
        finally:
            await asyncio.to_thread(server.start)
    assert Membership(Session("postgresql:///x?host=/nowhere", name="b"), "b", clock=lambda: 7.0).unix_s() == 7.0


def test_a_database_in_1970_is_not_believed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time cannot be right: this coordinator's own counts, and the difference is told."""
    monkeypatch.setattr(module, "is_clock_wrong", lambda now_unix_s: True)
    with member(url, "a", clock=lambda: 7.0) as one:
        assert one.unix_s() == 7.0
        assert codes(one) == ["database_clock_differs"]


async def test_a_change_is_seen_at_once_by_all(url: str, session: Session) -> None:
    """What another session writes into a copied table is read again, by its notification."""
    with session.transaction() as cursor:
        cursor.execute("CREATE TABLE things (n integer)")
        cursor.execute(
            "CREATE TRIGGER changed AFTER INSERT ON things FOR EACH STATEMENT EXECUTE FUNCTION changed('things')"
        )
    seen: list[Any] = []

    def load(cursor: Cursor) -> None:
        cursor.execute("SELECT count(*) FROM things")
        seen.append(cursor.fetchone())

    with member(url, "a", loads={"things": load}):
        assert seen == [(0,)]
        with session.transaction() as cursor:
            cursor.execute("INSERT INTO things VALUES (1)")
        await until(lambda: seen == [(0,), (1,)])


async def test_a_server_that_is_killed_is_found_again(server: Postgres, url: str) -> None:
    """While the server is down a member says so; when it is back everything is as before, chores included."""
    with member(url, "a") as one:
        await asyncio.to_thread(server.kill)
        try:
            await until(lambda: codes(one) == ["database_unreachable"])
            assert one.has_good_copies
        finally:
            await asyncio.to_thread(server.start)
        await until(lambda: codes(one) == [] and one.holds_chores)


async def test_the_warning_says_what_requests_have_to_expect(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While copies are believed, until when they are; later, and where none was ever made, that no key is checked."""
    never = Membership(Session("postgresql:///x?host=/nowhere", name="b"), "b")
    never.open()
    assert "No key has been read from it yet" in never.warnings()[0].message
    with member(url, "a", clock=lambda: 0.0) as one:
        await asyncio.to_thread(server.kill)
        try:
            await until(lambda: codes(one)[:1] == ["database_unreachable"])
            message = one.warnings()[0].message
            assert "Requests go on" in message
            assert "Keys with limits are answered with 503 once" in message
            assert re.search(r"all keys from 00:0[45] UTC on", message)
            monkeypatch.setattr(module, "MAX_COPY_AGE_S", 0.0)
            assert "No key can be checked any more" in one.warnings()[0].message
        finally:
            await asyncio.to_thread(server.start)


async def test_a_restart_of_the_server_while_nothing_is_asked_is_noticed_in_time(server: Postgres, url: str) -> None:
    """The first question after a restart is answered over a new connection, and fails nobody."""
    idle = Session(url, name="idle")
    with idle.transaction() as cursor:
        cursor.execute("SELECT 1")
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    with idle.transaction() as cursor:
        cursor.execute("SELECT 2")
        assert cursor.fetchall() == [(2,)]
    assert idle.n_opened == 2
    idle.close()


async def test_a_server_that_hangs_costs_the_chores(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that has not reached the database for a while no longer counts as the one that does the chores."""
    monkeypatch.setattr(module, "CURRENT_S", 0.5)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    with member(url, "a") as one:
        await until(lambda: one.holds_chores)
        server.hang(hangs=True)
        try:
            await until(lambda: not one.holds_chores)
        finally:
            server.hang(hangs=False)
        await until(lambda: one.holds_chores)


def test_a_database_that_is_down_at_the_start_is_no_reason_to_end(url: str) -> None:
    """A coordinator starts while its database is down, and warns."""
    away = Membership(Session("postgresql:///x?host=/nowhere", name="a"), "a")
    away.open()
    assert codes(away) == ["database_unreachable"]
    assert isinstance(away.standing.error, DatabaseUnreachableError)


def test_a_database_without_tables_is_refused(server: Postgres) -> None:
    """A start on an empty database ends with what to run."""
    with pytest.raises(DatabaseError, match="no tables yet") as raised:
        Membership(Session(server.new_database(), name="a"), "a").open()
    assert "database init" in (raised.value.remedy or "")


def test_a_wrong_password_is_refused(server: Postgres, url: str) -> None:
    """A start with a wrong password ends, and says that it is user or password."""
    server.sql("DO $$ BEGIN CREATE ROLE shy LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all shy scram-sha-256\n{before}")
    server.sql("SELECT pg_reload_conf()")
    try:
        with pytest.raises(DatabaseError, match="password authentication failed") as raised:
            Membership(Session(url.replace("moe2@", "shy:wrong@"), name="a"), "a").open()
    finally:
        rules.write_text(before)
        server.sql("SELECT pg_reload_conf()")
    assert not isinstance(raised.value, DatabaseUnreachableError)
    assert "password" in (raised.value.remedy or "")


def test_a_password_file_that_cannot_be_read_is_told(server: Postgres, url: str, tmp_path: Path) -> None:
    """Where the server wants a password and none was found, the remedy says what the file has to be."""
    server.sql("DO $$ BEGIN CREATE ROLE shy LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all shy scram-sha-256\n{before}")
    server.sql("SELECT pg_reload_conf()")
    open_to_all = tmp_path / "pgpass"
    open_to_all.write_text("*:*:*:*:right\n")
    open_to_all.chmod(0o644)
    try:
        with pytest.raises(DatabaseError, match="no password supplied") as raised:
            Membership(Session(f"{url.replace('moe2@', 'shy@')}&passfile={open_to_all}", name="a"), "a").open()
    finally:
        rules.write_text(before)
        server.sql("SELECT pg_reload_conf()")
    assert "0600" in (raised.value.remedy or "")


def test_a_newer_database_that_this_release_may_use_is_used(url: str, session: Session) -> None:
    """Tables of the next release, which says that this one may use them, are used: upgrades go one after the other."""
    with session.transaction() as cursor:
        cursor.execute("UPDATE version SET number = number + 1")
    with member(url, "a") as one:
        assert one.standing.error is None
    assert migrate(session) == (known_version() + 1, known_version() + 1)


def test_a_database_that_is_too_new_is_refused(url: str, session: Session) -> None:
    """Tables that only a newer release understands end the start, and `database init` leaves them as they are."""
    with session.transaction() as cursor:
        cursor.execute("UPDATE version SET number = 99, usable_by = 99")
    with pytest.raises(DatabaseError, match="newer moe2"):
        Membership(Session(url, name="a"), "a").open()
    with pytest.raises(DatabaseError, match="newer moe2"):
        migrate(session)


def test_migrations_that_run_at_once_are_made_once(server: Postgres) -> None:
    """Of two hosts that make the tables at the same time, one does and the other finds them made."""
    address = server.new_database()

    async def both() -> list[tuple[int, int]]:
        sessions = [Session(address, name=name) for name in "ab"]
        made = await asyncio.gather(*(asyncio.to_thread(migrate, one) for one in sessions))
        with sessions[0].transaction() as cursor:
            assert version_of(cursor).number == known_version()
        for one in sessions:
            one.close()
        return sorted(made)

    known = known_version()
    assert asyncio.run(both()) == [(0, known), (known, known)]


def test_each_cell_has_chores_of_its_own(url: str) -> None:
    """Coordinators of two fleets on one database both do their chores, and do not mind each other's gates."""
    with (
        member(url, "a", cell="one") as one,
        member(url, "b", cell="two") as two,
        member(url, "c", cell="two") as three,
    ):
        assert (one.holds_chores, two.holds_chores, three.holds_chores) == (True, True, False)
        two.gate_sha256 = three.gate_sha256 = "1" * 64
        assert codes(one) == []
