"""A fleet under trouble: queues, late and failing experts, answers that break off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.common.link.messages import Hello, Report
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts
from moe2.common.link.wire import wire_codec
from moe2.coordinator.fleet.hub import AGENTS_PATH
from tests.fakes.control import ExpertControl, Step
from tests.fakes.fleet import FAKE_EXPERT, TOKEN, Fleet, fleet

pytestmark = pytest.mark.slow

FAST = ("--decode-tokens-per-s", "1000")
SLOW = ("--decode-tokens-per-s", "5")


def one_slot(root: Path, *, max_queue: int = 0) -> list[dict[str, Any]]:
    """An expert that has room for one request, and none that waits."""
    (root / "fake.gguf").touch()
    return [{"name": "fake", "path": root / "fake.gguf", "slots": 1, "max_queue": max_queue}]


async def until_waiting(running: Fleet, n: int) -> None:
    await running.until_status(lambda status: status.dispatch.waiting == n)


async def one_runs_and_one_waits(
    running: Fleet, control: ExpertControl
) -> tuple[asyncio.Task[aiohttp.ClientResponse], Step, asyncio.Task[aiohttp.ClientResponse]]:
    """A request that decodes "a", its next step, and a request for "b" that waits for its slot."""
    first = asyncio.create_task(running.chat("a", max_tokens=1))
    step = await control.next_phase()
    second = asyncio.create_task(running.chat("b", max_tokens=1))
    await until_waiting(running, 1)
    return first, step, second


# --- Admission --------------------------------------------------------------------------------------------------------


async def test_a_request_waits_for_room(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """It is answered when the one before it has ended, and its receipt tells how long it waited."""
    async with fleet(tmp_path, engine_argv=controlled, models=one_slot(tmp_path)) as running:
        first, step, second = await one_runs_and_one_waits(running, control)
        control.free = True
        step.answer()
        assert (await first).status == 200
        body = await (await second).json()
        assert body["choices"][0]["message"]["content"] == "b "
        assert body["moe2"]["seconds"]["admission"] > 0
        await running.quiet()
        assert running.coordinator.status().dispatch.waiting == 0


async def test_a_new_agent_makes_room(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """Who waits does not wait for the busy one only."""
    async with fleet(tmp_path, engine_argv=controlled, models=one_slot(tmp_path)) as running:
        first, step, second = await one_runs_and_one_waits(running, control)
        await running.start_agent("two", models=one_slot(tmp_path))
        answer = await second
        assert answer.headers["x-moe2-agent"] == "two"
        step.answer()
        control.release()
        await first


async def test_a_full_queue_is_429_with_a_computed_retry_after(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The longer the queue, the later."""
    slow = (*controlled, "--decode-tokens-per-s", "10")
    dispatch = {"max_queued": 3}
    async with fleet(tmp_path, engine_argv=slow, models=one_slot(tmp_path), dispatch=dispatch) as running:
        requests = [asyncio.create_task(running.chat("a", max_tokens=1))]
        step = await control.next_phase()
        for n in range(3):
            requests.append(asyncio.create_task(running.chat("a", max_tokens=1)))
            await until_waiting(running, n + 1)
        refused = await running.chat("b", max_tokens=1)
        body = await refused.json()
        assert (refused.status, body["error"]["code"]) == (429, "overloaded")
        retry_after_s = int(refused.headers["Retry-After"])
        assert retry_after_s >= 4
        assert "queue_full" in {warning.code for warning in running.coordinator.status().warnings}
        control.free = True
        step.answer()
        for request in requests:
            assert (await request).status == 200


async def test_who_leaves_while_waiting_leaves_nothing(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """No place is held, and the expert never hears of it."""
    async with fleet(tmp_path, engine_argv=controlled, models=one_slot(tmp_path)) as running:
        first, step, second = await one_runs_and_one_waits(running, control)
        second.cancel()
        await until_waiting(running, 0)
        step.answer()
        (await control.next_phase()).answer()
        assert (await first).status == 200
        await running.quiet()
        assert running.agents["one"].status().jobs_finished == 1


async def between_idle_and_busy(running: Fleet) -> float:
    """A latency budget that an idle expert keeps, with seconds to spare, and the busy one does not."""
    body = {"model": "moe2", "messages": [{"role": "user", "content": "b"}], "max_tokens": 1}
    async with running.http.post("/v1/moe2/plan", json={**body, "moe2": {"latency_budget_s": 1e-6}}) as answer:
        busy_s: float = (await answer.json())["offers"]["fastest"]["needs"]["delay_s"]
    return busy_s / 2


async def test_a_budget_that_only_load_breaks_waits(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """It is answered in time, once the expert is idle."""
    slow = (*controlled, "--decode-tokens-per-s", "1")
    async with fleet(tmp_path, engine_argv=slow, models=one_slot(tmp_path, max_queue=4)) as running:
        holder = asyncio.create_task(running.chat("a", max_tokens=1))
        step = await control.next_phase()
        budget_s = await between_idle_and_busy(running)
        tight = asyncio.create_task(running.chat("b", max_tokens=1, moe2={"latency_budget_s": budget_s}))
        await until_waiting(running, 1)
        control.free = True
        step.answer()
        answer = await tight
        assert answer.status == 200
        receipt = (await answer.json())["moe2"]
        assert receipt["exceeded"] == []
        assert receipt["seconds"]["admission"] > 0
        assert (await holder).status == 200


async def test_a_budget_that_only_load_breaks_is_503_where_nobody_waits(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """With offers, the cause, and when to come again; one that no load explains stays 422."""
    slow = (*controlled, "--decode-tokens-per-s", "1")
    models = one_slot(tmp_path, max_queue=4)
    async with fleet(tmp_path, engine_argv=slow, models=models, dispatch={"queue_s": 0}) as running:
        holder = asyncio.create_task(running.chat("a", max_tokens=1))
        step = await control.next_phase()
        budget_s = await between_idle_and_busy(running)
        for limit_s, status, code in ((budget_s, 503, "infeasible_now"), (1e-6, 422, "infeasible_budget")):
            async with await running.chat("b", max_tokens=1, moe2={"latency_budget_s": limit_s}) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (status, code)
                assert error["offers"]["fastest"]["needs"]["delay_s"] > limit_s
                assert ("load is the cause" in error["message"]) == (status == 503)
                assert ("Retry-After" in answer.headers) == (status == 503)
        control.free = True
        step.answer()
        assert (await holder).status == 200


async def test_shutting_down_ends_the_wait_with_a_retryable_error(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """While the running request is given its time."""
    async with fleet(tmp_path, engine_argv=controlled, models=one_slot(tmp_path)) as running:
        first, step, second = await one_runs_and_one_waits(running, control)
        running.coordinator.stop()
        refused = await second
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["Retry-After"]) >= 1
        step.answer()
        control.release()
        assert (await first).status == 200


async def test_who_waits_for_agents_that_leave_is_told(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """503 at once, and not after the longest wait."""
    async with fleet(tmp_path, engine_argv=controlled, models=one_slot(tmp_path)) as running:
        first = asyncio.create_task(running.chat("a", max_tokens=1))
        await control.next_phase()
        second = asyncio.create_task(running.chat("b", max_tokens=1))
        await until_waiting(running, 1)
        running.agent_tasks["one"].cancel()
        refused = await second
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "no_live_expert")
        assert (await first).status == 502


# --- Budgets ----------------------------------------------------------------------------------------------------------


async def test_a_budget_that_passes_without_a_token_is_an_error(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """And the expert is stopped."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        refused = await running.chat("a", max_tokens=1, moe2={"ttft_budget_s": 0.2})
        assert (refused.status, (await refused.json())["error"]["code"]) == (504, "budget_exceeded")
        control.release()
        await running.quiet()
        assert running.coordinator.status().requests_failed == 1


@pytest.mark.slow
async def test_a_strict_stream_ends_with_its_budget(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """As an error event, without the end marker."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        # Long enough for a first token, also where the machine has other work.
        wish = {"latency_budget_s": 3.0, "strict": True}
        request = asyncio.create_task(running.chat("a b c", max_tokens=3, stream=True, moe2=wish))
        for _ in range(2):
            (await control.next_phase()).answer()
        answer = await request
        events = (await answer.read()).decode().strip().split("\n\n")
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["error"]["code"] == "budget_exceeded"
        assert last["moe2"]["exceeded"] == ["latency_budget_s"]


# --- Late and failing experts -----------------------------------------------------------------------------------------


async def test_a_late_experts_request_is_hedged(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The second expert answers, the first one is stopped, and its work is accounted as hedged."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("late", engine_argv=(*controlled, *FAST))
        await running.start_agent("steady", engine_argv=(*FAKE_EXPERT, *SLOW))
        await running.until(ready=2)
        request = asyncio.create_task(running.chat("a b", max_tokens=2))
        step = await control.next_phase()
        answer = await request
        assert answer.headers["x-moe2-agent"] == "steady"
        step.answer()
        control.release()
        await running.quiet()
        assert running.coordinator.status().dispatch.hedges_won == 1
        async with running.http.get("/metrics") as metrics:
            text = await metrics.text()
        assert 'moe2_hedges_total{result="won"} 1.0' in text
        assert 'model="fake",outcome="hedged"' in text


async def test_a_fast_failing_expert_loses_its_traffic(tmp_path: Path) -> None:
    """It is always free and looks fastest; after three failures it gets no more, and everybody is told why."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("failing", engine_argv=(*FAKE_EXPERT, *FAST, "--failing"))
        await running.start_agent("steady", engine_argv=(*FAKE_EXPERT, *SLOW))
        await running.until(ready=2)
        tried = []
        for _ in range(5):
            async with await running.chat("a b", max_tokens=2) as answer:
                assert answer.status == 200
                tried.append([line["agent"] for line in (await answer.json())["moe2"]["experts"]])
        assert tried == [["failing", "steady"]] * 3 + [["steady"]] * 2
        status = running.coordinator.status()
        states = {row.expert.partition("/")[2]: row.state for row in status.dispatch.breakers if row.state != "closed"}
        assert states == {"fake": "open"}
        assert "breaker_open" in {warning.code for warning in status.warnings}
        body = {"model": "moe2", "messages": [{"role": "user", "content": "a"}]}
        async with running.http.post("/v1/moe2/plan", json=body) as plan:
            reasons = [row["reason"] or "" for row in (await plan.json())["decision"]["experts"]]
        assert any("breaker is open" in reason for reason in reasons)
        async with running.http.get("/metrics") as metrics:
            assert 'model="fake",state="open"} 1.0' in await metrics.text()


async def test_with_breakers_off_nobody_loses_traffic(tmp_path: Path) -> None:
    """For who trusts the failover alone."""
    async with fleet(tmp_path, agents=(), dispatch={"breakers": False}) as running:
        await running.start_agent("failing", engine_argv=(*FAKE_EXPERT, *FAST, "--failing"))
        await running.start_agent("steady", engine_argv=(*FAKE_EXPERT, *SLOW))
        await running.until(ready=2)
        for _ in range(4):
            async with await running.chat("a b", max_tokens=2) as answer:
                assert len((await answer.json())["moe2"]["experts"]) == 2


async def test_an_expert_that_only_fails_is_503_until_it_may_be_tried(tmp_path: Path) -> None:
    """With nobody else there, its breaker says when to come again."""
    async with fleet(tmp_path, engine_argv=(*FAKE_EXPERT, "--failing")) as running:
        for _ in range(3):
            async with await running.chat("a") as answer:
                assert answer.status == 500
        async with await running.chat("a") as refused:
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "no_live_expert")
            assert 1 <= int(refused.headers["Retry-After"]) <= 5


async def test_a_hung_engine_stalls_nobody_else(tmp_path: Path) -> None:
    """Stopped by SIGSTOP, its link is alive and it has room; hedges answer in its place until its breaker opens."""
    async with fleet(tmp_path, agents=(), dispatch={"hedge_share": 1.0}) as running:
        hung = await running.start_agent("hung", engine_argv=(*FAKE_EXPERT, *FAST))
        await running.start_agent("steady", engine_argv=(*FAKE_EXPERT, *SLOW))
        await running.until(ready=2)
        pid = hung.engine_pids()["fake"]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            tried = []
            for _ in range(5):
                async with await running.chat("a b", max_tokens=2) as answer:
                    assert (answer.status, answer.headers["x-moe2-agent"]) == (200, "steady")
                    tried.append([line["agent"] for line in (await answer.json())["moe2"]["experts"]])
            assert tried == [["hung", "steady"]] * 3 + [["steady"]] * 2
        finally:
            os.kill(pid, signal.SIGKILL)
        await running.quiet()


async def test_a_link_that_takes_nothing_stalls_nobody_else(tmp_path: Path) -> None:
    """Megabytes for an agent that does not read wait for it alone."""
    codec = wire_codec()
    hello = Hello(protocol_min=1, protocol_max=2, agent_id="agent-stuck", agent_name="stuck", agent_version="0")
    expert = ExpertReport(
        model="stuck", state=ExpertState.READY, context_tokens=10_000_000, slots=16, has_chat_template=True
    )
    host = HostFacts(hostname="stuck", system="s", architecture="a")
    async with fleet(tmp_path) as running, aiohttp.ClientSession() as http:
        url = f"{running.coordinator.agents_url}{AGENTS_PATH}"
        async with http.ws_connect(url, headers={"Authorization": f"Bearer {TOKEN}"}, autoping=False) as stuck:
            await stuck.send_bytes(codec.encode(hello))
            await stuck.receive()
            await stuck.send_bytes(codec.encode(Report(seq=1, host=host, experts=(expert,))))
            await running.until(ready=2)
            connection = stuck._response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.pause_reading()
            try:
                large = "a " * 400_000
                held = [asyncio.create_task(running.chat(large, model="stuck")) for _ in range(12)]
                await running.until_status(lambda status: status.requests_active == 12)
                for _ in range(3):
                    async with await running.chat("a b", model="fake", max_tokens=2) as answer:
                        assert answer.status == 200
            finally:
                connection.transport.abort()
            assert [(await request).status for request in held] == [502] * 12


# --- Resuming and affinity --------------------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_resumed(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The stream goes on without a gap or a word twice, and both experts are on the receipt."""
    async with fleet(tmp_path, agents=(), dispatch={"hedging": False}) as running:
        await running.start_agent("dying", engine_argv=(*controlled, *FAST), profile="agx-orin-maxn")
        await running.start_agent("steady", engine_argv=(*FAKE_EXPERT, *SLOW), profile="agx-orin-maxn")
        await running.until(ready=2)
        request = asyncio.create_task(running.chat("a b c d e", max_tokens=5, stream=True, moe2={"resume": True}))
        for _ in range(3):
            (await control.next_phase()).answer()
        answer = await request
        (await control.next_phase()).answer("crash")
        lines = (await answer.read()).decode().strip().split("\n\n")
        assert lines[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
        assert text == "a b c d e "
        receipt = next(chunk["moe2"] for chunk in chunks if "moe2" in chunk)
        assert [(line["agent"], line["outcome"]) for line in receipt["experts"]] == [
            ("dying", "broken_off"),
            ("steady", "answered"),
        ]
        assert receipt["tokens"]["decoded"] == 5
        assert running.coordinator.status().dispatch.resumed == 1
        broken_j, answered_j = (line["energy"]["joules"] for line in receipt["experts"])
        assert broken_j > 0
        assert receipt["energy"]["joules"] == pytest.approx(broken_j + answered_j)
        async with running.http.get("/metrics") as scraped:
            samples = (await scraped.text()).splitlines()
        causes = {
            line.partition('cause="')[2].partition('"')[0]
            for line in samples
            if line.startswith("moe2_energy_joules_total{")
        }
        assert causes == {"broken_off", "answered"}
        async with running.http.get("/v1/moe2/ledger", params={"by": "outcome"}) as told:
            [row] = (await told.json())["sums"]
        assert (row["useful_j"], row["wasted_j"]) == (pytest.approx(broken_j + answered_j), {})


async def test_a_conversation_goes_on_where_its_beginning_is_cached(tmp_path: Path) -> None:
    """With the expert that answered its first turn, though the other one reads a little faster."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("usual", engine_argv=(*FAKE_EXPERT, "--prefill-tokens-per-s", "10"))
        await running.start_agent("other", engine_argv=(*FAKE_EXPERT, "--prefill-tokens-per-s", "9"))
        await running.until(ready=2)
        agent_id = next(row.agent_id for row in running.coordinator.status().agents if row.agent_name == "other")
        turns = [{"role": "user", "content": "Tell me of a b c d e f"}]
        for model, answered_by in ((f"{agent_id}/fake", "other"), ("moe2", "other")):
            body = {"model": model, "messages": turns, "max_tokens": 2}
            async with running.http.post("/v1/chat/completions", json=body) as answer:
                assert answer.headers["x-moe2-agent"] == answered_by
                said = (await answer.json())["choices"][0]["message"]["content"]
            await running.quiet()
            turns += [{"role": "assistant", "content": said}, {"role": "user", "content": "More"}]
        async with await running.chat("Quite another conversation", max_tokens=2) as answer:
            assert answer.headers["x-moe2-agent"] == "usual"
