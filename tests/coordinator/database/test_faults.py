"""Faults of whole machines on a real PostgreSQL: full file systems, a failover that loses commits, a slow standby."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe2.coordinator.database.membership import Membership
from moe2.coordinator.database.postgresql import DatabaseUnreachableError, Session
from moe2.coordinator.database.shared_trust import KeyCopy, KeyTable
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, mint
from moe2.coordinator.ledger import store as ledger_module
from moe2.coordinator.ledger.schema import open_for_writing, reading
from tests.coordinator.database.test_shipper import journal, rows, standing, until
from tests.coordinator.ledger.entries import request_entry
from tests.fakes.postgres import Postgres, needs_postgres, postgres

pytestmark = [needs_postgres, pytest.mark.slow]
JOULES = 0.1


def own_joules(path: Path) -> list[float]:
    with reading(path) as connection:
        return [joules for (joules,) in connection.execute("SELECT joules FROM requests")]


def shared_joules(session: Session) -> list[float]:
    return [joules for (joules,) in rows(session, "SELECT joules FROM requests")]


async def recorded(ledger: ledger_module.Ledger, *numbers: int) -> None:
    """Records requests; each is acknowledged by the local journal."""
    entries = [ledger.record(request_entry(f"req-{number}", joules=JOULES)) for number in numbers]
    async with asyncio.timeout(10):
        assert all(await asyncio.gather(*entries))


def on_either(url: str, first: Postgres, second: Postgres) -> str:
    """The address of whichever of two servers takes writes, as docs/pair.md writes it."""
    database = url.split("?")[0].rpartition("/")[2]
    return (
        f"postgresql://moe2@/{database}?host={first.root},{second.root}&port=5432,5432&target_session_attrs=read-write"
    )


async def until_replayed(primary: Postgres) -> None:
    caught_up = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
    await until(lambda: primary.sql(caught_up) == [("1",)])


async def test_a_failover_that_lost_commits_gets_them_again(tmp_path: Path) -> None:
    """After a failover to a standby without the last commits all sums are equal, and a key that was revoked in them,
    and again afterwards, is known as revoked."""
    path = tmp_path / "ledger.sqlite"
    with postgres() as primary, postgres(primary=primary) as standby:
        url = primary.new_tables()
        either = on_either(url, primary, standby)
        session = Session(either, name="test")
        table = KeyTable(session)
        record, _ = mint(KeyOptions(name="app"), entropy=b"k" * ENTROPY_BYTES, now_unix_s=1000.0)
        with table.changing() as known:
            table.write(known.with_key(record))
        keys = KeyCopy(lambda: True)
        member = Membership(Session(either, name="a"), "a", loads={"keys": keys.load})
        member.open()
        member.start()
        async with journal(path, either) as (ledger, shipper):
            await recorded(ledger, 1, 2, 3)
            await ledger.record(standing(10.0))
            await until(lambda: shipper.state.n_shipped >= 4)
            await until_replayed(primary)
            standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
            standby.sql("SELECT pg_reload_conf()")
            await until(lambda: primary.sql("SELECT count(*) FROM pg_stat_replication") == [("0",)])
            await recorded(ledger, 4, 5, 6)
            await ledger.record(standing(14.0, booked=4.0))
            await until(lambda: shipper.state.n_shipped >= 8)
            with table.changing() as known:
                table.write(known.with_revoked(record.id, 2000.0))
            await until(lambda: keys.read().keys[0].revoked_at_unix_s == 2000.0)
            await asyncio.to_thread(primary.kill)
            await recorded(ledger, 7)
            standby.promote()
            session.close()
            await until(lambda: shipper.state.error is None and not shipper.state.n_waiting)
            await until(lambda: member.standing.error is None)
            await until(lambda: keys.read().keys[0].revoked_at_unix_s is None)
            with table.changing() as known:
                table.write(known.with_revoked(record.id, 3000.0))
            await until(lambda: keys.read().keys[0].revoked_at_unix_s == 3000.0)
            await until(lambda: len(shared_joules(session)) == 7)
            assert math.fsum(shared_joules(session)) == math.fsum(own_joules(path))
            assert rows(session, "SELECT sum(joules) FROM standing") == [(14.0,)]
        member.stop(10)
        session.close()


async def test_a_standby_that_hangs_delays_commits_and_no_answer(tmp_path: Path) -> None:
    """Where every commit waits for a synchronous standby that hangs, requests are acknowledged, and arrive later."""
    path = tmp_path / "ledger.sqlite"
    with postgres() as primary, postgres(primary=primary) as standby:
        url = primary.new_tables()
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.sql("ALTER SYSTEM SET synchronous_commit = remote_apply")
        primary.sql("SELECT pg_reload_conf()")
        async with journal(path, url) as (ledger, shipper):
            await recorded(ledger, 1)
            await until(lambda: shipper.state.n_shipped == 1)
            standby.hang(hangs=True)
            try:
                await recorded(ledger, *range(2, 30))
                waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                await until(lambda: primary.sql(waits) == [("1",)])
                await recorded(ledger, 30)
            finally:
                standby.hang(hangs=False)
            await until(lambda: shipper.state.n_shipped >= 30)
        session = Session(url, name="test")
        assert math.fsum(shared_joules(session)) == math.fsum(own_joules(path))
        session.close()


@contextmanager
def small_disk(tmp_path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size; skips where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={megabytes}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", place], check=False, capture_output=True).returncode:
        pytest.skip("A tmpfs cannot be mounted here.")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


def fill(place: Path) -> Path:
    """Takes all room that a file system has left."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
    return filler


async def test_a_database_on_a_full_file_system_loses_nothing(tmp_path: Path) -> None:
    """While the server's disk is full requests are acknowledged; once there is room, all arrive and sums are equal."""
    path = tmp_path / "ledger.sqlite"
    with small_disk(tmp_path, 192) as place:
        data = place / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(data, "postgres")
            for folder in [place, *tmp_path.parents, tmp_path]:
                if folder.is_relative_to("/tmp"):
                    folder.chmod(folder.stat().st_mode | 0o011)
        with postgres(data=data) as server:
            url = server.new_tables()
            async with journal(path, url) as (ledger, shipper):
                await recorded(ledger, 0)
                await until(lambda: shipper.state.n_shipped == 1)
                filler = fill(place)
                n_asked = 1
                while shipper.state.error is None and n_asked < 20_000:
                    await recorded(ledger, *range(n_asked, n_asked + 200))
                    n_asked += 200
                assert isinstance(shipper.state.error, DatabaseUnreachableError)
                await recorded(ledger, n_asked)
                filler.unlink()
                if not server.lives:
                    # Where not even its log has room, PostgreSQL ends; an operator starts it again.
                    await asyncio.to_thread(server.start)
                await until(lambda: shipper.state.error is None and not shipper.state.n_waiting)
            session = Session(url, name="test")
            shared = shared_joules(session)
            session.close()
            assert (len(shared), math.fsum(shared)) == (n_asked + 1, math.fsum(own_joules(path)))


async def test_a_journal_on_a_full_disk_ships_what_it_has_and_the_rest_later(
    tmp_path: Path, server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the coordinator's own disk is full its entries wait in memory; with room again all are shipped, once."""
    path = tmp_path / "ledger.sqlite"
    opened: list[sqlite3.Connection] = []

    def opening(path: Path, *, is_journal: bool) -> sqlite3.Connection:
        opened.append(open_for_writing(path, is_journal=is_journal))
        return opened[-1]

    monkeypatch.setattr(ledger_module, "open_for_writing", opening)
    async with journal(path, url) as (ledger, shipper):
        await recorded(ledger, 0)
        await until(lambda: shipper.state.n_shipped == 1)
        [pages] = opened[0].execute("PRAGMA page_count").fetchone()
        opened[0].execute(f"PRAGMA max_page_count = {pages}")
        shipper._hurry.set()
        told = [await ledger.record(request_entry(f"req-{number}", joules=JOULES)) for number in range(1, 100)]
        assert not told[-1]
        assert [warning.code for warning in ledger.warnings()] == ["ledger_not_written"]
        opened[0].execute("PRAGMA max_page_count = 1000000")
        await until(lambda: not ledger.is_failing)
        session = Session(url, name="test")
        await until(lambda: len(shared_joules(session)) == 100)
        assert math.fsum(shared_joules(session)) == math.fsum(own_joules(path))
        session.close()
