"""A coordinator that stops or is killed in mid-request, and comes back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from moe2.common.link.messages import CancelJob, JobPieces, Submit, TokenPiece, Tokens
from moe2.common.localclient import fetch
from tests.fakes.agentprocess import agent_process
from tests.fakes.control import ExpertControl, expert_control
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S, TOKEN, fleet
from tests.fakes.version1 import agent1
from tests.scenarios.faults.bench import ANSWER, PHASES, WORDS, Phase, assert_one_end, bench, in_phase, read_end

IN_EVERY_PHASE = pytest.mark.parametrize(
    "phase", [p if p is Phase.STREAM else pytest.param(p, marks=pytest.mark.slow) for p in PHASES]
)


@pytest.mark.slow
@IN_EVERY_PHASE
async def test_a_stopping_coordinator_ends_its_requests(tmp_path: Path, phase: Phase) -> None:
    """SIGTERM, in effect: what has not ended within the drain ends with an error that says so, and new ones are sent
    away; both with a time after which to try again, where there is still a status line to write."""
    async with bench(tmp_path) as built, asyncio.timeout(100):
        requests = await in_phase(built, phase)
        built.fleet.coordinator.stop()
        await built.fleet.until_status(lambda status: status.draining)
        late = await built.fleet.chat("too late")
        assert late.status == 503
        assert late.headers["Retry-After"]
        assert (await late.json())["error"]["code"] == "stopping"
        victim, bystander = await requests.victim, await requests.bystander
        for ended in (victim, bystander):
            assert_one_end(ended)
            assert ended.error is not None, ended
            assert ended.error["code"] == "stopping"
        assert victim.status == (200 if phase is Phase.STREAM else 503)
        requests.let_go(built)


@pytest.mark.slow
async def test_a_refused_request_says_when_to_come_again(tmp_path: Path) -> None:
    """A 503 of a request that was cut off has a Retry-After, for SDKs that retry by themselves."""
    async with bench(tmp_path) as built, asyncio.timeout(100):
        request = asyncio.create_task(built.fleet.chat("a b", max_tokens=2))
        step = await built.shaky.next_phase()
        built.fleet.coordinator.stop()
        answer = await request
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        built.shaky.release()
        step.answer()


async def test_a_job_of_a_former_coordinator_is_stopped(tmp_path: Path) -> None:
    """Agents drop their jobs with the link; one of another build that goes on with them is told to stop, once."""
    async with fleet(tmp_path, agents=()) as running, agent1(running.coordinator.agents_url, TOKEN) as peer:
        await running.until(ready=1)
        for _ in range(5):
            peer.say(Tokens(jobs=(JobPieces("former.0", (TokenPiece("for nobody "),)),)))
        await peer.until(lambda peer: bool(peer.heard))
        model = running.coordinator.status().agents[0].experts[0].model
        async with await running.chat("hi", model=model) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == "old answer"
        assert [type(message) for message in peer.heard] == [CancelJob, Submit]
        assert peer.heard[0] == CancelJob(job_id="former.0")


# --- Killed, as a real process ----------------------------------------------------------------------------------------


@dataclass
class Apart:
    """Coordinator and agent in processes of their own; the expert under control."""

    root: Path
    coordinator: CoordinatorProcess
    http: aiohttp.ClientSession
    control: ExpertControl

    async def post(self, **fields: Any) -> aiohttp.ClientResponse:
        body = {
            "model": "moe2",
            "messages": [{"role": "user", "content": " ".join(WORDS)}],
            "max_tokens": len(WORDS),
            **fields,
        }
        return await self.http.post(f"{self.coordinator.api_url}/v1/chat/completions", json=body)

    async def until_fleet(self, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait until the coordinator says so of its connected agents' experts."""
        while True:
            async with self.http.get(f"{self.coordinator.api_url}/v1/moe2/fleet") as answer:
                rows = (await answer.json())["agents"]
            if holds([expert for row in rows if row["connected"] for expert in row["experts"]]):
                return
            await asyncio.sleep(POLL_S)

    async def until_ready(self) -> None:
        await self.until_fleet(lambda experts: [expert["state"] for expert in experts] == ["ready"])

    async def agent_metric(self, name: str, **labels: str) -> float:
        text = (await asyncio.to_thread(fetch, self.root / "one.sock", "/metrics")).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@asynccontextmanager
async def apart(root: Path) -> AsyncIterator[Apart]:
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(expert_control(root / "control.sock"))
        coordinator = await stack.enter_async_context(CoordinatorProcess(root, token=TOKEN))
        expert = ("--control", str(root / "control.sock"))
        await stack.enter_async_context(
            agent_process(root, "one", coordinator.agents_url, token=TOKEN, expert=expert, profile="agx-orin-maxn")
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        built = Apart(root, coordinator, http, control)
        await built.until_ready()
        yield built


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.PREFILL, Phase.STREAM])
async def test_a_killed_coordinator(tmp_path: Path, phase: Phase) -> None:
    """SIGKILL: the client sees a broken connection, never an end that looks good. The agent comes back by itself, has
    dropped the job and counted its joules as wasted; the next request is answered."""
    async with apart(tmp_path) as built, asyncio.timeout(100):
        stream = phase is Phase.STREAM
        first = asyncio.create_task(built.post(stream=stream))
        step = await built.control.next_phase()
        requests = [first]
        if phase is Phase.QUEUED:
            requests.append(asyncio.create_task(built.post()))
            await built.until_fleet(lambda experts: experts[0].get("queued") == 1)
        if stream:
            for _ in range(2):
                step.answer()
                step = await built.control.next_phase()
            await asyncio.wait(requests)
        await built.coordinator.end(signal.SIGKILL)
        for request in requests:
            try:
                ended = await read_end(await request)
            except aiohttp.ClientError:
                continue
            assert stream
            assert ended.broken or ended.marks == 0
        # The expert still waits for the test: only a cancellation ends its job.
        while await built.agent_metric("moe2_agent_jobs_total", reason="abandoned") < len(requests):
            await asyncio.sleep(POLL_S)
        built.control.release()
        step.answer()
        wasted_j = await built.agent_metric("moe2_agent_wasted_energy_joules_total", cause="abandoned")
        assert wasted_j == await built.agent_metric("moe2_agent_job_energy_joules_total")
        assert wasted_j > 0
        await built.coordinator.start()
        await built.until_ready()
        await built.until_fleet(lambda experts: not experts[0].get("active") and not experts[0].get("queued"))
        assert (await read_end(await built.post())).text == ANSWER


@pytest.mark.slow
async def test_the_sdk_gets_over_a_killed_coordinator(tmp_path: Path) -> None:
    """The stock client's own retries are enough."""
    async with apart(tmp_path) as built, asyncio.timeout(100):
        async with AsyncOpenAI(base_url=f"{built.coordinator.api_url}/v1", api_key="unused", max_retries=12) as client:
            asked = client.chat.completions.create(
                model="moe2", messages=[{"role": "user", "content": " ".join(WORDS)}], max_tokens=len(WORDS)
            )
            request = asyncio.create_task(asked)
            step = await built.control.next_phase()
            await built.coordinator.end(signal.SIGKILL)
            built.control.release()
            step.answer()
            await built.coordinator.start()
            answer = await request
            assert answer.choices[0].message.content == ANSWER
