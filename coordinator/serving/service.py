"""Performs what the requests' lifecycles decide: sends jobs, delivers tokens, keeps their deadlines and their queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from moe2.common.alarm import Alarms
from moe2.common.link.messages import (
    CancelJob,
    FromAgent,
    JobDone,
    JobFailed,
    JobScored,
    JobStarted,
    NextTokens,
    ToAgent,
    Tokens,
    Vectors,
)
from moe2.common.status import BreakerRow, DispatchStatus
from moe2.coordinator.choosing.prefix_affinity import Affinities, Affinity, Prefix, prefixes
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import CapabilityTable, agent_of
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.planning.search import FrontierPoint
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.chooser import Chooser, InFlight, learn_lengths
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.judge import ExpertJudge
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.modes import MODES
from moe2.coordinator.serving.queue import Queue
from moe2.coordinator.serving.receipt import Receipt, receipt_of
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.settings import DispatchSection
from moe2.coordinator.serving.tallies import HedgeRation, Orphans, Totals

log = structlog.get_logger()

Send = Callable[[str, ToAgent], bool]
OnRetired = Callable[[Lifecycle, Receipt], None]


class _Active(msgspec.Struct, eq=False):
    """A request in progress, with what the service keeps beside its lifecycle."""

    life: Lifecycle
    exchange: Exchange
    chain: tuple[Prefix, ...] = ()
    affinity: Affinity | None = None
    """The expert that is expected to have the beginning of the prompt in its cache."""
    backlog: deque[events.Event] = msgspec.field(default_factory=deque)
    """Events that came while the effects of an earlier one were being performed."""
    is_handling: bool = False
    counted: effects.Outcome | None = None
    """The outcome that the totals count the request with."""
    is_broken: bool = False
    """Whether an event of this request could not be handled, so that it is being ended."""
    is_over: bool = False
    """Whether the service has forgotten the request, so that nothing more is done for it."""


class Service:
    """Serves all requests in progress. One writer: the coordinator's event loop.

    send: hands a message to an agent; False if it is not connected.
    bookkeeper: asked at every choice, and told of every end.
    on_retired: called once per request, when everything it spent is known, with its final receipt; for one that was
    answered in full that is before its client learns of the end.
    settings: how far to go for a request.
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
        settings: DispatchSection,
    ) -> None:
        self._table = table
        self._selector = selector
        self._send = send
        self.max_active = max_active
        self._bookkeeper = bookkeeper
        self._on_retired = on_retired
        self._active: dict[str, _Active] = {}
        self._jobs: dict[tuple[str, str], _Active] = {}
        """The request that each job is for, by agent and job."""
        self._orphans = Orphans()
        self._in_flight = InFlight()
        self._settings = settings
        self._judge = ExpertJudge(self.lives)
        self._chooser = Chooser(table, selector, self._judge, self._in_flight, use_breakers=settings.breakers)
        self._queue = Queue(settings.max_queued, table=table, judge=self._judge, room_appeared=self._room_appeared)
        self._affinities = Affinities()
        self._hedges = HedgeRation(settings.hedge_share if settings.hedging else 0.0)
        self._alarms = Alarms(self._time_passed)
        """When each request has to be looked at next, by its id."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopping = False
        self.totals = Totals()

    @property
    def n_active(self) -> int:
        return len(self._active)

    def lives(self) -> tuple[Lifecycle, ...]:
        """The requests in progress, oldest first."""
        return tuple(active.life for active in self._active.values())

    def has_room_for(self, n_requests: int) -> bool:
        """Whether so many more requests may be begun."""
        return len(self._active) + n_requests <= self.max_active

    def status(self) -> DispatchStatus:
        """The figures of the queue, of hedges and of breakers as users see them."""
        totals = self.totals
        states = self._judge.breakers.states(asyncio.get_running_loop().time()) if self._settings.breakers else {}
        return DispatchStatus(
            waiting=len(self._queue),
            queue_refused=totals.queue_refused,
            internal_errors=totals.internal_errors,
            hedges_won=totals.hedges_won,
            hedges_lost=totals.hedges_lost,
            resumed=totals.resumed,
            breakers=tuple(BreakerRow(expert=key, state=state) for key, state in sorted(states.items())),
        )

    def room_in_s(self, model: str) -> float | None:
        """When a request for this model can expect room, behind those that wait; None where no speed is known."""
        return self._queue.room_in_s(model)

    def begin(self, request: Request, news: asyncio.Event | None = None) -> Exchange:
        """Admit a request. The caller has checked `has_room_for` and `stopping`.

        news: set when there is something to take; None where the caller waits for the end.
        """
        # Who has waited comes before who has just arrived.
        self._queue.serve()
        planned = self.planned(request.demand, request.model)
        if planned is not request.demand:
            request = msgspec.structs.replace(request, demand=planned)
        chain = prefixes(request.prompt) if self._settings.affinity and not request.texts else ()
        life = Lifecycle(request=request, queue_s=self._settings.queue_s, modes=MODES)
        exchange = Exchange(life, news)
        active = _Active(life, exchange, chain, self._affinities.find(chain))
        self._hedges.request_came()
        self._active[request.request_id] = active
        self._idle.clear()
        self._handle(active, events.Admitted())
        return exchange

    def client_gone(self, request_id: str) -> None:
        """Take in that a request's client has disconnected."""
        if active := self._active.get(request_id):
            self._handle(active, events.ClientGone())

    def agent_said(self, agent_id: str, message: FromAgent) -> None:
        """Take in an agent's word about its jobs; those of others are none of its business."""
        match message:
            case Tokens(jobs=jobs):
                for job in jobs:
                    self._job_goes_on(agent_id, job.job_id, events.TokensArrived(job.job_id, job.pieces))
            case JobStarted():
                self._job_goes_on(agent_id, message.job_id, events.AttemptStarted(message))
            case JobDone():
                self._job_ended(agent_id, message.job_id, events.AttemptDone(message))
            case NextTokens():
                self._job_goes_on(agent_id, message.job_id, events.NextTokensArrived(message))
            case Vectors():
                self._job_goes_on(agent_id, message.job_id, events.VectorsArrived(message.job_id, message.vectors))
            case JobFailed():
                self._job_ended(agent_id, message.job_id, events.AttemptFailed(message))
            case JobScored():
                self._job_ended(agent_id, message.job_id, events.AttemptScored(message))

    def fleet_changed(self) -> None:
        """Take in that an agent has joined or reported: there may be room where there was none."""
        if self._judge.breakers.wants_news:
            now_s = asyncio.get_running_loop().time()
            self._judge.breakers.seen(self._table.choosable(now_s), now_s)
        self._queue.expect_room()

    def agent_lost(self, agent_id: str) -> None:
        """Take in that the link to an agent broke, which loses its jobs and what its caches held."""
        self._affinities.forget(agent_id)
        self._orphans.forget(agent_id)
        for active in tuple(self._active.values()):
            self._handle(active, events.AgentLost(agent_id))

    def agent_evicted(self, agent_id: str) -> None:
        """Forget an agent that will not come back."""
        self._judge.forget(agent_id)

    async def drain(self, drain_s: float) -> None:
        """Let requests end by themselves for `drain_s`, then end the rest with an error.

        Those that wait for room end at once: they can be begun elsewhere.
        """
        self.stopping = True
        for request_id in tuple(self._queue.in_turn()):
            self._handle(self._active[request_id], events.ServiceStopping())
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_timed_out", requests_cut_off=len(self._active))
            for active in tuple(self._active.values()):
                self._handle(active, events.ServiceStopping())

    def choose(self, request: SelectionRequest, principal: Principal) -> Selection | NoExpert:
        """The choice that a request would get now, within its key's daily limits. Runs nothing."""
        now_s = asyncio.get_running_loop().time()
        return self._bookkeeper.plan(principal, request, lambda within: self._chooser.choose(within, now_s))

    def planned(self, demand: Demand, model: str) -> Demand:
        """The demand as it is planned for: clients set limits far beyond any context, and mean none by them."""
        return self._chooser.planned(demand, model, asyncio.get_running_loop().time())

    def frontier(self, decided: Selection | NoExpert) -> tuple[FrontierPoint, ...]:
        """The quality that other energy budgets would buy."""
        return self._selector.frontier(decided)

    def _room_appeared(self, request_id: str) -> None:
        self._handle(self._active[request_id], events.RoomAppeared())

    def _enter_queue(self, active: _Active) -> None:
        request = active.life.request
        if self.stopping:
            self._handle(active, events.ServiceStopping())
            return
        displaced = self._queue.enter(request)
        for request_id in displaced:
            if other := self._active.get(request_id):
                self.totals.queue_refused += 1
                self._handle(other, events.RoomRefused())
        if request.request_id not in displaced:
            self._arm(active)

    # --- Events and effects -------------------------------------------------------------------------------------------

    def _job_goes_on(self, agent_id: str, job_id: str, event: events.Event) -> None:
        if active := self._jobs.get((agent_id, job_id)):
            self._handle(active, event)
        elif self._orphans.heard(agent_id, job_id):
            log.debug("orphan_stopped", agent_id=agent_id, job_id=job_id)
            self._send(agent_id, CancelJob(job_id=job_id))

    def _job_ended(self, agent_id: str, job_id: str, event: events.Event) -> None:
        if active := self._jobs.get((agent_id, job_id)):
            self._handle(active, event)
        else:
            self._orphans.ended(agent_id, job_id)

    def _handle(self, active: _Active, event: events.Event) -> None:
        """Perform what an event leads to. What happens meanwhile (an agent that cannot be reached) comes after it, as
        half of a panel's jobs may not be out yet.
        """
        if active.is_handling:
            active.backlog.append(event)
            return
        active.is_handling = True
        try:
            self._take(active, event)
            while active.backlog:
                self._take(active, active.backlog.popleft())
        finally:
            active.is_handling = False

    def _take(self, active: _Active, event: events.Event) -> None:
        """Handle one event. Whatever is raised meanwhile ends this request and nothing else; what the other effects
        were to do (a place in the queue, a job to stop) is done all the same."""
        life, now_s = active.life, asyncio.get_running_loop().time()
        try:
            todo = life.handle(event, now_s)
            if life.outcome is None and life.hurries:
                # An alarm that rings early changes nothing.
                self._alarms.hurry(life.request.request_id, life.next_deadline_s)
        except Exception:
            self._break(active, event)
            return
        broke = False
        for effect in todo:
            if active.is_over:
                return
            if broke and isinstance(effect, effects.Retire):
                continue  # Its end is still to come: see `_break`.
            try:
                self._perform(active, effect, now_s)
            except Exception:
                broke = True
                self._break(active, effect)

    def _choose(self, active: _Active, asked: SelectionRequest, now_s: float) -> Selection | NoExpert:
        """The choice of experts for a request in progress, as things stand now. It changes nothing."""
        life = active.life
        choose = partial(self._chooser.choose, now_s=now_s, affinity=active.affinity, life=life)
        return self._bookkeeper.choose(life, asked, choose)

    def _break(self, active: _Active, at: events.Event | effects.Effect) -> None:
        """End a request because of the exception that is being handled: as a failure that is accounted like any other,
        and by force where that raises, too."""
        request_id = active.life.request.request_id
        if not active.is_broken:
            active.is_broken = True
            self.totals.internal_errors += 1
            log.exception("request_broken", request_id=request_id, at=type(at).__name__)
            if not active.is_over:
                active.backlog.append(events.HandlingFailed())
        elif not active.is_over:
            log.exception("request_abandoned", request_id=request_id, at=type(at).__name__)
            self._abandon(active)

    def _abandon(self, active: _Active) -> None:
        """Take a request out of every table although its lifecycle cannot be relied on any more."""
        life, now_s = active.life, asyncio.get_running_loop().time()
        self._forget(active, now_s)
        active.backlog.clear()
        self._queue.leave(life.request.request_id, served=False)
        for (agent_id, job_id), owner in tuple(self._jobs.items()):
            if owner is active:
                self._send(agent_id, CancelJob(job_id=job_id))
        for attempt in life.abandon(now_s):
            self._free(attempt.expert.key, attempt.job_id)
            self._judge.breakers.ended(attempt.expert.key, attempt.job_id)
        self._queue.expect_room()
        self.totals.concluded(effects.HANDLING_FAILED, instead_of=active.counted)
        active.exchange.conclude(effects.HANDLING_FAILED)
        try:
            self._account(active)
        except Exception:
            log.exception("request_not_accounted", request_id=life.request.request_id)

    def _perform(self, active: _Active, effect: effects.Effect, now_s: float) -> None:
        """Do what a request wants done, as decided at `now_s`. A question is the last that it wants: what the answer
        leads to is done at once."""
        match effect:
            case effects.Deliver(pieces=pieces):
                active.exchange.deliver(pieces)
            case effects.ChooseExperts(asked=asked):
                self._take(active, events.ExpertsChosen(self._choose(active, asked, now_s)))
            case effects.SubmitJob():
                self._submit(active, effect, now_s)
            case effects.ReleaseExpert(expert_key=key, job_id=job_id):
                self._release(active, key, job_id, now_s)
            case effects.Conclude(outcome=outcome):
                self._conclude(active, outcome)
            case effects.Retire():
                self._retire(active, now_s)
            case _:
                self._perform_seldom(active, effect, now_s)

    def _perform_seldom(self, active: _Active, effect: effects.Seldom, now_s: float) -> None:
        match effect:
            case effects.Tell(agent_id=agent_id, take=take):
                self._send(agent_id, take)
            case effects.DeliverVectors(vectors=vectors):
                active.exchange.vectors.extend(vectors)
            case effects.Remark(text=text):
                active.exchange.remark(text)
            case effects.Retract():
                active.exchange.retract()
            case effects.EnterQueue():
                self._enter_queue(active)
            case effects.LeaveQueue(served=served):
                self._queue.leave(active.life.request.request_id, served=served)
            case effects.AskToHedge():
                # Where others wait for room, a second expert for one request would be taken from them.
                self._take(active, events.HedgeAnswered(not self._queue and self._hedges.has_one))
            case effects.StopJob(agent_id=agent_id, job_id=job_id):
                self._send(agent_id, CancelJob(job_id=job_id))
            case effects.ShareExpert():
                self._queue.expect_room()
            case effects.Suspect(expert_key=key, job_id=job_id, hangs=hangs):
                self._suspect(active, key, job_id, now_s, hangs=hangs)

    def _conclude(self, active: _Active, outcome: effects.Outcome) -> None:
        """Tell a request's reader its outcome."""
        life = active.life
        self.totals.concluded(outcome, instead_of=active.counted)
        active.counted = outcome
        if life.unended:
            self._arm(active)
            active.exchange.recorded = self._bookkeeper.concluded(life)
        retry_s = self._queue.retry_after_s(life.request.model, outcome, life.refused)
        active.exchange.conclude(outcome, retry_after_s=retry_s)

    def _submit(self, active: _Active, effect: effects.SubmitJob, now_s: float) -> None:
        expert, job = effect.expert, effect.job
        attempt = active.life.attempt_of(job.job_id)
        assert attempt is not None  # noqa: S101 - the life that submits a job has it among its attempts
        self._in_flight.begun(attempt)
        self._jobs[expert.agent_id, job.job_id] = active
        self._judge.breakers.submitted(expert.key, job.job_id, now_s)
        self._bookkeeper.dispatched(active.life)
        self._arm(active)
        is_sent = self._send(expert.agent_id, job)
        if is_sent and effect.is_hedge:
            self._hedges.take()
        if not is_sent:
            self._handle(active, events.AgentLost(expert.agent_id))

    def _release(self, active: _Active, key: str, job_id: str, now_s: float) -> None:
        self._free(key, job_id)
        self._queue.expect_room()
        self._judge.released(active.life, job_id, now_s)

    def _free(self, key: str, job_id: str) -> None:
        """Give back the place that a job held with its expert."""
        if self._jobs.pop((agent_of(key), job_id), None):
            self._in_flight.over(key, job_id)

    def _suspect(self, active: _Active, key: str, job_id: str, now_s: float, *, hangs: bool) -> None:
        does_hang = self._judge.late(active.life, job_id, now_s, hangs=hangs)
        log.warning("expert_late", request_id=active.life.request.request_id, expert=key, hangs=does_hang)
        if hangs and not does_hang:
            self._handle(active, events.WaitsBehindOthers(job_id))

    def _arm(self, active: _Active) -> None:
        self._alarms.set(active.life.request.request_id, active.life.next_deadline_s)

    def _time_passed(self, request_id: str) -> None:
        active = self._active.get(request_id)
        if active is None:
            return
        self._handle(active, events.TimePassed())
        # The alarm may have been set before the request's deadline moved on.
        if not active.is_over and self._alarms.at_s(request_id) is None:
            self._arm(active)

    def _account(self, active: _Active) -> Receipt:
        """Enter a request's final receipt into the books, and hand it to whoever answers the client."""
        receipt = receipt_of(active.life)
        active.exchange.settle(receipt)
        active.exchange.recorded = self._bookkeeper.retired(active.life, receipt)
        return receipt

    def _retire(self, active: _Active, now_s: float) -> None:
        life = active.life
        # The books come first: what is learned from a request may fail without it.
        receipt = self._account(active)
        self._forget(active, now_s)
        self.totals.retired(life, receipt.energy.joules)
        learn_lengths(self._selector.lengths, life)
        self._learn_affinity(active)
        self._on_retired(life, receipt)
        outcome, reason, _ = effects.said_of(life.outcome)
        log.info(
            "request_ended",
            request_id=life.request.request_id,
            outcome=outcome,
            reason=reason,
            experts=[attempt.expert.key for attempt in life.attempts],
            decoded_tokens=[attempt.usage.decoded_tokens if attempt.usage else None for attempt in life.attempts],
            joules=receipt.energy.joules,
            energy_quality=receipt.energy.quality,
            total_s=round((life.concluded_s or 0.0) - life.request.arrived_s, 4),
        )

    def _forget(self, active: _Active, now_s: float) -> None:
        request_id = active.life.request.request_id
        self._alarms.end(request_id)
        self._judge.ended(active.life, now_s)
        active.is_over = True
        del self._active[request_id]
        if not self._active:
            self._idle.set()

    def _learn_affinity(self, active: _Active) -> None:
        leading = active.life.leading
        if leading and leading.usage and isinstance(active.life.outcome, effects.Completed):
            self._affinities.answered(active.chain, leading.expert.key, leading.usage, leading.expert.identity)
