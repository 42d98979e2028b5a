"""Coordinators on one PostgreSQL, end to end: answers go on without it, and its sums are those of the ledgers."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.schema import migrate
from moe2.coordinator.ledger.schema import reading
from tests.fakes.fleet import fleet
from tests.fakes.postgres import Postgres, needs_postgres, postgres

pytestmark = needs_postgres
POLL_S = 0.01


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that every test leaves running."""
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres) -> str:
    """The address of a new database with the tables of this release."""
    address = server.new_database()
    session = Session(address, name="test")
    migrate(session)
    session.close()
    return address


def shared_joules(url: str) -> list[float | None]:
    """The joules of every request in the shared database."""
    session = Session(url, name="test")
    with session.transaction() as cursor:
        cursor.execute("SELECT joules FROM requests")
        found = [joules for (joules,) in cursor.fetchall()]
    session.close()
    return found


async def test_answers_go_on_without_the_database_and_are_shipped_after_it(
    tmp_path: Path, server: Postgres, url: str
) -> None:
    """While the database is down requests are answered with a warning in the status; after it the sums are equal."""
    async with fleet(tmp_path, database={"url": url, "name": "a"}, profile="agx-orin-maxn") as running:
        assert (await running.chat("one")).status == 200
        await asyncio.to_thread(server.kill)
        try:
            assert [(await running.chat(f"down {number}")).status for number in range(3)] == [200, 200, 200]
            await running.until_status(
                lambda status: [warning.code for warning in status.warnings].count("database_unreachable") == 1
            )
        finally:
            await asyncio.to_thread(server.start)
        await running.until_status(
            lambda status: "database_unreachable" not in [warning.code for warning in status.warnings]
        )
        async with asyncio.timeout(60):
            while len(shared_joules(url)) < 4:
                await asyncio.sleep(POLL_S)
    with reading(tmp_path / "ledger.sqlite") as connection:
        own = [joules for (joules,) in connection.execute("SELECT joules FROM requests")]
    known = [joules for joules in shared_joules(url) if joules is not None]
    assert len(own) == 4
    assert math.fsum(known) == math.fsum(joules for joules in own if joules is not None)


async def test_a_key_that_is_revoked_by_the_command_is_refused_by_both_coordinators(tmp_path: Path, url: str) -> None:
    """`keys create` on one host makes a key that both accept; `keys revoke` ends it on both within a second."""
    config = tmp_path / "cli.toml"
    config.write_text(f'[database]\nurl = "{url}"\n')

    async def keys(*arguments: str) -> str:
        command = (sys.executable, "-m", "moe2.coordinator", "keys", *arguments, "--config", str(config))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        told, _ = await process.communicate()
        assert process.returncode == 0
        return told.decode().strip()

    key = await keys("create", "app")
    headers = {"Authorization": f"Bearer {key}"}
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        root.mkdir()
    api = {"keys": "required"}
    async with (
        fleet(roots[0], agents=(), api=api, database={"url": url, "name": "a"}) as one,
        fleet(roots[1], agents=(), api=api, database={"url": url, "name": "b"}) as two,
    ):
        for each in (one, two):
            async with each.http.get("/v1/models", headers=headers) as answer:
                assert answer.status == 200
        await keys("revoke", key.split("_")[1])
        revoked_s = asyncio.get_running_loop().time()
        for each in (one, two):
            while True:
                async with each.http.get("/v1/models", headers=headers) as answer:
                    if answer.status == 401:
                        break
                    assert asyncio.get_running_loop().time() - revoked_s < 5.0
                await asyncio.sleep(POLL_S)
