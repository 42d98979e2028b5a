"""The service: what requests do to each other, on a clock that only jumps."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import (
    CancelJob,
    FromAgent,
    JobDone,
    JobFailed,
    JobPieces,
    Submit,
    ToAgent,
    TokenPiece,
    Tokens,
)
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.request import Wish
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.ledger.accounts import Accounts
from moe2.coordinator.ledger.store import Ledger
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.effects import Completed, Failed
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.settings import DispatchSection
from tests.coordinator.experts import expert_report, hello, report, request, selector, speed
from tests.coordinator.lives import USAGE
from tests.virtualclock import on_virtual_clock


class ServiceBench:
    """A service with agents that do what the test says. Each has one expert `m` with one slot and no queue."""

    def __init__(self, *agents: str, **settings: Any) -> None:
        self.table = CapabilityTable(stale_s=1e6, evict_s=1e6)
        self.jobs: list[Submit] = []
        self.cancelled: list[str] = []
        self.receipts: list[Receipt] = []
        self.service = Service(
            self.table,
            selector(),
            send=self._send,
            max_active=100,
            # A ledger that is not opened keeps nothing.
            bookkeeper=Bookkeeper(Accounts(), Ledger(Path("unused"), retention_days=1), clock=lambda: 0.0),
            on_retired=lambda _, receipt: self.receipts.append(receipt),
            settings=DispatchSection(**{"affinity": False, **settings}),
        )
        self._agents: dict[str, str] = {}
        self._restarts: Counter[str] = Counter()
        self._fields: dict[str, dict[str, Any]] = {}
        for agent_id in agents:
            self.join(agent_id)

    def join(self, agent_id: str, **fields: Any) -> None:
        now_s = asyncio.get_running_loop().time()
        self.table.agent_joined(hello(agent_id), now_s)
        self._fields[agent_id] = {name: value for name, value in fields.items() if name != "state"}
        restarts = self._restarts[agent_id]
        expert = expert_report(**{"slots": 1, "max_queue": 0, "restarts": restarts, **fields})
        self.table.agent_reported(agent_id, report(expert), now_s)
        self.service.fleet_changed()

    def _send(self, agent_id: str, message: ToAgent) -> bool:
        match message:
            case Submit():
                self.jobs.append(message)
                self._agents[message.job_id] = agent_id
            case CancelJob(job_id=job_id):
                self.cancelled.append(job_id)
        return True

    def ask(self, request_id: str, *, key: str | None = None, **fields: Any) -> Exchange:
        now_s = asyncio.get_running_loop().time()
        principal = Principal(key_id=key)
        times = {"arrived_s": now_s, "deadline_s": now_s + 600.0}
        return self.service.begin(request(request_id=request_id, principal=principal, **{**times, **fields}))

    @property
    def working(self) -> list[str]:
        """Requests that were given to an expert, in that order."""
        return [job.request_id for job in self.jobs]

    def agent_of(self, job_id: str) -> str:
        return self._agents[job_id]

    def _said(self, job_id: str, message: FromAgent) -> None:
        self.service.agent_said(self._agents[job_id], message)

    def token(self, job_id: str) -> None:
        self._said(job_id, Tokens(jobs=(JobPieces(job_id, (TokenPiece("a"),)),)))

    async def done(self, job_id: str, reason: str = "stop") -> None:
        self._said(job_id, JobDone(job_id=job_id, reason=reason, usage=USAGE))
        await asyncio.sleep(0)

    async def failed(self, job_id: str, code: str = "internal", *, in_batch: bool | None = None) -> None:
        self._said(job_id, JobFailed(job_id=job_id, code=code, message="No.", usage=USAGE, in_batch=in_batch))
        await asyncio.sleep(0)

    async def engine_died(self, agent_id: str, *, in_batch: tuple[str, ...], queued: tuple[str, ...] = ()) -> None:
        """With these jobs; its agent reports it first."""
        self._restarts[agent_id] += 1
        self.join(agent_id, **self._fields[agent_id], state=ExpertState.RESTARTING)
        for job_id in (*in_batch, *queued):
            await self.failed(job_id, "engine_crashed", in_batch=job_id in in_batch)

    async def engine_back(self, agent_id: str) -> None:
        self.join(agent_id, **self._fields[agent_id])
        await asyncio.sleep(0)

    def given_to(self, agent_id: str) -> list[str]:
        """Jobs that this agent was given, in that order."""
        return [job.job_id for job in self.jobs if self._agents[job.job_id] == agent_id]

    def open_breakers(self) -> list[str]:
        return [row.expert for row in self.service.status().breakers if row.state == "open"]


@on_virtual_clock
async def test_keys_take_turns() -> None:
    """An app with many requests delays another one's by one request and not by all of them."""
    bench = ServiceBench("agent-1")
    for n in range(4):
        bench.ask(f"a{n}", key="a")
    bench.ask("b0", key="b")
    for n in range(5):
        await bench.done(bench.jobs[n].job_id)
    assert bench.working == ["a0", "a1", "b0", "a2", "a3"]
    assert len(bench.receipts) == 5


@on_virtual_clock
async def test_who_has_waited_comes_before_who_has_just_arrived() -> None:
    """Also where both are told in the same turn of the loop."""
    bench = ServiceBench("agent-1")
    for request_id in ("first", "waiting"):
        bench.ask(request_id)
    bench.service.agent_said("agent-1", JobDone(job_id="first.0", reason="stop", usage=USAGE))
    bench.ask("newcomer")
    assert bench.working == ["first", "waiting"]


@on_virtual_clock
async def test_an_agent_that_joins_serves_who_waits() -> None:
    """At once, and not when the busy one has ended."""
    bench = ServiceBench("agent-1")
    for request_id in ("first", "waiting"):
        bench.ask(request_id)
    bench.join("agent-2")
    await asyncio.sleep(0)
    assert bench.agent_of("waiting.0") == "agent-2"


@on_virtual_clock
async def test_an_agent_that_is_lost_with_all_that_waits_for_it() -> None:
    """Its own request failed, and who waited has nobody left to wait for."""
    bench = ServiceBench("agent-1")
    exchanges = [bench.ask(request_id) for request_id in ("first", "waiting")]
    bench.table.agent_left("agent-1", 0.0)
    bench.service.agent_lost("agent-1")
    await asyncio.sleep(0)
    outcomes = [(await exchange.receive_all())[1] for exchange in exchanges]
    assert [outcome.code for outcome in outcomes if isinstance(outcome, Failed)] == ["agent_lost", "no_live_expert"]
    assert (bench.service.n_active, bench.service.status().waiting) == (0, 0)


@on_virtual_clock
async def test_who_is_displaced_is_told() -> None:
    """The newest of the key that fills the queue; 429 with the time that its queue takes."""
    bench = ServiceBench("agent-1", max_queued=3)
    greedy = [bench.ask(f"a{n}", key="a") for n in range(4)]
    bench.ask("b0", key="b")
    _, outcome = await greedy[-1].receive_all()
    assert isinstance(outcome, Failed)
    assert outcome.code == "overloaded"
    assert greedy[-1].retry_after_s is not None
    assert bench.service.status().waiting == 3
    assert bench.service.status().queue_refused == 1


@on_virtual_clock
async def test_nobody_is_given_a_second_expert_while_others_have_none() -> None:
    """A hedge may take the place that somebody waits for, or will."""
    for others, n_jobs in ((0, 2), (1, 1)):
        bench = ServiceBench("agent-1", hedge_share=1.0)
        bench.ask("late")
        # It waits for an expert that has no room for it: its prompt is for the other one, which is busy, too.
        bench.join("agent-2", model="n")
        for n in range(1 + others):
            bench.ask(f"n{n}", model="n")
        bench.join("agent-3")
        await asyncio.sleep(5)
        assert len([job for job in bench.jobs if job.request_id == "late"]) == n_jobs


@pytest.mark.parametrize("is_sent", [True, False])
@on_virtual_clock
async def test_a_hedge_counts_once_its_job_is_sent(is_sent: bool) -> None:
    """The ration is used up by a second expert's job that goes out, and not by one whose agent cannot be reached."""
    bench = ServiceBench("agent-1", "agent-2", hedge_share=0.05)
    bench.ask("late")
    with pytest.MonkeyPatch.context() as patch:
        if not is_sent:
            patch.setattr(bench.service, "_send", lambda agent_id, message: False)
        await asyncio.sleep(5)
    assert len(bench.jobs) == 1 + is_sent
    assert bench.service._hedges.has_one is not is_sent


@on_virtual_clock
async def test_an_expert_that_says_nothing_loses_its_traffic() -> None:
    """Its request goes to another one, without the leave that a hedge needs."""
    bench = ServiceBench("agent-1", "agent-2", hedging=False)
    bench.ask("r")
    await asyncio.sleep(11)
    assert bench.open_breakers() == ["agent-1/m"]
    assert [bench.agent_of(job.job_id) for job in bench.jobs] == ["agent-1", "agent-2"]


@on_virtual_clock
async def test_an_expert_that_works_on_others_does_not_hang() -> None:
    """Its queue only moves more slowly than was predicted."""
    bench = ServiceBench(hedging=False)
    bench.join("agent-1", max_queue=4)
    bench.ask("slow")
    bench.ask("queued")
    for _ in range(12):
        bench.token("slow.0")
        await asyncio.sleep(1)
    assert bench.open_breakers() == []


@on_virtual_clock
async def test_a_breaker_that_lets_a_probe_through_serves_who_waits() -> None:
    """Nobody reports that; time does."""
    bench = ServiceBench("agent-1", "agent-2")
    for n in range(3):
        exchange = bench.ask(f"f{n}")
        await bench.failed(f"f{n}.0")
        await bench.done(f"f{n}.1")
        _, outcome = await exchange.receive_all()
        assert isinstance(outcome, Completed)
    assert bench.open_breakers() == ["agent-1/m"]
    bench.ask("holds")
    waiting = bench.ask("waits")
    assert bench.service.status().waiting == 1
    await asyncio.sleep(5.1)
    assert bench.working[-2:] == ["holds", "waits"]
    assert bench.agent_of("waits.0") == "agent-1"
    await bench.done("waits.0")
    await waiting.receive_all()
    assert bench.open_breakers() == []


@on_virtual_clock
async def test_a_failing_expert_is_told_from_a_failing_request() -> None:
    """What blames the request opens no breaker."""
    bench = ServiceBench("agent-1")
    for n in range(5):
        bench.ask(f"r{n}")
        await bench.failed(f"r{n}.0", "invalid_request")
    assert bench.open_breakers() == []


@on_virtual_clock
async def test_unconfirmed_cancellations_are_the_experts_fault() -> None:
    """Whoever does not even stop hangs."""
    bench = ServiceBench("agent-1")
    bench.ask("r")
    bench.service.client_gone("r")
    assert bench.cancelled == ["r.0"]
    assert bench.open_breakers() == []
    await asyncio.sleep(11)
    assert bench.open_breakers() == ["agent-1/m"]
    assert len(bench.receipts) == 1


@on_virtual_clock
async def test_a_job_that_nobody_knows_any_more_is_stopped_once() -> None:
    """Its agent has not confirmed the first cancellation in time, and goes on writing; another one that is at work for
    somebody is left alone."""
    bench = ServiceBench("agent-1", "agent-2")
    bench.ask("r")
    bench.ask("wanted")
    bench.service.client_gone("r")
    bench.token("r.0")
    assert bench.cancelled == ["r.0"], "it may not have heard of it yet"
    await asyncio.sleep(11)
    for _ in range(3):
        bench.token("r.0")
        bench.token("wanted.0")
    assert bench.cancelled == ["r.0", "r.0"]
    await bench.done("r.0", "cancelled")
    assert len(bench.receipts) == 1


@on_virtual_clock
async def test_an_agent_has_no_say_in_the_jobs_of_others() -> None:
    """What it claims to work on there it is told to stop; the request waits for its own expert."""
    bench = ServiceBench("agent-1", "agent-2")
    exchange = bench.ask("r")
    stranger = "agent-2" if bench.agent_of("r.0") == "agent-1" else "agent-1"
    bench.service.agent_said(stranger, Tokens(jobs=(JobPieces("r.0", (TokenPiece("forged"),)),)))
    bench.service.agent_said(stranger, JobFailed(job_id="r.0", code="internal", message="No."))
    assert bench.cancelled == ["r.0"]
    bench.token("r.0")
    await bench.done("r.0")
    pieces, outcome = await exchange.receive_all()
    assert [piece.text for piece in pieces] == ["a"]
    assert isinstance(outcome, Completed)


# --- Budgets that only load breaks ------------------------------------------------------------------------------------

ROOMY: dict[str, Any] = {"max_queue": 4, "latency": speed(1000.0, 100.0, slots=1)}
"""0.2 s for a request alone, a slot a second."""
TIGHT = Wish(latency_budget_s=2.0)


@on_virtual_clock
async def test_a_tight_budget_waits_for_the_queue_before_it() -> None:
    """Behind two others it would take 2.2 s; 0.2 s are kept if both have ended after 1.5 s, and not after one has."""
    bench = ServiceBench()
    bench.join("agent-1", **ROOMY)
    for request_id in ("first", "second"):
        bench.ask(request_id)
    bench.ask("tight", wish=TIGHT)
    await asyncio.sleep(1.0)
    await bench.done("first.0")
    assert bench.service.status().waiting == 1
    await asyncio.sleep(0.5)
    await bench.done("second.0")
    assert bench.working == ["first", "second", "tight"]
    await bench.done("tight.0")
    assert bench.receipts[-1].seconds.admission == 1.5
    assert bench.receipts[-1].exceeded == ()


@on_virtual_clock
async def test_a_tight_budget_waits_no_longer_than_it_makes_sense() -> None:
    """After 1.8 s even an idle expert would be too late; it learns when to come again, and others go on."""
    bench = ServiceBench()
    bench.join("agent-1", **ROOMY)
    for request_id in ("first", "second"):
        bench.ask(request_id)
    exchange = bench.ask("tight", wish=TIGHT)
    _, outcome = await exchange.receive_all()
    assert asyncio.get_running_loop().time() == pytest.approx(1.8)
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.INFEASIBLE_NOW
    assert "load is the cause" in outcome.message
    assert exchange.retry_after_s == 2.0
    assert (bench.service.n_active, bench.service.status().waiting) == (2, 0)
    assert bench.receipts[-1].experts == ()


@on_virtual_clock
async def test_who_waits_learns_that_it_waits_for_less() -> None:
    """With room that turns out to be none for it comes a nearer end of its wait."""
    bench = ServiceBench("agent-1")
    bench.ask("first")
    exchange = bench.ask("waiting")
    await asyncio.sleep(1.0)
    refusal = NoExpert(ErrorCode.INFEASIBLE_NOW, "Its load is the cause.", waits_s=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.service._chooser, "choose", lambda *_, **__: refusal)
        bench.join("agent-2")
        _, outcome = await exchange.receive_all()
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.INFEASIBLE_NOW


@on_virtual_clock
async def test_without_a_place_to_wait_a_tight_budget_is_refused_at_once() -> None:
    """For the same reason, and not because the queue is full."""
    bench = ServiceBench(queue_s=0.0)
    bench.join("agent-1", **ROOMY)
    for request_id in ("first", "second"):
        bench.ask(request_id)
    _, outcome = await bench.ask("tight", wish=TIGHT).receive_all()
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.INFEASIBLE_NOW
