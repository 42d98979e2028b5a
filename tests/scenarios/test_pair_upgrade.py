"""A pair of the release before the latest change of the database's tables, upgraded one after the other under load."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from time import time

import aiohttp
import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.schema import known_version, version_of
from moe2.coordinator.database.shared_trust import KeyTable
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, mint
from moe2.coordinator.ledger.schema import reading
from tests.fakes.agentprocess import agent_process
from tests.fakes.coordinatorprocess import CoordinatorProcess, code_of
from tests.fakes.fleet import TOKEN
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = [needs_postgres, pytest.mark.slow]
POLL_S = 0.01
N_CLIENTS = 4
LIMIT_TOKENS = 600
"""Of the second half of the clients: enough for the first requests only."""
REPOSITORY = Path(__file__).parents[2]
MIGRATIONS = REPOSITORY / "coordinator" / "database" / "migrations"
BODY = {"model": "fake", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 4}


def git(*arguments: str) -> bytes:
    """What git says of this checkout; empty where it has no history."""
    done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as it was before the newest migration, as a folder."""
    newest = max(MIGRATIONS.glob("*.sql"))
    commits = git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    archive = git("archive", f"{commits[-1]}^") if commits else b""
    if not archive:
        pytest.skip("The release before the newest tables is not here: this is no checkout with its history.")
    folder = tmp_path_factory.mktemp("older")
    subprocess.run(("tar", "--extract", "--directory", str(folder)), input=archive, check=True)
    return folder


async def database_init(config: Path, release: Path) -> None:
    """Runs `moe2-coordinator database init` of a release."""
    command = (sys.executable, "-m", "moe2.coordinator", "database", "init", "--config", str(config))
    process = await asyncio.create_subprocess_exec(*command, env=code_of(release), stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def keys_of(url: str) -> list[str]:
    """Makes a key for each client; every second one has a daily limit."""
    session = Session(url, name="test")
    table, keys = KeyTable(session), []
    with table.changing() as known:
        for nth in range(N_CLIENTS):
            options = KeyOptions(name=f"few-{nth}", daily_tokens=LIMIT_TOKENS) if nth % 2 else KeyOptions(name="free")
            record, key = mint(options, entropy=bytes([nth + 1]) * ENTROPY_BYTES, now_unix_s=time())
            known = known.with_key(record)
            keys.append(key)
        table.write(known)
    session.close()
    return keys


class Client:
    """Asks again and again, at the other address where one takes no connection, has no expert yet, or is stopping."""

    def __init__(self, key: str, urls: list[str]) -> None:
        self._headers = {"Authorization": f"Bearer {key}"}
        self._urls = urls
        self.statuses: Counter[int] = Counter()
        self.answered: list[str] = []

    async def run(self, http: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        """Asks until it is told to stop."""
        turn = 0
        while not stop.is_set():
            turn += 1
            self.statuses[await self._ask(http, turn)] += 1
            await asyncio.sleep(POLL_S)

    async def _ask(self, http: aiohttp.ClientSession, turn: int) -> int:
        status = 0
        for place in range(2 * len(self._urls)):
            url = self._urls[(turn + place) % len(self._urls)]
            with suppress(aiohttp.ClientError):
                async with http.post(f"{url}/v1/chat/completions", json=BODY, headers=self._headers) as answer:
                    status, request_id = answer.status, answer.headers["x-request-id"]
                    await answer.read()
                if status == 200:
                    self.answered.append(request_id)
                if status != 503:
                    return status
        return status


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    """Waits until a coordinator has an expert."""
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(POLL_S)


async def until_answered(clients: list[Client], more: int) -> None:
    """Waits until the clients have so many more answers."""
    wanted = sum(len(client.answered) for client in clients) + more
    async with asyncio.timeout(60):
        while sum(len(client.answered) for client in clients) < wanted:
            await asyncio.sleep(POLL_S)


async def test_a_pair_is_upgraded_one_after_the_other_and_loses_nothing(
    tmp_path: Path, older: Path, server: Postgres
) -> None:
    """Tables first, then each coordinator: every request is answered, no limit is broken, all books are equal."""
    url, both, roots = server.new_database(), [], [tmp_path / name for name in ("one", "two")]
    for root in roots:
        root.mkdir()
        section = f'[database]\nurl = "{url}"\nname = "{root.name}"'
        both.append(
            CoordinatorProcess(root, token=TOKEN, api='keys = "required"', agents=section, drain_s=5.0, release=older)
        )
    config = roots[0] / "coordinator.toml"
    await database_init(config, older)
    keys = keys_of(url)
    session = Session(url, name="test")
    async with AsyncExitStack() as stack:
        for one in both:
            await stack.enter_async_context(one)
        # An agent of each release: both serve coordinators of both.
        for one, release in zip(both, (older, REPOSITORY), strict=True):
            name = f"agent-{release.name}"
            agent = agent_process(tmp_path, name, one.agents_url, token=TOKEN, profile="agx-orin-maxn", release=release)
            await stack.enter_async_context(agent)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for one in both:
            await until_ready(http, one.api_url)
        clients = [Client(key, [one.api_url for one in both]) for key in keys]
        stop = asyncio.Event()
        asking = [asyncio.create_task(client.run(http, stop)) for client in clients]
        await until_answered(clients, 20)
        await database_init(config, REPOSITORY)
        with session.transaction() as cursor:
            assert version_of(cursor).number == known_version()
        await until_answered(clients, 20)
        for one in both:
            await one.end(signal.SIGTERM)
            one.release = None
            await one.start()
            await until_ready(http, one.api_url)
            await until_answered(clients, 20)
        stop.set()
        await asyncio.gather(*asking)
        for one in both:
            await one.end(signal.SIGTERM)
    statuses = sum((client.statuses for client in clients), Counter[int]())
    assert statuses.keys() <= {200, 429}
    own: dict[str, float | None] = {}
    for root in roots:
        with reading(root / "ledger.sqlite") as connection:
            own |= dict(connection.execute("SELECT request_id, joules FROM requests"))
    with closing(session), session.transaction() as cursor:
        cursor.execute("SELECT request_id, joules FROM requests")
        shared: dict[str, float | None] = dict(cursor.fetchall())
        cursor.execute("SELECT sum(charged_tokens) FROM requests WHERE key_name LIKE 'few%' GROUP BY key_name")
        spent = [int(tokens) for (tokens,) in cursor.fetchall()]
    assert shared == own
    assert {request_id for client in clients for request_id in client.answered} <= shared.keys()
    assert max(spent) <= LIMIT_TOKENS
