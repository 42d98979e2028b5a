"""What fails is answered, accounted and survived."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, fleet


async def test_engine_crash_before_the_first_token_fails_over(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The other agent answers; the receipt shows both attempts."""
    async with fleet(tmp_path, agents=(), engine_argv=controlled) as running:
        await running.start_agent("shaky", engine_argv=controlled)
        await running.until(ready=1)
        request = asyncio.create_task(running.chat("a b", max_tokens=2))
        step = await control.next_phase()
        await running.start_agent("steady")
        await running.until(ready=2)
        step.answer("crash")
        answer = await request
        body = await answer.json()
        assert body["choices"][0]["message"]["content"] == "a b "
        assert [(line["agent"], line["outcome"]) for line in body["moe2"]["experts"]] == [
            ("shaky", "failed"),
            ("steady", "answered"),
        ]
        assert "SIGABRT" in body["moe2"]["experts"][0]["error"]


async def test_engine_crash_after_the_first_token_is_an_error_event(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """A stream that has begun ends with an explicit error and without the end marker."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b", max_tokens=9, stream=True))
        for _ in range(2):
            (await control.next_phase()).answer()
        answer = await request
        (await control.next_phase()).answer("crash")
        events = (await answer.read()).decode().strip().split("\n\n")
        last = json.loads(events[-1].removeprefix("data: "))
        assert answer.status == 200
        assert last["error"]["code"] == "engine_crashed"
        assert last["moe2"]["experts"][0]["decoded_tokens"] == 1


@pytest.mark.slow
async def test_engine_is_back_after_a_crash(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The daemon survives, restarts its child and serves again: first the request that it died with."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b", max_tokens=2))
        (await control.next_phase()).answer("crash")
        control.free = True
        answer = await request
        assert answer.status == 200
        assert [line["outcome"] for line in (await answer.json())["moe2"]["experts"]] == ["failed", "answered"]
        await running.until_status(lambda status: status.agents[0].experts[0].restarts > 0)
        await running.until(ready=1)
        async with await running.chat("c", max_tokens=1) as answer:
            assert answer.status == 200


async def test_lost_agent_fails_over(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """An agent that leaves in mid-prefill loses its request to another one."""
    async with fleet(tmp_path, agents=()) as running:
        leaving = await running.start_agent("leaving", engine_argv=controlled)
        await running.until(ready=1)
        request = asyncio.create_task(running.chat("a b", max_tokens=2))
        await control.next_phase()
        await running.start_agent("staying")
        await running.until(ready=2)
        running.agent_tasks["leaving"].cancel()
        answer = await request
        body = await answer.json()
        assert [line["outcome"] for line in body["moe2"]["experts"]] == ["lost", "answered"]
        assert body["moe2"]["energy"]["joules"] is None
        del leaving


async def test_killed_child_is_reported_by_signal(tmp_path: Path) -> None:
    """SIGKILL, as the out-of-memory killer sends it, is named in the agent's status."""
    async with fleet(tmp_path) as running:
        agent = running.agents["one"]
        pid = agent.engine_pids()["fake"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await running.until_status(lambda status: status.agents[0].experts[0].restarts > 0)
        await running.until(ready=1)
        assert agent.engine_pids()["fake"] not in (None, pid)


async def test_missing_gguf_is_a_named_warning(tmp_path: Path) -> None:
    """A model that is not there leaves the agent running, degraded, with a remedy."""
    async with fleet(tmp_path, agents=()) as running:
        agent = await running.start_agent("one", models=[{"name": "gone", "path": tmp_path / "gone.gguf"}])
        await running.until_status(
            lambda status: any(w.code == "model_failed" for row in status.agents for w in row.warnings)
        )
        warning = next(w for w in agent.status().warnings if w.code == "model_failed")
        assert "There is no file" in warning.message
        async with await running.chat("hi") as answer:
            assert answer.status == 503


async def test_wrong_token_is_a_named_warning(tmp_path: Path) -> None:
    """The agent says what is wrong and what to do, and keeps trying."""
    async with fleet(tmp_path, agents=()) as running:
        agent = await running.start_agent("one", token="wrong")
        await running.until_status(lambda _: "token_refused" in {w.code for w in agent.status().warnings})
        assert agent.status().link.attempts >= 1
        assert not running.coordinator.status().agents


async def test_agent_keeps_its_identity_over_restarts(tmp_path: Path) -> None:
    """The same state directory, the same id."""
    async with fleet(tmp_path) as running:
        before = running.coordinator.status().agents[0].agent_id
        running.agents["one"].stop()
        await running.agent_tasks["one"]
        await running.start_agent("one")
        await running.until(ready=1)
        assert [row.agent_id for row in running.coordinator.status().agents] == [before]


async def test_draining_agent_finishes_its_request(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Told to stop, an agent ends what it runs before it leaves."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b", max_tokens=2))
        step = await control.next_phase()
        running.agents["one"].stop()
        await running.until_status(lambda status: status.agents[0].draining)
        step.answer()
        control.release()
        answer = await request
        assert (await answer.json())["choices"][0]["message"]["content"] == "a b "
        await running.agent_tasks["one"]


async def test_slow_expert_gets_less_work(tmp_path: Path) -> None:
    """The least predicted completion time wins among idle experts."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("slow", engine_argv=(*FAKE_EXPERT, "--decode-tokens-per-s", "10"))
        await running.start_agent("fast", engine_argv=(*FAKE_EXPERT, "--decode-tokens-per-s", "1000"))
        await running.until(ready=2)
        for _ in range(3):
            async with await running.chat("a b c") as answer:
                assert answer.headers["x-moe2-agent"] == "fast"


@pytest.mark.slow
async def test_a_time_limit_of_two_milliseconds_is_no_internal_error(tmp_path: Path) -> None:
    """Requests whose deadline is now or past end as such, by the hundred, and the agent keeps its link."""
    async with fleet(tmp_path, api={"request_timeout_s": 0.002}) as running:

        async def ask() -> int:
            async with await running.chat("a b c", max_tokens=3) as answer:
                await answer.read()
                return answer.status

        statuses = [status for _ in range(10) for status in await asyncio.gather(*(ask() for _ in range(20)))]
        assert 500 not in statuses
        await running.quiet()
        status = running.coordinator.status()
        assert status.dispatch.internal_errors == 0
        assert status.requests_finished == statuses.count(200)
        assert [row.connected for row in status.agents] == [True]
