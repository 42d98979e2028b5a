"""Two coordinators on one PostgreSQL under faults. Run as `python -m benchmarks.pair`; takes about two minutes.

Two real coordinators, one agent (a fake expert on a simulated host, so that joules are simulated) that dials both, and
eight clients that know both addresses, half of their keys with daily limits of tokens. The database is killed for a
minute, then one coordinator is killed, then a key is revoked. The server is Debian's, started by the benchmark.

The last line is one JSON object:

over_limit: tokens beyond the keys' limits, by the books. lost_entries: requests in a coordinator's own ledger that are
not in the database, and answers that clients got that are in neither. sum_mismatch_j: joules of all ledgers against the
database's. recovered_s: from the database's return until everything has been shipped and no coordinator warns.
first_answer_after_kill_s: from the SIGKILL of a coordinator until the next answer to a client that asked after it.
admission_p99_ms: 99th percentile of the coordinators' own time for a request with a limited key, waiting for a lease
included, less that of a coordinator on SQLite alone, measured alternately. admission_sqlite_p99_ms: of the latter.
revocation_s: from the revocation of a key until both coordinators refuse it. retried: requests that a client sent again
because a connection broke. answers, refused: what the clients got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sqlite3
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time

import aiohttp

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.energy.profiles import find_profile
from moe2.agent.settings import AgentSettings
from moe2.common.logs import configure_logging
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shared_trust import KeyTable
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, Scope, mint
from moe2.coordinator.keys.store import KeyFile
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import FAKE_EXPERT, TOKEN
from tests.fakes.postgres import Postgres, postgres

N_CLIENTS = 8
PAUSE_S = 0.05
"""Between two requests of a client: the faults are of interest here, not the load."""
LIMIT_TOKENS = 6000
ENOUGH_TOKENS = 10**9
POLL_S = 0.01
PROBES = 1000
GIVE_UP_S = 60.0
BODY = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 8}


@dataclass
class Client:
    """A client that goes on to the other address where a connection fails."""

    key: str
    urls: Sequence[str]
    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[str] = field(default_factory=list)
    answered_at_s: list[tuple[float, float]] = field(default_factory=list)
    """When each answered request was sent, and when its answer came."""
    retried: int = 0

    async def run(self, http: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        """Asks until it is told to stop."""
        turn = 0
        while not stop.is_set():
            turn += 1
            await self._ask(http, turn)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PAUSE_S)

    async def _ask(self, http: aiohttp.ClientSession, turn: int) -> None:
        began_s = monotonic()
        for attempt in range(len(self.urls)):
            url = self.urls[(turn + attempt) % len(self.urls)]
            try:
                async with http.post(f"{url}/v1/chat/completions", json=BODY, headers=bearer(self.key)) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                self.retried += 1
                continue
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.answered.append(answer.headers["x-request-id"])
                self.answered_at_s.append((began_s, monotonic()))
            return
        self.statuses[0] += 1


def bearer(key: str) -> dict[str, str]:
    """The header that presents a key."""
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def agent(root: Path, urls: Sequence[str]) -> AsyncIterator[None]:
    """An agent with a fake expert on a simulated host that dials all addresses."""
    _prepare(root)
    configuration = {
        "agent": {"name": "orin", "state_dir": root / "state", "socket": root / "agent.sock", "drain_s": 1.0},
        "measuring": {"enabled": False},
        "coordinator": {
            "urls": list(urls),
            "token_file": root / "token",
            "reconnect_first_s": 0.05,
            "reconnect_most_s": 0.5,
        },
        "sensors": {"profile": "agx-orin-maxn"},
        "models": [{"name": "fake", "path": root / "fake.gguf", "slots": 8}],
    }
    daemon = AgentDaemon(
        AgentSettings.model_validate(configuration),
        environment={},
        engine_argv=FAKE_EXPERT,
        sensors=SensorSettings(root=root / "none", simulated=find_profile("agx-orin-maxn")),
    )
    running = asyncio.create_task(daemon.run())
    try:
        yield
    finally:
        daemon.stop()
        await running


def _prepare(root: Path) -> None:
    root.mkdir()
    (root / "token").write_text(TOKEN)
    (root / "fake.gguf").touch()


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    """Waits until a coordinator has an expert."""
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(POLL_S)


def made_keys(options: Sequence[KeyOptions], url: str) -> list[str]:
    """Makes keys in the shared database."""
    session = Session(url, name="benchmark")
    table = KeyTable(session)
    keys = []
    with table.changing() as known:
        for number, one in enumerate(options, 1):
            record, key = mint(one, entropy=bytes([number]) * ENTROPY_BYTES, now_unix_s=time())
            known = known.with_key(record)
            keys.append(key)
        table.write(known)
    session.close()
    return keys


async def admission_ms(http: aiohttp.ClientSession, url: str, key: str) -> float:
    """The coordinator's own time for one request, with the wait for room or a lease."""
    async with http.post(f"{url}/v1/chat/completions", json=BODY, headers=bearer(key)) as answer:
        told = await answer.json()
    seconds = told["moe2"]["seconds"]
    return 1000 * float((seconds["overhead"] or 0.0) + (seconds["admission"] or 0.0))


def p99(figures: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(figures, n=100, method="inclusive")[98]


async def admissions(
    http: aiohttp.ClientSession, root: Path, one: CoordinatorProcess, key: str, n_probes: int = PROBES
) -> tuple[float, float]:
    """p99 of the time to admit a request of a limited key, of a coordinator with the database and of one alone."""
    place = root / "alone"
    place.mkdir()
    record, own = mint(
        KeyOptions(name="limited", daily_tokens=ENOUGH_TOKENS), entropy=b"x" * ENTROPY_BYTES, now_unix_s=time()
    )
    file = KeyFile(place)
    with file.changing() as keys:
        file.write(keys.with_key(record))
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(CoordinatorProcess(place, token=TOKEN, api='keys = "required"'))
        await stack.enter_async_context(agent(root / "alone-agent", [alone.agents_url]))
        await until_ready(http, alone.api_url)
        shared: list[float] = []
        single: list[float] = []
        for _ in range(n_probes):
            shared.append(await admission_ms(http, one.api_url, key))
            single.append(await admission_ms(http, alone.api_url, own))
    print(f"admission p50: {statistics.median(shared):.3f} ms, {statistics.median(single):.3f} ms on SQLite alone")
    return p99(shared), p99(single)


async def recovered(http: aiohttp.ClientSession, urls: Sequence[str], key: str, began_s: float) -> float:
    """Seconds from the database's return until no coordinator warns of it."""
    async with asyncio.timeout(GIVE_UP_S):
        for url in urls:
            while True:
                async with http.get(f"{url}/v1/moe2/fleet", headers=bearer(key)) as answer:
                    told = await answer.json()
                if not [one for one in told["warnings"] if one["code"].startswith("database")]:
                    break
                await asyncio.sleep(POLL_S)
    return monotonic() - began_s


async def revocation(http: aiohttp.ClientSession, urls: Sequence[str], key: str, database: str) -> float:
    """Seconds from a key's revocation until both coordinators refuse it."""
    session = Session(database, name="benchmark")
    table = KeyTable(session)
    with table.changing() as keys:
        table.write(keys.with_revoked(key.split("_")[1], time()))
    session.close()
    began_s = monotonic()
    for url in urls:
        while True:
            async with http.get(f"{url}/v1/models", headers=bearer(key)) as answer:
                if answer.status == 401:
                    break
            await asyncio.sleep(POLL_S)
    return monotonic() - began_s


def books(roots: Sequence[Path], database: str, answered: Sequence[str]) -> dict[str, float]:
    """The ledgers against the database."""
    own: dict[str, float | None] = {}
    for root in roots:
        with closing(sqlite3.connect(root / "ledger.sqlite")) as connection:
            own |= dict(connection.execute("SELECT request_id, joules FROM requests"))
    session = Session(database, name="benchmark")
    with session.transaction() as cursor:
        cursor.execute("SELECT request_id, joules FROM requests")
        shared: dict[str, float | None] = dict(cursor.fetchall())
        cursor.execute("SELECT key_name, sum(charged_tokens) FROM requests GROUP BY 1")
        spent = dict(cursor.fetchall())
    session.close()
    over = sum(max(0, int(tokens) - LIMIT_TOKENS) for name, tokens in spent.items() if name.startswith("few"))
    known = [[joules for joules in each.values() if joules is not None] for each in (own, shared)]
    return {
        "over_limit": over,
        "lost_entries": len(own.keys() - shared.keys()) + len(set(answered) - shared.keys()),
        "sum_mismatch_j": abs(math.fsum(known[0]) - math.fsum(known[1])),
    }


async def run(root: Path, server: Postgres, *, outage_s: float, steady_s: float) -> dict[str, float]:
    """The whole course; returns the last line's figures."""
    database = server.new_tables()
    options = [
        KeyOptions(name=f"few-{number}", daily_tokens=LIMIT_TOKENS) if number % 2 else KeyOptions(name=f"free-{number}")
        for number in range(N_CLIENTS)
    ]
    options += [
        KeyOptions(name="probe", daily_tokens=ENOUGH_TOKENS),
        KeyOptions(name="observer", scopes=(Scope.OBSERVE,)),
    ]
    keys = made_keys(options, database)
    probe, observer = keys[N_CLIENTS:]
    both = []
    for name in ("one", "two"):
        (root / name).mkdir()
        section = f'[database]\nurl = "{database}"\nname = "{name}"'
        both.append(CoordinatorProcess(root / name, token=TOKEN, api='keys = "required"', agents=section))
    async with AsyncExitStack() as stack:
        for one in both:
            await stack.enter_async_context(one)
        await stack.enter_async_context(agent(root / "agent", [one.agents_url for one in both]))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        urls = [one.api_url for one in both]
        for url in urls:
            await until_ready(http, url)
        shared_p99, single_p99 = await admissions(http, root, both[0], probe)
        print(f"admission p99: {shared_p99:.3f} ms with the database, {single_p99:.3f} ms on SQLite alone", flush=True)
        clients = [Client(key, urls) for key in keys[:N_CLIENTS]]
        stop = asyncio.Event()
        asking = [asyncio.create_task(client.run(http, stop)) for client in clients]
        await asyncio.sleep(steady_s)
        await asyncio.to_thread(server.kill)
        print(f"database killed for {outage_s:.0f} s", flush=True)
        await asyncio.sleep(outage_s)
        await asyncio.to_thread(server.start)
        recovered_s = await recovered(http, urls, observer, monotonic())
        await asyncio.sleep(steady_s)
        killed_s = monotonic()
        both[0].send_signal(signal.SIGKILL)
        await asyncio.sleep(steady_s)
        first_s = min(came - killed_s for client in clients for sent, came in client.answered_at_s if sent >= killed_s)
        await both[0].start()
        await until_ready(http, urls[0])
        revocation_s = await revocation(http, urls, probe, database)
        stop.set()
        await asyncio.gather(*asking)
        for one in both:
            await one.end(signal.SIGTERM)
    answered = [request_id for client in clients for request_id in client.answered]
    statuses: Counter[int] = sum((client.statuses for client in clients), Counter())
    print(f"statuses: {dict(statuses)}")
    return {
        **books([root / name for name in ("one", "two")], database, answered),
        "recovered_s": round(recovered_s, 3),
        "first_answer_after_kill_s": round(first_s, 3),
        "admission_p99_ms": round(shared_p99 - single_p99, 3),
        "admission_sqlite_p99_ms": round(single_p99, 3),
        "revocation_s": round(revocation_s, 3),
        "retried": sum(client.retried for client in clients),
        "answers": statuses[200],
        "refused": sum(number for status, number in statuses.items() if status != 200),
    }


async def run_admissions(root: Path, server: Postgres) -> dict[str, float]:
    """The time to admit a request alone, without faults and without other clients."""
    database = server.new_tables()
    [probe] = made_keys([KeyOptions(name="probe", daily_tokens=ENOUGH_TOKENS)], database)
    (root / "one").mkdir()
    section = f'[database]\nurl = "{database}"\nname = "one"'
    one = CoordinatorProcess(root / "one", token=TOKEN, api='keys = "required"', agents=section)
    async with one, agent(root / "agent", [one.agents_url]), aiohttp.ClientSession() as http:
        await until_ready(http, one.api_url)
        shared_p99, single_p99 = await admissions(http, root, one, probe, 2 * PROBES)
    return {
        "admission_p99_ms": round(shared_p99 - single_p99, 3),
        "admission_sqlite_p99_ms": round(single_p99, 3),
    }


def main() -> None:
    """Runs the benchmark and prints its figures."""
    configure_logging("warning")  # The agent runs in this process.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", type=float, default=60.0, metavar="S", help="seconds without the database")
    parser.add_argument("--steady", type=float, default=8.0, metavar="S", help="seconds between the faults")
    parser.add_argument("--admission", action="store_true", help="only the time to admit a request; no faults")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moe2-pair-") as folder, postgres() as server:
        if arguments.admission:
            found = asyncio.run(run_admissions(Path(folder), server))
        else:
            found = asyncio.run(run(Path(folder), server, outage_s=arguments.outage, steady_s=arguments.steady))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
