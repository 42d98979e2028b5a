"""Performs what the requests' lifecycles decide: sends jobs, delivers tokens, keeps their deadlines."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from moe2.common.messages import (
    CancelJob,
    FromAgent,
    JobDone,
    JobFailed,
    JobScored,
    JobStarted,
    NextTokens,
    ToAgent,
    Tokens,
)
from moe2.coordinator import dispatch
from moe2.coordinator.exchange import Exchange
from moe2.coordinator.ledger.bookkeeper import Bookkeeper
from moe2.coordinator.planning.frontier import FrontierPoint
from moe2.coordinator.receipt import Receipt, receipt_of
from moe2.coordinator.selection import NoExpert, Selection, SelectionRequest, Selector
from moe2.coordinator.table import CapabilityTable

log = structlog.get_logger()

Send = Callable[[str, ToAgent], bool]
OnRetired = Callable[[dispatch.Lifecycle, Receipt], None]


@dataclass
class _Active:
    life: dispatch.Lifecycle
    exchange: Exchange
    timer: asyncio.TimerHandle | None = None
    backlog: deque[dispatch.Event] = field(default_factory=deque)
    """What happened while the effects of an earlier event were being performed."""
    is_handling: bool = False


@dataclass
class Totals:
    """Requests that have ended, by outcome."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0


class Service:
    """All requests in progress. One writer: the coordinator's event loop.

    send: hands a message to an agent; False if it is not connected.
    bookkeeper: asked at every choice, and told of every end.
    on_retired: called once per request, when everything it spent is known, with its final receipt; for one that was
    answered in full that is before its client learns of the end.
    """

    def __init__(
        self,
        table: CapabilityTable,
        selector: Selector,
        *,
        send: Send,
        max_active: int,
        bookkeeper: Bookkeeper,
        on_retired: OnRetired,
    ) -> None:
        self._table = table
        self._selector = selector
        self._send = send
        self.max_active = max_active
        self._bookkeeper = bookkeeper
        self._on_retired = on_retired
        self._active: dict[str, _Active] = {}
        self._jobs: dict[str, _Active] = {}
        self._in_flight: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopping = False
        self.totals = Totals()

    @property
    def n_active(self) -> int:
        return len(self._active)

    def lives(self) -> tuple[dispatch.Lifecycle, ...]:
        """The requests in progress, oldest first."""
        return tuple(active.life for active in self._active.values())

    @property
    def is_full(self) -> bool:
        return len(self._active) >= self.max_active

    def begin(self, request: dispatch.Request) -> Exchange:
        """Admit a request. The caller has checked `is_full` and `stopping`."""
        life = dispatch.Lifecycle(
            request=request, choose=lambda asked: self._bookkeeper.choose(life, asked, self.choose)
        )
        exchange = Exchange(life)
        active = _Active(life, exchange)
        self._active[request.request_id] = active
        self._idle.clear()
        self._handle(active, dispatch.Admitted())
        return exchange

    def client_gone(self, request_id: str) -> None:
        if active := self._active.get(request_id):
            self._handle(active, dispatch.ClientGone())

    def agent_said(self, message: FromAgent) -> None:
        match message:
            case Tokens(jobs=jobs):
                for job in jobs:
                    if active := self._jobs.get(job.job_id):
                        self._handle(active, dispatch.TokensArrived(job.job_id, job.pieces))
            case JobStarted():
                self._handle_job(message.job_id, dispatch.AttemptStarted(message))
            case JobDone():
                self._handle_job(message.job_id, dispatch.AttemptDone(message))
            case JobFailed():
                self._handle_job(message.job_id, dispatch.AttemptFailed(message))
            case JobScored():
                self._handle_job(message.job_id, dispatch.AttemptScored(message))
            case NextTokens():
                self._handle_job(message.job_id, dispatch.NextTokensArrived(message))

    def agent_lost(self, agent_id: str) -> None:
        for active in tuple(self._active.values()):
            self._handle(active, dispatch.AgentLost(agent_id))

    async def drain(self, drain_s: float) -> None:
        """Let requests end by themselves, then end the rest with an error."""
        self.stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), drain_s)
        except TimeoutError:
            log.warning("drain_timed_out", requests_cut_off=len(self._active))
            for active in tuple(self._active.values()):
                self._handle(active, dispatch.ServiceStopping())

    async def read_ahead(self, text: str) -> None:
        """Let a gate with a sentence encoder read the prompt beside the event loop: that takes tens of milliseconds."""
        if (read := self._selector.appraiser.read_ahead) is not None:
            try:
                await asyncio.to_thread(read, text)
            except Exception as error:
                # The gate meets the same prompt in a moment, falls back to priors and keeps a warning.
                log.warning("read_ahead_failed", reason=repr(error))

    def choose(self, request: SelectionRequest) -> Selection | NoExpert:
        """What the two levels decide for such a request now. Runs nothing."""
        experts = self._table.choosable(asyncio.get_running_loop().time())
        return self._selector.select(request, experts, self._in_flight, self._table.epoch)

    def frontier(self, decided: Selection | NoExpert) -> tuple[FrontierPoint, ...]:
        """What other energy budgets would buy."""
        return self._selector.frontier(decided)

    def _handle_job(self, job_id: str, event: dispatch.Event) -> None:
        if active := self._jobs.get(job_id):
            self._handle(active, event)

    def _handle(self, active: _Active, event: dispatch.Event) -> None:
        """Perform what the event leads to. What happens meanwhile (an agent that cannot be reached) comes after it, as
        half of a panel's jobs may not be out yet.
        """
        active.backlog.append(event)
        if active.is_handling:
            return
        active.is_handling = True
        try:
            while active.backlog:
                now_s = asyncio.get_running_loop().time()
                for effect in active.life.handle(active.backlog.popleft(), now_s):
                    self._perform(active, effect)
        finally:
            active.is_handling = False
        # A panel waits for its members only so long, each time anew. A timer that fires early changes nothing.
        life = active.life
        if life.outcome is None and active.timer and life.next_deadline_s < active.timer.when():
            self._arm(active)

    def _perform(self, active: _Active, effect: dispatch.Effect) -> None:
        match effect:
            case dispatch.Deliver(pieces=pieces):
                active.exchange.deliver(pieces)
            case dispatch.SubmitJob(expert=expert, job=job):
                self._in_flight[expert.key] += 1
                self._jobs[job.job_id] = active
                self._bookkeeper.dispatched(active.life)
                self._arm(active)
                if not self._send(expert.agent_id, job):
                    self._handle(active, dispatch.AgentLost(expert.agent_id))
            case dispatch.Tell(agent_id=agent_id, take=take):
                self._send(agent_id, take)
            case dispatch.StopJob(agent_id=agent_id, job_id=job_id):
                self._send(agent_id, CancelJob(job_id=job_id))
            case dispatch.ReleaseExpert(expert_key=key, job_id=job_id):
                self._jobs.pop(job_id, None)
                self._in_flight[key] -= 1
                if not self._in_flight[key]:
                    del self._in_flight[key]
            case dispatch.Conclude(outcome=outcome):
                self._count(outcome)
                self._arm(active)
                if not all(attempt.is_over for attempt in active.life.attempts):
                    active.exchange.recorded = self._bookkeeper.concluded(active.life)
                active.exchange.conclude(outcome)
            case dispatch.Retire():
                self._retire(active)

    def _arm(self, active: _Active) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = active.life.next_deadline_s
        if active.timer:
            if active.timer.when() == deadline_s:
                return
            active.timer.cancel()
        active.timer = loop.call_at(deadline_s, self._time_passed, active)

    def _time_passed(self, active: _Active) -> None:
        active.timer = None
        self._handle(active, dispatch.TimePassed())
        # The loop's clock is coarser than ours: a timer may fire a little early.
        if active.life.request.request_id in self._active and active.timer is None:
            self._arm(active)

    def _retire(self, active: _Active) -> None:
        life = active.life
        if active.timer:
            active.timer.cancel()
        del self._active[life.request.request_id]
        if not self._active:
            self._idle.set()
        self._learn_prompt_lengths(life)
        receipt = receipt_of(life)
        active.exchange.settle(receipt)
        active.exchange.recorded = self._bookkeeper.retired(life, receipt)
        self._on_retired(life, receipt)
        log.info(
            "request_ended",
            request_id=life.request.request_id,
            outcome=type(life.outcome).__name__.lower(),
            experts=[attempt.expert.key for attempt in life.attempts],
            decoded_tokens=[attempt.usage.decoded_tokens if attempt.usage else None for attempt in life.attempts],
            joules=receipt.energy["joules"],
            energy_quality=receipt.energy["quality"],
            total_s=round((life.concluded_s or 0.0) - life.request.arrived_s, 4),
        )

    def _learn_prompt_lengths(self, life: dispatch.Lifecycle) -> None:
        for attempt in life.attempts:
            usage = attempt.usage
            if attempt.purpose is dispatch.Purpose.SCORE:
                # Its prompt was in the cache, or came with the choices.
                continue
            if usage is not None and usage.prompt_tokens is not None and usage.decoded_tokens:
                prefilled = usage.prompt_tokens - usage.cached_tokens
                model = attempt.expert.model
                self._selector.prompts.observe(model, life.request.demand.prompt_tokens, prefilled)

    def _count(self, outcome: dispatch.Outcome) -> None:
        match outcome:
            case dispatch.Completed():
                self.totals.finished += 1
            case dispatch.Failed():
                self.totals.failed += 1
            case dispatch.Cancelled():
                self.totals.cancelled += 1
