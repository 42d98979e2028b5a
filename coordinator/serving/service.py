"""Performs what the requests' lifecycles decide: sends jobs, delivers tokens, keeps their deadlines and their queue."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from moe2.common.alarm import Alarm
from moe2.common.error_codes import ErrorCode
from moe2.common.errors import JobErrorCode
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
)
from moe2.common.status import BreakerRow, DispatchStatus
from moe2.coordinator.choosing.prefix_affinity import Affinities, Affinity, Prefix, prefixes
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection, still_down
from moe2.coordinator.choosing.selector import Selector, wants
from moe2.coordinator.fleet.breaker import Breakers
from moe2.coordinator.fleet.table import CapabilityTable, agent_of
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.planning.frontier import FrontierPoint
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.attempt import MIN_LATE_S, Attempt, Purpose
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.hedging import HedgeRation
from moe2.coordinator.serving.life import HANDLING_FAILED, Lifecycle
from moe2.coordinator.serving.modes import MODES
from moe2.coordinator.serving.orphans import Orphans
from moe2.coordinator.serving.receipt import Receipt, receipt_of
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.settings import DispatchSection
from moe2.coordinator.serving.suspects import Suspects
from moe2.coordinator.serving.totals import Totals
from moe2.coordinator.serving.waiting_room import WaitingRoom, retry_after_s

log = structlog.get_logger()

Send = Callable[[str, ToAgent], bool]
OnRetired = Callable[[Lifecycle, Receipt], None]

MAX_IN_VAIN = 32
"""Waiting requests that are looked at for one piece of news: those that want what it does not bring must not cost the
running ones their time."""


@dataclass
class _Active:
    life: Lifecycle
    exchange: Exchange
    alarm: Alarm
    chain: tuple[Prefix, ...] = ()
    affinity: Affinity | None = None
    """To the experts that have the beginning of its prompt in their caches."""
    backlog: deque[events.Event] = field(default_factory=deque)
    """What happened while the effects of an earlier event were being performed."""
    is_handling: bool = False
    counted: effects.Outcome | None = None
    """The outcome that the totals have of it."""
    is_broken: bool = False
    """An event of this request could not be handled: it is being ended."""


class Service:
    """All requests in progress. One writer: the coordinator's event loop.

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
        """By agent and job."""
        self._orphans = Orphans()
        self._in_flight: Counter[str] = Counter()
        self._settings = settings
        self._waiting = WaitingRoom(settings.max_queued)
        self._is_room_expected = False
        self._room_alarm = Alarm(self._expect_room)
        self._breakers = Breakers()
        self._answered_s: dict[str, float] = {}
        """When each expert last did so."""
        self._suspects = Suspects()
        self._affinities = Affinities()
        self._hedges = HedgeRation(settings.hedge_share if settings.hedging else 0.0)
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

    @property
    def is_full(self) -> bool:
        return len(self._active) >= self.max_active

    def status(self) -> DispatchStatus:
        totals = self.totals
        states = self._breakers.states(asyncio.get_running_loop().time()) if self._settings.breakers else {}
        return DispatchStatus(
            waiting=len(self._waiting),
            queue_refused=totals.queue_refused,
            internal_errors=totals.internal_errors,
            hedges_won=totals.hedges_won,
            hedges_lost=totals.hedges_lost,
            resumed=totals.resumed,
            breakers=tuple(BreakerRow(expert=key, state=state) for key, state in sorted(states.items())),
        )

    def room_in_s(self, model: str) -> float | None:
        """When a request for this model can expect room, behind those that wait; None where no speed is known."""
        experts = self._table.choosable(asyncio.get_running_loop().time())
        wanted = [expert for expert in experts if wants(model, expert)]
        return retry_after_s(self._waiting.n_waiting_for(model), wanted)

    def begin(self, request: Request) -> Exchange:
        """Admit a request. The caller has checked `is_full` and `stopping`."""
        # Who has waited comes before who has just arrived.
        self._serve_waiting()
        chain = prefixes(request.prompt) if self._settings.affinity else ()
        life = Lifecycle(request=request, queue_s=self._settings.queue_s, modes=MODES)
        exchange = Exchange(life)
        active = _Active(life, exchange, Alarm(lambda: self._time_passed(active)), chain, self._affinities.find(chain))
        self._hedges.request_came()
        self._active[request.request_id] = active
        self._idle.clear()
        self._handle(active, events.Admitted())
        return exchange

    def client_gone(self, request_id: str) -> None:
        if active := self._active.get(request_id):
            self._handle(active, events.ClientGone())

    def agent_said(self, agent_id: str, message: FromAgent) -> None:
        """An agent's word about its jobs; those of others are none of its business."""
        match message:
            case Tokens(jobs=jobs):
                for job in jobs:
                    self._job_goes_on(agent_id, job.job_id, events.TokensArrived(job.job_id, job.pieces))
            case JobStarted():
                self._job_goes_on(agent_id, message.job_id, events.AttemptStarted(message))
            case NextTokens():
                self._job_goes_on(agent_id, message.job_id, events.NextTokensArrived(message))
            case JobDone():
                self._job_ended(agent_id, message.job_id, events.AttemptDone(message))
            case JobFailed():
                self._job_ended(agent_id, message.job_id, events.AttemptFailed(message))
            case JobScored():
                self._job_ended(agent_id, message.job_id, events.AttemptScored(message))

    def fleet_changed(self) -> None:
        """An agent has joined or reported: there may be room where there was none."""
        if self._breakers.has_hung:
            self._breakers.seen(self._table.choosable(asyncio.get_running_loop().time()))
        self._expect_room()

    def agent_lost(self, agent_id: str) -> None:
        self._affinities.forget(agent_id)
        self._orphans.forget(agent_id)
        for active in tuple(self._active.values()):
            self._handle(active, events.AgentLost(agent_id))

    def agent_evicted(self, agent_id: str) -> None:
        """It will not come back."""
        self._breakers.forget(agent_id)
        for key in [key for key in self._answered_s if agent_of(key) == agent_id]:
            del self._answered_s[key]

    async def drain(self, drain_s: float) -> None:
        """Let requests end by themselves, then end the rest with an error. Those that wait for room end at once: they
        can be begun elsewhere."""
        self.stopping = True
        for request_id in tuple(self._waiting.in_turn()):
            self._handle(self._active[request_id], events.ServiceStopping())
        try:
            await asyncio.wait_for(self._idle.wait(), drain_s)
        except TimeoutError:
            log.warning("drain_timed_out", requests_cut_off=len(self._active))
            for active in tuple(self._active.values()):
                self._handle(active, events.ServiceStopping())

    def choose(self, request: SelectionRequest, principal: Principal) -> Selection | NoExpert:
        """What the two levels decide for such a request now, within its key's daily limits. Runs nothing."""
        return self._bookkeeper.plan(principal, request, lambda within: self._choose(within, None))

    def frontier(self, decided: Selection | NoExpert) -> tuple[FrontierPoint, ...]:
        """What other energy budgets would buy."""
        return self._selector.frontier(decided)

    def _choose(
        self, request: SelectionRequest, affinity: Affinity | None, life: Lifecycle | None = None
    ) -> Selection | NoExpert:
        now_s = asyncio.get_running_loop().time()
        experts = self._table.choosable(now_s)
        barred = self._breakers.barred(now_s) if self._settings.breakers else {}
        if barred or affinity is not None:
            request = replace(request, barred=barred, affinity=affinity)
        if request.restarts_seen:
            request = replace(request, excluded=request.excluded | still_down(request.restarts_seen, experts))
        if life is not None and self._suspects:
            request = replace(request, reserved=self._suspects.reserved_from(life, experts, self._in_flight))
        hosts = () if self._selector.fleet_watts_cap_w is None else self._table.host_powers()
        return self._selector.select(request, experts, self._in_flight, self._table.epoch, hosts)

    # --- Who waits ----------------------------------------------------------------------------------------------------

    def _expect_room(self) -> None:
        """Look soon whether somebody who waits can be served: not in the middle of what is being done now."""
        if self._waiting and not self._is_room_expected:
            self._is_room_expected = True
            asyncio.get_running_loop().call_soon(self._serve_waiting)

    def _serve_waiting(self) -> None:
        if not self._is_room_expected:
            return
        self._is_room_expected = False
        in_vain = 0
        # Suspects first: they need an engine that is idle, as one is that has just been started again.
        for request_id in sorted(self._waiting.in_turn(), key=lambda waiting: waiting not in self._suspects):
            if request_id not in self._waiting:
                continue  # It lost its place to one that was served before it.
            self._handle(self._active[request_id], events.RoomAppeared())
            in_vain += request_id in self._waiting
            if in_vain >= MAX_IN_VAIN:
                break
        self._wake_for_breakers()

    def _wake_for_breakers(self) -> None:
        """A breaker that lets a probe through makes room, too, and nobody tells."""
        now_s = asyncio.get_running_loop().time()
        self._room_alarm.set(self._breakers.next_change_s(now_s) if self._waiting else None)

    def _enter_queue(self, active: _Active) -> None:
        request = active.life.request
        if self.stopping:
            self._handle(active, events.ServiceStopping())
            return
        entered = self._waiting.enter(request.request_id, model=request.model, key_id=request.principal.key_id)
        for refused in (active if entered is None else None, entered and self._active.get(entered.displaced or "")):
            if refused:
                self.totals.queue_refused += 1
                self._handle(refused, events.RoomRefused())
        if entered:
            self._arm(active)
            self._wake_for_breakers()

    def _retry_after_s(self, life: Lifecycle, outcome: effects.Outcome) -> float | None:
        """When a request that was refused for the state of the fleet should come again; None where nobody can say."""
        if not isinstance(outcome, effects.Failed):
            return None
        model = life.request.model
        if outcome.code in (ErrorCode.OVERLOADED, JobErrorCode.QUEUE_FULL):
            return self.room_in_s(model)
        if outcome.code == ErrorCode.INFEASIBLE_NOW and life.refused:
            known_s = [at_s for at_s in (self.room_in_s(model), life.refused.frees_in_s) if at_s is not None]
            return max(known_s, default=None)
        now_s = asyncio.get_running_loop().time()
        experts = [expert for expert in self._table.choosable(now_s) if wants(model, expert)]
        if outcome.code == ErrorCode.NO_LIVE_EXPERT and experts:
            return min(self._breakers.opens_again_in_s(expert.key, now_s) for expert in experts)
        return None

    # --- Events and effects -------------------------------------------------------------------------------------------

    def _job_goes_on(self, agent_id: str, job_id: str, event: events.Event) -> None:
        if active := self._jobs.get((agent_id, job_id)):
            self._handle(active, event)
        elif self._orphans.heard(agent_id, job_id):
            log.info("orphan_stopped", agent_id=agent_id, job_id=job_id)
            self._send(agent_id, CancelJob(job_id=job_id))

    def _job_ended(self, agent_id: str, job_id: str, event: events.Event) -> None:
        if active := self._jobs.get((agent_id, job_id)):
            self._handle(active, event)
        else:
            self._orphans.ended(agent_id, job_id)

    def _handle(self, active: _Active, event: events.Event) -> None:
        """Perform what the event leads to. What happens meanwhile (an agent that cannot be reached) comes after it, as
        half of a panel's jobs may not be out yet.
        """
        active.backlog.append(event)
        if active.is_handling:
            return
        active.is_handling = True
        try:
            while active.backlog:
                self._take(active, active.backlog.popleft())
        finally:
            active.is_handling = False

    def _take(self, active: _Active, event: events.Event) -> None:
        """Handle one event. Whatever is raised meanwhile ends this request and nothing else; what the other effects
        were to do (a place in the queue, a job to stop) is done all the same."""
        try:
            todo = deque(self._decide(active, event))
        except Exception:
            self._break(active, event)
            return
        broke = False
        while todo:
            effect = todo.popleft()
            if active.life.request.request_id not in self._active:
                return
            if broke and isinstance(effect, effects.Retire):
                continue  # Its end is still to come: see `_break`.
            try:
                if isinstance(effect, effects.ChooseExperts | effects.AskToHedge):
                    # What the answer leads to comes in the place of the question.
                    todo.extendleft(reversed(self._decide(active, self._answer(active, effect))))
                else:
                    self._perform(active, effect)
            except Exception:
                broke = True
                self._break(active, effect)

    def _decide(self, active: _Active, event: events.Event) -> list[effects.Effect]:
        """What an event leads to, with the request's alarm set to when it has to be looked at next."""
        life = active.life
        todo = life.handle(event, asyncio.get_running_loop().time())
        # A panel waits for its members only so long, each time anew. An alarm that rings early changes nothing.
        at_s = active.alarm.at_s
        if life.outcome is None and at_s is not None and life.next_deadline_s < at_s:
            self._arm(active)
        return todo

    def _answer(self, active: _Active, question: effects.Question) -> events.Event:
        """The answer to what a request asks, as things stand now. Asking changes nothing."""
        match question:
            case effects.ChooseExperts(asked=asked):
                life = active.life
                return events.ExpertsChosen(
                    self._bookkeeper.choose(life, asked, lambda within: self._choose(within, active.affinity, life))
                )
            case effects.AskToHedge():
                # Where others wait for room, a second expert for one request would be taken from them.
                return events.HedgeAnswered(not self._waiting and self._hedges.has_one)

    def _break(self, active: _Active, at: events.Event | effects.Effect) -> None:
        """End a request because of the exception that is being handled: as a failure that is accounted like any other,
        and by force where that raises, too."""
        request_id = active.life.request.request_id
        if not active.is_broken:
            active.is_broken = True
            self.totals.internal_errors += 1
            log.exception("request_broken", request_id=request_id, at=type(at).__name__)
            if request_id in self._active:
                active.backlog.append(events.HandlingFailed())
        elif request_id in self._active:
            log.exception("request_abandoned", request_id=request_id, at=type(at).__name__)
            self._abandon(active)

    def _abandon(self, active: _Active) -> None:
        """Take a request out of every table although its lifecycle cannot be relied on any more."""
        life = active.life
        self._forget(active)
        active.backlog.clear()
        self._waiting.leave(life.request.request_id, served=False)
        for (agent_id, job_id), owner in tuple(self._jobs.items()):
            if owner is active:
                self._send(agent_id, CancelJob(job_id=job_id))
        for attempt in life.abandon(asyncio.get_running_loop().time()):
            self._free(attempt.expert.key, attempt.job_id)
            self._breakers.ended(attempt.expert.key, attempt.job_id)
        self._expect_room()
        self.totals.concluded(HANDLING_FAILED, instead_of=active.counted)
        active.exchange.conclude(HANDLING_FAILED)
        try:
            receipt = receipt_of(life)
            active.exchange.settle(receipt)
            active.exchange.recorded = self._bookkeeper.retired(life, receipt)
        except Exception:
            log.exception("request_not_accounted", request_id=life.request.request_id)

    def _perform(self, active: _Active, effect: effects.ForService) -> None:
        match effect:
            case effects.Deliver(pieces=pieces):
                active.exchange.deliver(pieces)
            case effects.Retract():
                active.exchange.retract()
            case effects.EnterQueue():
                self._enter_queue(active)
            case effects.LeaveQueue(served=served):
                self._waiting.leave(active.life.request.request_id, served=served)
            case effects.Conclude(outcome=outcome):
                self.totals.concluded(outcome, instead_of=active.counted)
                active.counted = outcome
                self._arm(active)
                if not all(attempt.is_over for attempt in active.life.attempts):
                    active.exchange.recorded = self._bookkeeper.concluded(active.life)
                active.exchange.conclude(outcome, retry_after_s=self._retry_after_s(active.life, outcome))
            case effects.Retire():
                self._retire(active)
            case _:
                self._direct(active, effect)

    def _direct(self, active: _Active, effect: effects.ForExperts) -> None:
        """Perform what concerns an expert."""
        match effect:
            case effects.SubmitJob():
                self._submit(active, effect)
            case effects.Tell(agent_id=agent_id, take=take):
                self._send(agent_id, take)
            case effects.StopJob(agent_id=agent_id, job_id=job_id):
                self._send(agent_id, CancelJob(job_id=job_id))
            case effects.ReleaseExpert(expert_key=key, job_id=job_id):
                self._release(active, key, job_id)
            case effects.ShareExpert():
                self._expect_room()
            case effects.Suspect(expert_key=key, job_id=job_id, hangs=hangs):
                self._suspect(active, key, job_id, hangs=hangs)

    def _submit(self, active: _Active, effect: effects.SubmitJob) -> None:
        expert, job = effect.expert, effect.job
        self._in_flight[expert.key] += 1
        self._jobs[expert.agent_id, job.job_id] = active
        self._breakers.submitted(expert.key, job.job_id, asyncio.get_running_loop().time())
        self._bookkeeper.dispatched(active.life)
        self._arm(active)
        is_sent = self._send(expert.agent_id, job)
        if is_sent and effect.is_hedge:
            self._hedges.take()
        if not is_sent:
            self._handle(active, events.AgentLost(expert.agent_id))

    def _release(self, active: _Active, key: str, job_id: str) -> None:
        self._free(key, job_id)
        self._suspects.note(active.life)
        self._expect_room()
        self._judge(active.life, job_id)

    def _free(self, key: str, job_id: str) -> None:
        """The job holds none of its expert's places any more."""
        if self._jobs.pop((agent_of(key), job_id), None):
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]

    def _suspect(self, active: _Active, key: str, job_id: str, *, hangs: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        # One that works on other requests does not hang: this one waits in its queue for longer than was predicted.
        hangs = hangs and not self._works(key, now_s)
        log.warning("expert_late", request_id=active.life.request.request_id, expert=key, hangs=hangs)
        restarts = _attempt(active.life, job_id).expert.report.restarts
        self._breakers.late(key, job_id, now_s, hangs=hangs, restarts=restarts)
        self._suspects.note(active.life)

    def _works(self, key: str, now_s: float) -> bool:
        """True if the expert has said something lately."""
        signs = [
            attempt.last_sign_s
            for active in self._active.values()
            for attempt in active.life.attempts
            if attempt.expert.key == key
        ]
        return any(at_s is not None and now_s - at_s < MIN_LATE_S for at_s in (*signs, self._answered_s.get(key)))

    def _judge(self, life: Lifecycle, job_id: str) -> None:
        """What the end of an attempt says of its expert."""
        attempt = _attempt(life, job_id)
        now_s, key = asyncio.get_running_loop().time(), attempt.expert.key
        match attempt.state:
            case AttemptState.ANSWERED:
                self._answered_s[key] = now_s
                self._breakers.succeeded(key, job_id, now_s)
            case AttemptState.LOST if attempt.code != JobErrorCode.AGENT_LOST:
                # It was told to stop, and did not even say that it had.
                hangs, restarts = not self._works(key, now_s), attempt.expert.report.restarts
                self._breakers.late(key, job_id, now_s, hangs=hangs, restarts=restarts)
            case AttemptState.FAILED if attempt.code == JobErrorCode.ENGINE_CRASHED:
                # Whether it was the engine's fault is known when all that it worked on have ended.
                self._breakers.ended(key, job_id)
                if attempt.died_with:
                    self._suspects.died(life, attempt, now_s)
            case AttemptState.FAILED | AttemptState.LOST | AttemptState.BROKEN_OFF:
                code = attempt.code or "unknown"
                self._breakers.failed(key, job_id, code, now_s, submitted_s=attempt.submitted_s)
            case _:
                self._breakers.ended(key, job_id)

    def _arm(self, active: _Active) -> None:
        active.alarm.set(active.life.next_deadline_s)

    def _time_passed(self, active: _Active) -> None:
        self._handle(active, events.TimePassed())
        # The loop's clock is coarser than ours: an alarm may ring a little early.
        if active.life.request.request_id in self._active and active.alarm.at_s is None:
            self._arm(active)

    def _retire(self, active: _Active) -> None:
        life = active.life
        # The books come first: what is learned from a request may fail without it.
        receipt = receipt_of(life)
        active.exchange.settle(receipt)
        active.exchange.recorded = self._bookkeeper.retired(life, receipt)
        self._forget(active)
        self.totals.retired(life)
        self._learn_prompt_lengths(life)
        self._learn_affinity(active)
        self._on_retired(life, receipt)
        log.info(
            "request_ended",
            request_id=life.request.request_id,
            outcome=type(life.outcome).__name__.lower(),
            experts=[attempt.expert.key for attempt in life.attempts],
            decoded_tokens=[attempt.usage.decoded_tokens if attempt.usage else None for attempt in life.attempts],
            joules=receipt.energy.joules,
            energy_quality=receipt.energy.quality,
            total_s=round((life.concluded_s or 0.0) - life.request.arrived_s, 4),
        )

    def _acquit(self, life: Lifecycle) -> None:
        """Hold deaths against engines that died by their own fault, as the end of a suspect may show."""
        now_s = asyncio.get_running_loop().time()
        for key in self._suspects.ended(life):
            self._breakers.failed(key, life.request.request_id, JobErrorCode.ENGINE_CRASHED, now_s, submitted_s=now_s)

    def _forget(self, active: _Active) -> None:
        active.alarm.set(None)
        self._acquit(active.life)
        del self._active[active.life.request.request_id]
        if not self._active:
            self._idle.set()

    def _learn_prompt_lengths(self, life: Lifecycle) -> None:
        for attempt in life.attempts:
            usage = attempt.usage
            if attempt.purpose is Purpose.SCORE:
                # Its prompt was in the cache, or came with the choices.
                continue
            if usage is not None and usage.prompt_tokens is not None and usage.decoded_tokens:
                prefilled = usage.prompt_tokens - usage.cached_tokens
                model = attempt.expert.model
                self._selector.prompts.observe(model, life.request.demand.prompt_tokens, prefilled)

    def _learn_affinity(self, active: _Active) -> None:
        leading = active.life.leading
        if leading and leading.usage and isinstance(active.life.outcome, effects.Completed):
            self._affinities.answered(active.chain, leading.expert.key, leading.usage)


def _attempt(life: Lifecycle, job_id: str) -> Attempt:
    """The attempt of one of the request's own jobs."""
    return next(attempt for attempt in life.attempts if attempt.job_id == job_id)
