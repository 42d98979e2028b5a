"""Waiting in an expert's own queue, behind answers that are longer than was predicted."""

from __future__ import annotations

import asyncio

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import JobStarted, JobUsage
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Completed, EnterQueue, Failed
from tests.coordinator.lives import EXPERTS, LifeBench, outcomes, stopped, submitted
from tests.coordinator.serving.test_service import ServiceBench
from tests.virtualclock import on_virtual_clock

BEHIND_OTHERS = events.WaitsBehindOthers("req-1.0")


def queued(*experts: Expert, queue_s: float = 30.0) -> LifeBench:
    """A request in an expert's own queue for ten seconds."""
    life = LifeBench(*experts, queue_s=queue_s).admitted()
    life.now_s = 110.5
    return life


def test_a_job_that_waits_behind_others_is_taken_back() -> None:
    """Its request waits here, where the first one to fall free has it, the one that it waited for as well."""
    life = queued(EXPERTS[0])
    effects = life.do(BEHIND_OTHERS)
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert effects[-1] == EnterQueue()
    life.done("cancelled", usage=JobUsage())
    life.now_s = 113.0
    assert submitted(life.room()) == ["req-1.1"]
    life.tokens("a", attempt=1)
    [outcome] = outcomes(life.done(attempt=1))
    assert isinstance(outcome, Completed)
    assert [attempt.state for attempt in life.life.attempts] == [AttemptState.CANCELLED, AttemptState.ANSWERED]


def test_waiting_there_is_waiting() -> None:
    """The queue's limit holds for both together, and what ends it is the refusal of who waited here."""
    life = queued(EXPERTS[0])
    life.do(BEHIND_OTHERS)
    life.done("cancelled", usage=JobUsage())
    assert life.life.next_deadline_s == 130.5
    [outcome] = outcomes(life.at_next())
    assert outcome == Failed(ErrorCode.OVERLOADED, "No expert had room for the request within 30.5 s.")


def test_who_may_not_wait_longer_is_refused_at_once() -> None:
    """As without a queue."""
    for queue_s in (0.0, 10.0):
        effects = queued(EXPERTS[0], queue_s=queue_s).do(BEHIND_OTHERS)
        assert stopped(effects) == [("agent-1", "req-1.0")]
        [outcome] = outcomes(effects)
        assert isinstance(outcome, Failed)
        assert outcome.code == ErrorCode.OVERLOADED


def test_a_job_that_has_begun_is_left_where_it_is() -> None:
    """A long prompt takes its time; and one that others try, too, has no need."""
    begun = queued(EXPERTS[0])
    begun.do(events.AttemptStarted(JobStarted(job_id="req-1.0", prompt_tokens=3, queue_s=0.0)))
    tried_twice = LifeBench(hedges=1, queue_s=30.0).admitted()
    tried_twice.at_next()
    assert len(tried_twice.life.attempts) == 2
    ended = queued(EXPERTS[0])
    ended.gone()
    for life in (begun, tried_twice, ended):
        assert life.do(BEHIND_OTHERS) == []
    assert begun.do(events.WaitsBehindOthers("req-1.7")) == []


@on_virtual_clock
async def test_nobody_waits_without_end_behind_long_answers() -> None:
    """Who lies in the queue of an expert that works on others is taken back, and answered or refused in time."""
    bench = ServiceBench(hedging=False)
    bench.join("agent-1", max_queue=4)
    bench.ask("endless")
    asked = [bench.ask(f"q{n}") for n in range(4)]
    ended: dict[int, float] = {}
    for second in range(60):
        bench.token("endless.0")
        for job_id in bench.cancelled:
            await bench.done(job_id, "cancelled")
        bench.cancelled.clear()
        await asyncio.sleep(1)
        ended |= {n: second for n, each in enumerate(asked) if n not in ended and each.life.outcome is not None}
    assert {type(each.life.outcome) for each in asked} == {Failed}
    assert {each.life.outcome.code for each in asked if isinstance(each.life.outcome, Failed)} == {ErrorCode.OVERLOADED}
    assert max(ended.values()) <= 30 + 10
    assert bench.open_breakers() == []
