"""Coordinators on one PostgreSQL, end to end: answers go on without it, and its sums are those of the ledgers."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest

from moe2.common.link.messages import Suspend
from moe2.common.status import PairStatus
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shared_trust import KeyTable, SharedRegister
from moe2.coordinator.fleet import hub
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, mint
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.provisioning import keeper
from moe2.coordinator.provisioning.traffic import Asked
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_standby import ALLOWED, FakeHost

pytestmark = [needs_postgres, pytest.mark.slow]
POLL_S = 0.01


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
            # Three requests with an attempt each wait for the database.
            await running.until_status(
                lambda status: status.pair is not None and not status.pair.reached and status.pair.unshipped >= 3
            )
        finally:
            await asyncio.to_thread(server.start)
        await running.until_status(
            lambda status: "database_unreachable" not in [warning.code for warning in status.warnings]
        )
        whole = PairStatus(name="a", preferred=True, reached=True, unshipped=0, others=())
        await running.until_status(lambda status: status.pair == whole)
        async with running.http.get("/metrics") as answer:
            scraped = await answer.text()
        for line in ("coordinator_preferred 1.0", "coordinators_seen 1.0", "database_reached 1.0"):
            assert f"\nmoe2_{line}\n" in scraped
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
    async with two_coordinators(tmp_path, url, api={"keys": "required"}) as (one, two):
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


def with_key(url: str, options: KeyOptions, nth: int = 1) -> dict[str, str]:
    """Makes a key in the shared database; returns the header that presents it."""
    record, key = mint(options, entropy=bytes([nth]) * ENTROPY_BYTES, now_unix_s=time())
    session = Session(url, name="test")
    table = KeyTable(session)
    with table.changing() as keys:
        table.write(keys.with_key(record))
    session.close()
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def two_coordinators(tmp_path: Path, url: str, **options: Any) -> AsyncIterator[tuple[Fleet, Fleet]]:
    """Two coordinators on one database, without agents: who starts second would wait for those of the first."""
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        root.mkdir()
    async with (
        fleet(roots[0], agents=(), database={"url": url, "name": "a"}, **options) as one,
        fleet(roots[1], agents=(), database={"url": url, "name": "b"}, **options) as two,
    ):
        yield one, two


@asynccontextmanager
async def two_fleets(
    tmp_path: Path, url: str, *, keys: str = "required", **options: Any
) -> AsyncIterator[tuple[Fleet, Fleet]]:
    """Two coordinators on one database, each with an agent of its own on a simulated host."""
    async with two_coordinators(tmp_path, url, api={"keys": keys}, **options) as both:
        for each in both:
            await each.start_agent("one", profile="agx-orin-maxn")
        for each in both:
            await each.until(ready=1)
        yield both


async def ask(running: Fleet, headers: dict[str, str], **fields: Any) -> tuple[int, dict[str, Any]]:
    """One chat with a key; the status and the answer."""
    body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 8, **fields}
    async with running.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_who_starts_after_the_other_has_gone_waits_for_no_agents(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator opens its API before its agents are back where nobody else would answer meanwhile."""
    monkeypatch.setattr(hub, "BACK_S", 3600.0)
    async with two_fleets(tmp_path, url):
        pass
    async with asyncio.timeout(60), fleet(tmp_path / "a", agents=(), database={"url": url, "name": "a"}) as alone:
        assert alone.coordinator.listening.is_set()


async def test_a_daily_limit_of_tokens_holds_over_both_coordinators(tmp_path: Path, url: str) -> None:
    """Requests of one key to both coordinators use its tokens up to less than two requests' worth, and never more."""
    headers = with_key(url, KeyOptions(name="app", daily_tokens=400))
    async with two_fleets(tmp_path, url) as both:
        told = []
        for _ in range(12):
            told += await asyncio.gather(*(ask(one, headers) for one in both for _ in range(3)))
    used = sum(answer["usage"]["total_tokens"] for status, answer in told if status == 200)
    largest = max(answer["usage"]["total_tokens"] for status, answer in told if status == 200)
    refused = [answer["error"]["code"] for status, answer in told if status != 200]
    assert refused
    assert set(refused) == {"budget_exhausted"}
    assert 400 - 3 * largest <= used <= 400


async def test_a_rate_of_requests_holds_over_both_coordinators(tmp_path: Path, url: str) -> None:
    """A key of ten requests a minute gets ten from both coordinators together."""
    headers = with_key(url, KeyOptions(name="app", requests_per_minute=10))
    async with two_fleets(tmp_path, url) as both:
        told = await asyncio.gather(*(ask(both[number % 2], headers) for number in range(24)))
    statuses = [status for status, _ in told]
    assert sorted(set(statuses)) == [200, 429]
    assert 10 <= statuses.count(200) <= 11


async def test_a_key_with_a_limit_is_refused_and_others_are_not_while_no_lease_can_be_drawn(
    tmp_path: Path, server: Postgres, url: str
) -> None:
    """With the database down, a limited key that holds no lease gets 503 with Retry-After, a key without limits 200."""
    limited = with_key(url, KeyOptions(name="limited", daily_tokens=100_000))
    free = with_key(url, KeyOptions(name="free"), nth=2)
    async with two_fleets(tmp_path, url) as (one, _):
        assert (await ask(one, free))[0] == 200
        await asyncio.to_thread(server.kill)
        try:
            assert (await ask(one, free))[0] == 200
            body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}]}
            async with one.http.post("/v1/chat/completions", json=body, headers=limited) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
                assert (await answer.json())["error"]["code"] == "database_unreachable"
        finally:
            await asyncio.to_thread(server.start)
        async with asyncio.timeout(60):
            while (await ask(one, limited))[0] != 200:
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def one_fleet(
    tmp_path: Path,
    url: str,
    *,
    api: dict[str, Any] | None = None,
    provisioning: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Fleet, Fleet]]:
    """Two coordinators on one database, and one agent that dials both."""
    async with two_coordinators(tmp_path, url, api=api, provisioning=provisioning) as (one, two):
        urls = [one.coordinator.agents_url, two.coordinator.agents_url]
        await one.start_agent("orin", link={"urls": urls}, **options)
        for each in (one, two):
            await each.until(ready=1)
        yield one, two


async def test_an_agent_works_for_both_coordinators(tmp_path: Path, url: str) -> None:
    """An agent that enrolled once is connected to both coordinators, and answers requests of both."""
    async with one_fleet(tmp_path, url) as both:
        for each in both:
            async with await each.chat("a b c") as answer:
                assert answer.status == 200
        [known] = {row.agent_id for each in both for row in each.coordinator.status().agents}
        assert [link.state.value for link in both[0].agents["orin"].status().links] == ["connected"] * 2
    session = Session(url, name="test")
    register = SharedRegister(session)
    register.refresh()
    session.close()
    assert [agent.agent_id for agent in register.current().agents] == [known]


async def test_each_coordinator_is_told_of_the_load_that_the_other_brings(
    tmp_path: Path, url: str, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """While one coordinator's request runs, the other's report of the expert counts it as load from elsewhere."""

    def elsewhere(each: Fleet) -> list[int]:
        return [expert.elsewhere for row in each.coordinator.status().agents for expert in row.experts]

    async with one_fleet(tmp_path, url, engine_argv=controlled) as (one, two):
        asking = asyncio.create_task(one.chat("a b c"))
        step = await control.next_phase()
        await two.until_status(lambda _: elsewhere(two) == [1])
        assert elsewhere(one) == [0]
        step.answer()
        control.release()
        async with await asking as answer:
            assert answer.status == 200
        await two.until_status(lambda _: elsewhere(two) == [0])


async def test_a_coordinator_that_ends_takes_only_its_own_requests(
    tmp_path: Path, url: str, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """A request of the other coordinator goes on while its agent loses one of its links."""
    async with one_fleet(tmp_path, url, engine_argv=controlled) as (one, two):
        asking = asyncio.create_task(two.chat("a b c"))
        step = await control.next_phase()
        one.coordinator._hub.close("the test ends it")
        await one.until_status(lambda status: not any(row.connected for row in status.agents))
        step.answer()
        control.release()
        async with await asking as answer:
            assert answer.status == 200
        await one.until(ready=1)


async def test_only_one_coordinator_does_the_chores(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two coordinators decides who is awake; when it ends with a host asleep, the other one wakes it."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.02)
    host, woken = FakeHost(), tmp_path / "woken"
    slow_level = {"mode": "act", "wake_command": ("/usr/bin/touch", str(woken))}
    async with one_fleet(tmp_path, url, provisioning=slow_level, agent=ALLOWED, control=host) as (one, two):
        assert [each.coordinator._pair is not None and each.coordinator._pair.does_chores for each in (one, two)] == [
            True,
            False,
        ]
        one.coordinator._hub.send(one.agents["orin"].status().agent_id, Suspend(command_id="as the slow level does"))
        for each in (one, two):
            await each.until_status(lambda status: status.agents[0].asleep)
        one.coordinator.stop()
        async with asyncio.timeout(60):
            while not (two.coordinator._pair and two.coordinator._pair.does_chores):
                await asyncio.sleep(POLL_S)
            asking = asyncio.create_task(two.chat("a b c", max_tokens=1))
            while not woken.exists():
                await asyncio.sleep(POLL_S)
        host.wake(3600.0)
        async with await asking as answer:
            assert answer.status == 200


async def test_who_decides_knows_what_both_are_asked(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to the coordinator that does no chores count at the one that does, each of them once."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.02)
    monkeypatch.setattr(keeper, "DECIDE_EVERY_S", 0.1)

    def counted(running: Fleet) -> float:
        return sum(sum(kind.counts) for kind in running.coordinator._keeper._traffic._classes.values())

    async with one_fleet(tmp_path, url) as (one, two):
        for running in (two, two, two, one):
            async with await running.chat("a b c") as answer:
                assert answer.status == 200
        for running in (one, two):
            async with asyncio.timeout(60):
                while counted(running) < 4:
                    await asyncio.sleep(POLL_S)
            polled: list[float] = []
            monkeypatch.setattr(running.coordinator._keeper, "_elsewhere", _noted(running, polled))
            async with asyncio.timeout(60):
                while len(polled) < 4:
                    await asyncio.sleep(POLL_S)
            assert counted(running) == 4


def _noted(running: Fleet, polled: list[float]) -> Callable[[float], Awaitable[Sequence[Asked]]]:
    """The same question, which notes when it was asked."""
    real = running.coordinator._keeper._elsewhere

    async def asked(now_unix_s: float) -> Sequence[Asked]:
        polled.append(now_unix_s)
        return await real(now_unix_s)

    return asked
