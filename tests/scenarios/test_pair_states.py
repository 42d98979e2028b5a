"""Whatever becomes of the database after a coordinator's start, the coordinator serves on and says what is wrong."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.schema import known_version, migrate
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = [needs_postgres, pytest.mark.slow]

BREAKS = {
    "a table that is gone": (
        "ALTER TABLE moe2.coordinators RENAME TO elsewhere",
        "ALTER TABLE moe2.elsewhere RENAME TO coordinators",
    ),
    "a newer version": (
        "UPDATE moe2.version SET number = 99, usable_by = 99",
        f"UPDATE moe2.version SET number = {known_version()}, usable_by = 1",
    ),
    "a key that is none": ("INSERT INTO moe2.keys VALUES ('x', DEFAULT, '{}')", "DELETE FROM moe2.keys"),
    "an agent that is none": (
        "INSERT INTO moe2.agents VALUES ('x', DEFAULT, '[7]')",
        "DELETE FROM moe2.agents WHERE agent_id = 'x'",
    ),
    "no row of the version": ("DELETE FROM moe2.version", f"INSERT INTO moe2.version VALUES ({known_version()}, 1)"),
    "columns of other types": (
        "ALTER TABLE moe2.revisions ALTER n TYPE text USING 'x' || n",
        "ALTER TABLE moe2.revisions ALTER n TYPE bigint USING substr(n, 2)::bigint",
    ),
}
ODD_WORDS = """
    INSERT INTO moe2.wishes (record) VALUES ('{"pinned": 7}')
    ON CONFLICT (only_row) DO UPDATE SET record = excluded.record;
    INSERT INTO moe2.feedback (request_id, record) VALUES ('odd', '[]'), ('odder', '{"score": "x"}');
    INSERT INTO moe2.prices VALUES ('fleet', 'null') ON CONFLICT (scope) DO UPDATE SET record = 'null';
    INSERT INTO moe2.revisions VALUES ('nobody knows', 7);
    SELECT pg_notify('moe2', ''), pg_notify('moe2', 'recall '), pg_notify('moe2', repeat('x', 7000));
"""


def name_of(url: str) -> str:
    return url.split("?")[0].rpartition("/")[2]


async def until_warned(running: Fleet, *, whether: bool) -> None:
    await running.until_status(
        lambda status: any(warning.code.startswith("database") for warning in status.warnings) is whether
    )


async def test_no_state_of_the_tables_ends_a_coordinator(tmp_path: Path, server: Postgres) -> None:
    """With tables that are gone, too new, or hold what nobody understands, requests are answered with a warning, which
    ends when the tables are right again."""
    url = server.new_tables()
    async with fleet(tmp_path, database={"url": url, "name": "a"}) as running:
        for broken, right in BREAKS.values():
            server.sql(broken, name_of(url))
            assert (await running.chat("a b c")).status == 200
            await until_warned(running, whether=True)
            server.sql(right, name_of(url))
            await until_warned(running, whether=False)
        server.sql(ODD_WORDS, name_of(url))
        for number in range(3):
            assert (await running.chat(f"odd {number}")).status == 200
        pair = running.coordinator._pair
        assert pair is not None
        polled_s = pair.membership.standing.polled_s
        await running.until_status(lambda _: pair.membership.standing.polled_s != polled_s)
        await until_warned(running, whether=False)


async def test_a_database_that_is_dropped_and_made_again_ends_no_coordinator(tmp_path: Path, server: Postgres) -> None:
    """A database that is dropped, is there without tables, and gets them, costs warnings only; books go on."""
    url = server.new_tables()
    async with fleet(tmp_path, database={"url": url, "name": "a"}) as running:
        server.sql(f"DROP DATABASE {name_of(url)} WITH (FORCE)")
        await until_warned(running, whether=True)
        assert (await running.chat("gone")).status == 200
        server.sql(f"CREATE DATABASE {name_of(url)}")
        assert (await running.chat("without tables")).status == 200
        session = Session(url, name="test")
        migrate(session)
        session.close()
        await until_warned(running, whether=False)
        # The register is empty, so that the agent is turned out once, and enrols again.
        async with asyncio.timeout(60):
            while (await running.chat("again")).status != 200:
                await asyncio.sleep(0.02)
        asked = "SELECT count(*) >= 3 FROM moe2.requests"
        async with asyncio.timeout(60):
            while server.sql(asked, name_of(url)) != [("t",)]:
                await asyncio.sleep(0.02)


async def test_a_process_outlives_a_database_that_comes_and_goes(tmp_path: Path, server: Postgres) -> None:
    """While its database is killed, cut off and started a few times, the process is the same one, and ends in order."""
    url = server.new_tables()
    database = f'[database]\nurl = "{url}"\nname = "a"'
    async with CoordinatorProcess(tmp_path, token=TOKEN, agents=database) as process, aiohttp.ClientSession() as http:
        pid = process.pid
        for turn in range(4):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'moe2 %'")
            server.hang(hangs=True)
            async with http.get(f"{process.api_url}/healthz") as answer:
                assert answer.status == 200
            server.hang(hangs=False)
            assert process.pid == pid, turn
        async with http.get(f"{process.api_url}/v1/moe2/fleet") as answer:
            assert answer.status == 200
        await process.end(signal.SIGTERM)
        assert process._process is not None
        assert process._process.returncode == 0
        text = (tmp_path / "coordinator.log").read_text()
        assert "Traceback" not in text
        assert "database_work_failed" not in text
