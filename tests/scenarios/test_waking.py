"""Hosts that are woken for requests: bursts, clocks that jump, hosts that come back as another one or not at all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.agent import presence
from moe2.common.link.messages import Suspend
from moe2.common.localclient import RefusedError
from moe2.common.standby import WakeAddress
from moe2.coordinator.provisioning import keeper, waking
from tests.fakes.fleet import POLL_S, Fleet, model_file
from tests.scenarios.test_provisioning import row, sleepy, slept_once, wish
from tests.scenarios.test_standby import ALLOWED, FakeHost

pytestmark = pytest.mark.slow

YEAR_S = 365.25 * 86_400
NO_QUEUE = {"queue_s": 0.0}


async def put_to_sleep(running: Fleet, host: FakeHost) -> None:
    """Has the host sleep with nobody's wish to keep it asleep, so that a request may wake it."""
    running.coordinator._hub.send(row(running.coordinator.status()).agent_id, Suspend(command_id="by hand"))
    await running.until_status(lambda status: row(status).asleep)
    host.asleep.clear()


async def until_held(running: Fleet, n_jobs: int) -> None:
    """Waits until so many jobs wait for sleeping hosts."""
    held = running.coordinator._keeper._held._held
    async with asyncio.timeout(20):
        while sum(map(len, held.values())) != n_jobs:
            await asyncio.sleep(POLL_S)


async def said(asked: asyncio.Task[aiohttp.ClientResponse]) -> tuple[int, str]:
    """The status of an answer, and its text."""
    async with asyncio.timeout(20), await asked as answer:
        return answer.status, await answer.text()


async def test_a_burst_at_a_sleeping_host_is_answered_when_it_is_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken once, though a client leaves and both daemons read their settings again meanwhile."""
    async with sleepy(tmp_path, mode="act", monkeypatch=monkeypatch, wakes=False) as (running, agent, host):
        await put_to_sleep(running, host)
        steering, agent_id = running.coordinator._keeper._steering, agent.status().agent_id
        async with asyncio.timeout(20):
            while not steering._hosts[agent_id].is_asleep:
                await asyncio.sleep(POLL_S)
        # The sleep by hand counts as a change of the host, too, if it was seen awake before.
        before = steering.activity()[agent_id].changes_within(1e9, 1e9)
        asked = [asyncio.create_task(running.chat(f"one {n}", max_tokens=2)) for n in range(6)]
        await until_held(running, 6)
        asked[0].cancel()
        await until_held(running, 5)
        running.coordinator.reload()
        agent.reload()
        host.wake(3600.0)
        assert [(await said(one))[0] for one in asked[1:]] == [200] * 5
        assert steering.activity()[agent_id].changes_within(1e9, 1e9) == before + 1


async def test_a_clock_that_jumps_during_a_sleep_keeps_nobody_asleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's clock goes ten years ahead, then to 1970: requests wake the host as ever."""
    async with sleepy(tmp_path, mode="act", monkeypatch=monkeypatch) as (running, _, host):
        await slept_once(running)
        for ahead_s in (10 * YEAR_S, -time.time() + 1000.0, 0.0):
            await put_to_sleep(running, host)
            monkeypatch.setattr(keeper, "time", lambda ahead_s=ahead_s: time.time() + ahead_s)
            async with await running.chat("one two", max_tokens=2) as answer:
                assert answer.status == 200, await answer.text()
        assert not [one for one in running.coordinator.status().warnings if one.code.startswith("provisioning")]


async def test_a_host_that_comes_back_as_another_one_fails_no_request_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for a model that it has no more gets its error, and the next packet goes to its new address."""
    called: list[str] = []
    monkeypatch.setattr(waking, "send_magic_packet", lambda mac, _: called.append(mac))
    cards = [
        WakeAddress(interface="eth0", mac=mac, network="127.0.0.0/8", broadcast="127.255.255.255", armed=True)
        for mac in ("3c:6d:66:01:02:03", "3c:6d:66:0a:0b:0c")
    ]
    monkeypatch.setattr(presence, "wake_addresses", lambda: cards[:1])
    options: dict[str, Any] = {"mode": "act", "wakes": False, "dispatch": NO_QUEUE}
    async with sleepy(tmp_path, monkeypatch=monkeypatch, **options) as (running, agent, host):
        await put_to_sleep(running, host)
        asked = asyncio.create_task(running.chat("one two", model="fake"))
        await until_held(running, 1)
        agent.stop()
        await asyncio.wait([running.agent_tasks["one"]])
        monkeypatch.setattr(presence, "wake_addresses", lambda: cards[1:])
        other = [{"name": "other", "path": model_file(tmp_path, "other")}]
        host = FakeHost()
        await running.start_agent("one", agent=ALLOWED, control=host, profile="rtx-4090", models=other)
        status, text = await said(asked)
        assert status == 502
        assert "does not serve the model now" in text
        await running.until(ready=1)
        await put_to_sleep(running, host)
        asked = asyncio.create_task(running.chat("one two", model="other", max_tokens=2))
        await until_held(running, 1)
        host.wake(3600.0)
        assert (await said(asked))[0] == 200
        assert called == [card.mac for card in cards]


async def test_a_host_that_is_lost_again_is_not_given_what_nobody_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests are told at once; `fleet wake` calls it all the same, and `fleet sleep` says what is wrong."""
    options: dict[str, Any] = {"mode": "act", "wakes": False, "dispatch": NO_QUEUE}
    async with sleepy(tmp_path, monkeypatch=monkeypatch, **options) as (running, agent, host):
        await put_to_sleep(running, host)
        asked = asyncio.create_task(running.chat("one two"))
        await until_held(running, 1)
        with monkeypatch.context() as early:
            # It is lost before the coordinator has looked at it again.
            early.setattr(running.coordinator._keeper, "_watch", lambda: None)
            host.wake(3600.0)
            await running.until(ready=1)
            agent.stop()
            assert (await said(asked))[0] == 502
            await asyncio.wait([running.agent_tasks["one"]])
        await until_held(running, 0)
        (tmp_path / "woken").unlink()
        assert "one is lost" in await wish(running, "wake")
        async with asyncio.timeout(10):
            while not (tmp_path / "woken").exists():
                await asyncio.sleep(POLL_S)
        with pytest.raises(RefusedError, match="one is lost: its agent is not connected"):
            await wish(running, "sleep")
        again = await running.start_agent("one", agent=ALLOWED, control=FakeHost(), profile="rtx-4090")
        await running.until(ready=1)
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200
        await running.quiet()
        assert (again.status().jobs_finished, again.status().jobs_failed) == (1, 0)
