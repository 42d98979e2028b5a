"""The service where its own code raises: one request ends, nothing else is touched. And on uvloop, as users run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from moe2.common.errors import JobErrorCode
from moe2.coordinator.runtime import EventLoop
from moe2.coordinator.serving.effects import HANDLING_FAILED, Completed, Failed
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.life import Lifecycle
from tests.coordinator.serving.test_service import ServiceBench
from tests.virtualclock import on_virtual_clock


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Tracebacks of what is meant to raise are not drawn: with all locals, each takes a second."""
    with capture_logs():
        yield


def run_on_uvloop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test as the coordinator runs itself."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(test())


async def failure(exchange: Exchange) -> Failed:
    """The error that the request's client gets."""
    _, outcome = await exchange.receive_all()
    assert isinstance(outcome, Failed)
    return outcome


@pytest.mark.parametrize("left_s", [0.0, -1.0, 1e-6, 4e-4, 2e-3])
def test_a_deadline_that_is_now_ends_a_request_in_order(left_s: float) -> None:
    """uvloop hands out a plain handle, without a time, for a moment that is now or past: the alarm keeps its own."""

    async def test() -> None:
        bench = ServiceBench("agent-1")
        now_s = asyncio.get_running_loop().time()
        asked = bench.ask("late", deadline_s=now_s + left_s)
        assert (await failure(asked)).code == JobErrorCode.DEADLINE_EXCEEDED
        for job in bench.jobs:
            await bench.done(job.job_id, "cancelled")
        assert bench.service.n_active == 0
        assert len(bench.receipts) == 1

    run_on_uvloop(test)


def test_words_from_an_agent_at_the_deadline_reach_the_request() -> None:
    """A token that comes when the time is up is handled like any other: nothing is raised into the agent's link."""

    async def test() -> None:
        bench = ServiceBench("agent-1")
        now_s = asyncio.get_running_loop().time()
        for n in range(20):
            asked = bench.ask(f"req-{n}", deadline_s=now_s + 1e-4 * n)
            job = bench.jobs[-1] if bench.jobs and bench.jobs[-1].request_id == f"req-{n}" else None
            if job is not None:
                bench.token(job.job_id)
                await bench.done(job.job_id)
            await asked.receive_all()
        assert bench.service.n_active == 0
        assert bench.service.totals.internal_errors == 0

    run_on_uvloop(test)


@on_virtual_clock
async def test_the_log_says_why_a_request_failed() -> None:
    """An operator sees of each request what became of it, and of a failed one why."""
    bench = ServiceBench("agent-1")
    with capture_logs() as logs:
        asked = bench.ask("req")
        bench.service.agent_lost("agent-1")
        await failure(asked)
    ended = [entry for entry in logs if entry["event"] == "request_ended"]
    assert [(entry["outcome"], entry["reason"]) for entry in ended] == [("failed", JobErrorCode.AGENT_LOST)]


class BrokenError(Exception):
    """What the tests make the service's own code raise."""


def breaks(*_: Any, **__: Any) -> Any:
    raise BrokenError


@pytest.mark.parametrize(
    "members",
    [
        {"handle": breaks},
        {"hurries": property(breaks)},
        {"hurries": True, "next_deadline_s": property(breaks)},
    ],
)
@on_virtual_clock
async def test_a_lifecycle_that_raises_costs_its_own_request_only(members: dict[str, Any]) -> None:
    """Its client gets an internal error and it leaves every table; the request beside it is answered."""
    bench = ServiceBench("agent-1", "agent-2")
    doomed, other = bench.ask("doomed"), bench.ask("other")
    job, other_job = bench.jobs
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        broken = type("BrokenLife", (Lifecycle,), members)
        patch.setattr(doomed.life, "__class__", broken)
        bench.token(job.job_id)
        bench.service.agent_lost(bench.agent_of(job.job_id))
        assert (await failure(doomed)).code == JobErrorCode.INTERNAL
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"].count("request_broken") == 1
    await bench.done(other_job.job_id)
    assert isinstance((await other.receive_all())[1], Completed)
    assert bench.service.n_active == 0
    assert bench.service.totals.internal_errors == 1


@on_virtual_clock
async def test_one_exception_is_a_failure_in_order() -> None:
    """An event that cannot be handled stops the request's jobs, and what they consumed is still waited for."""
    bench = ServiceBench("agent-1")
    asked = bench.ask("req")
    (job,) = bench.jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked, "deliver", breaks)
        bench.token(job.job_id)
    assert bench.cancelled == [job.job_id]
    assert await failure(asked) == HANDLING_FAILED
    assert bench.service.n_active == 1
    await bench.done(job.job_id, "cancelled")
    assert bench.service.n_active == 0
    (receipt,) = bench.receipts
    assert receipt.energy.joules is not None
    assert (bench.service.totals.failed, bench.service.totals.finished) == (1, 0)


@pytest.mark.parametrize("effect", ["_bookkeeper.retired", "_bookkeeper.concluded", "_queue.retry_after_s", "_arm"])
@on_virtual_clock
async def test_books_that_raise_leave_no_request_behind(effect: str) -> None:
    """Whichever effect of a request's end raises: its client hears of a failure and the next request finds room."""
    bench = ServiceBench("agent-1", hedging=False)
    asked = bench.ask("req")
    (job,) = bench.jobs
    *path, name = effect.split(".")
    holder = getattr(bench.service, path[0]) if path else bench.service
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, breaks)
        if effect in ("_bookkeeper.concluded", "_arm"):
            # They are asked where an outcome comes before the usage.
            bench.service.client_gone("req")
        await bench.done(job.job_id)
    assert isinstance((await asked.receive_all())[1], Failed)
    assert bench.service.n_active == 0
    assert bench.service.totals.internal_errors == 1
    assert (bench.service.totals.finished, bench.service.totals.cancelled, bench.service.totals.failed) == (0, 0, 1)
    follower = bench.ask("next")
    await bench.done(bench.jobs[-1].job_id)
    assert isinstance((await follower.receive_all())[1], Completed)


@on_virtual_clock
async def test_learning_that_raises_costs_no_answer() -> None:
    """What is learned from a request comes after its books: the client keeps its answer, the error is counted."""
    bench = ServiceBench("agent-1")
    asked = bench.ask("req")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.service, "_learn_affinity", breaks)
        await bench.done(bench.jobs[0].job_id)
    assert isinstance((await asked.receive_all())[1], Completed)
    assert bench.service.n_active == 0
    assert bench.service.totals.internal_errors == 1


@on_virtual_clock
async def test_a_choice_that_raises_costs_its_own_request_only() -> None:
    """Where experts cannot be chosen for a request, its client gets an internal error and the next one is answered."""
    bench = ServiceBench("agent-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.service._chooser, "choose", breaks)
        assert await failure(bench.ask("doomed")) == HANDLING_FAILED
    assert (bench.service.n_active, bench.service.totals.internal_errors) == (0, 1)
    follower = bench.ask("next")
    await bench.done(bench.jobs[-1].job_id)
    assert isinstance((await follower.receive_all())[1], Completed)
