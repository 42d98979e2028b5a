"""The life of one request: waiting, attempts, time limits, cancellation, one outcome. PURE: events in, effects out.

How experts answer it is a `ModeRun`, one per mode; what all modes share is here. Whatever the lifecycle has to know of
the world it asks for with an effect, and goes on when the answer comes as an event. Each request has exactly one
terminal outcome (`Conclude`), and is retired only when every attempt has reported what it consumed, or its agent is
gone for good: work that was cancelled or failed is accounted like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from moe2.common.error_codes import ErrorCode
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, Job, JobDone, JobFailed, JobScored, JobStarted, Submit, TokenPiece
from moe2.coordinator.choosing.request import Mode, SelectionRequest
from moe2.coordinator.choosing.result import Member, NoExpert, Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import HANDLING_FAILED, Cancelled, Completed, Effect, Failed, Outcome
from moe2.coordinator.serving.events import Event
from moe2.coordinator.serving.mode import ModeRun
from moe2.coordinator.serving.progress import Limits, OnChosen, Progress, Wait
from moe2.coordinator.serving.request import embedding_of, writing_of
from moe2.coordinator.serving.suspicion import is_custom, isolated_until, restarts_seen, verdict

MAX_ATTEMPTS = 4

OnHedge = Callable[[bool, float], list[Effect]]
"""What to do with the answer whether a request may hedge, at a moment in monotonic seconds."""
MakeJob = Callable[[str, float], Job]
"""A job from its id and the seconds it may take."""


class Lifecycle(Progress, kw_only=True, eq=False):
    """One request: takes in what happens to it and says what the service is to do."""

    modes: Mapping[Mode, MakeRun]
    """How each mode is begun in which experts can answer."""
    on_chosen: OnChosen | None = None
    """How the request goes on once experts are chosen; None while it has not asked for a choice."""
    on_hedge: OnHedge | None = None
    """How the request goes on once it knows whether it may hedge; None while it has not asked."""

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take in one event; returns what the service is to do, in order. A question to the service comes last."""
        todo = self._take(event, now_s)
        if len(todo) > 1 and (self.on_chosen or self.on_hedge):
            # The answer finds everything done that the event has led to: no place is held that was given back.
            todo.sort(key=lambda effect: isinstance(effect, effects.Question))
        return todo

    def _take(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case events.TokensArrived(job_id=job_id, pieces=pieces):
                return self._tokens(job_id, pieces, now_s)
            case events.AttemptStarted(started=started):
                return self._started(started)
            case events.ExpertsChosen(chosen=chosen):
                # An answer to what was not asked, or is asked no longer, is ignored.
                on_chosen, self.on_chosen = self.on_chosen, None
                return on_chosen(chosen, now_s) if on_chosen else []
            case events.AttemptDone(done=done):
                return self._ended(done, now_s)
            case events.Admitted():
                return self.choose(partial(self._begin, may_wait=True), now_s)
            case _:
                return self._take_seldom(event, now_s)

    def _take_seldom(self, event: events.Seldom, now_s: float) -> list[Effect]:
        match event:
            case events.NextTokensArrived(next_tokens=next_tokens):
                run, attempt = self._heard(next_tokens.job_id, now_s)
                return run.next_tokens(attempt, next_tokens, now_s) if run and attempt else []
            case events.VectorsArrived(job_id=job_id, vectors=vectors):
                run, attempt = self._heard(job_id, now_s)
                return run.vectors(attempt, vectors, now_s) if run and attempt else []
            case events.AttemptScored(scored=scored):
                return self._ended(scored, now_s)
            case events.AttemptFailed(failed=failed):
                return self._failed(failed, now_s)
            case events.HedgeAnswered(is_allowed=is_allowed):
                on_hedge, self.on_hedge = self.on_hedge, None
                return on_hedge(is_allowed, now_s) if on_hedge else []
            case events.RoomAppeared():
                return self._room_appeared(now_s)
            case events.RoomRefused():
                return self._room_refused(now_s)
            case events.WaitsBehindOthers(job_id=job_id):
                return self._waits_behind_others(job_id, now_s)
            case events.AgentLost(agent_id=agent_id):
                return self._lost(agent_id, now_s)
            case events.TimePassed():
                return self._time_passed(now_s)
            case events.ClientGone() | events.ServiceStopping() | events.HandlingFailed():
                return self._cut_off(event, now_s)

    def abandon(self, now_s: float) -> list[Attempt]:
        """End the request at once, as failed. Returns the attempts that still ran; what they consume stays unknown."""
        self.outcome, self.concluded_s, self.wait = HANDLING_FAILED, now_s, None
        self.on_chosen = self.on_hedge = None
        return self.lose_rest("the coordinator gave its request up")

    # --- For modes ----------------------------------------------------------------------------------------------------

    def choose(
        self,
        then: OnChosen,
        now_s: float,
        *,
        excluded: frozenset[str] = frozenset(),
        modes: frozenset[Mode] | None = None,
    ) -> list[Effect]:
        """Ask for the best choice of experts that have not been tried, with what is left of the budgets.

        then: how to go on with it. excluded: keys of more experts to leave out. modes: the modes to choose among; None
        for all that can serve the request. Where the engine of one died, another one comes first, and that one once it
        is back.
        """
        down = restarts_seen(self.attempts)
        among = self.request.modes if modes is None else modes

        def or_restarted(chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
            # Rather another engine than the one that died; but rather that one, restarted, than none.
            if isinstance(chosen, NoExpert):
                tried = excluded | self.tried
                return self._ask(self.question(now_s, excluded=tried, modes=among, down=down), then)
            return then(chosen, now_s)

        asked = self.question(now_s, excluded=excluded | self.tried | down.keys(), modes=among)
        return self._ask(asked, or_restarted if down else then)

    def _ask(self, asked: SelectionRequest, then: OnChosen) -> list[Effect]:
        self.on_chosen = then
        return [effects.ChooseExperts(asked)]

    def ask_to_hedge(self, then: OnHedge) -> list[Effect]:
        """Ask whether a second expert may be set to work now. then: how to go on with the answer."""
        self.on_hedge = then
        return [effects.AskToHedge()]

    def plan_again(self, told: JobFailed | None, now_s: float) -> list[Effect]:
        """Have other experts answer, or conclude with what the last one said."""

        def go_on(chosen: Selection | NoExpert, now_s: float, *, may_wait: bool = False) -> list[Effect]:
            self.refused = chosen if isinstance(chosen, NoExpert) else None
            if len(self.attempts) >= MAX_ATTEMPTS:
                return self.nobody_left(told, now_s)
            if isinstance(chosen, Selection):
                self.run = self.modes[chosen.mode](self)
                return self.run.begin(chosen, now_s)
            # Others' load was no reason to wait before, and is none now: only an engine that comes back is.
            waits = may_wait and restarts_seen(self.attempts) and self.may_wait_for(chosen)
            return (self.await_room(go_on, now_s) if waits else None) or self.nobody_left(told, now_s)

        return self.choose(partial(go_on, may_wait=True), now_s)

    def nobody_left(self, told: JobFailed | None, now_s: float) -> list[Effect]:
        """Conclude with what the last expert said: that beats what the table says afterwards."""
        failed = Failed(told.code, told.message) if told else Failed(JobErrorCode.INTERNAL, "All attempts failed.")
        return self.conclude(failed, now_s)

    def await_room(self, then: OnChosen, now_s: float) -> list[Effect] | None:
        """Have the request wait until an expert has room; None if it may wait no longer. `refused` says what for."""
        until_s = self.waits_until_s(now_s)
        if until_s <= now_s:
            return None
        self.wait = Wait(now_s, until_s, then)
        return [effects.EnterQueue()]

    def take_back(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Have the request wait for room here, no longer in the queue of a busy expert. The wait there counts, too."""
        self.waited_s += now_s - attempt.submitted_s
        attempt.is_taken_back = True
        stopped = self.stop(attempt)
        self.refused = None
        waits = self.await_room(self._begin, now_s)
        return [*stopped, *(self._begin(self.waited_in_vain(now_s), now_s) if waits is None else waits)]

    def submit(
        self,
        member: Member,
        selection: Selection,
        job: MakeJob,
        now_s: float,
        purpose: Purpose = Purpose.ANSWER,
        *,
        is_hedge: bool = False,
    ) -> list[Effect]:
        """Give an expert work. is_hedge: it uses up one of the hedges that all requests share."""
        if not self.attempts:
            self.limits = Limits.of(selection.budgets, self.request.arrived_s + self.elapsed_s(now_s))
        job_id = f"{self.request.request_id}.{len(self.attempts)}"
        made = job(job_id, self.request.deadline_s - now_s)
        attempt = Attempt(
            job_id,
            member,
            selection,
            submitted_s=now_s,
            purpose=purpose,
            waited_s=self.waited_s,
            is_custom=is_custom(made),
            alone_until=isolated_until(self.attempts),
        )
        self.attempts.append(attempt)
        return [effects.SubmitJob(member.expert, made, is_hedge=is_hedge)]

    def answer(
        self,
        member: Member,
        selection: Selection,
        now_s: float,
        purpose: Purpose = Purpose.ANSWER,
        *,
        prefix: str = "",
        max_tokens: int | None = None,
        is_hedge: bool = False,
    ) -> list[Effect]:
        """Have an expert write the answer, or what is to follow its beginning `prefix`, behind the request's own.

        max_tokens: a limit besides the request's own; None for no other.
        """
        request, model, generation = self.request, member.expert.model, self.request.generation
        most = self.n_tokens_left
        if max_tokens is not None:
            most = max_tokens if most is None else min(most, max_tokens)
        if most != generation.max_tokens:
            generation = msgspec.structs.replace(generation, max_tokens=most)

        def job(job_id: str, deadline_s: float) -> Submit | EmbedJob:
            if request.texts:
                return embedding_of(request, job_id, model, deadline_s)
            return writing_of(request, job_id, model, deadline_s, generation, prefix=prefix)

        return self.submit(member, selection, job, now_s, purpose, is_hedge=is_hedge)

    def deliver(self, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        """Hand a part of the answer to the client."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        return [effects.Deliver(pieces)]

    def deliver_vectors(self, vectors: tuple[bytes, ...], now_s: float) -> list[Effect]:
        """Hand the vectors of some texts to the client."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        return [effects.DeliverVectors(vectors)]

    def retract(self) -> list[Effect]:
        """Throw away what was delivered, of which the client has seen nothing, and begin the answer anew."""
        self.first_token_s = None
        self.authors.clear()
        return [effects.Retract()]

    def stop(self, attempt: Attempt, *, ends_as: AttemptState = AttemptState.CANCELLED) -> list[Effect]:
        """End an attempt whose work is not wanted any more; what it spent is still to come."""
        if attempt.state is not AttemptState.RUNNING:
            return []
        attempt.state, attempt.ends_as = AttemptState.STOPPING, ends_as
        return [effects.StopJob(attempt.expert.agent_id, attempt.job_id)]

    def suspect(self, attempt: Attempt, *, hangs: bool) -> list[Effect]:
        """Reports an attempt as late; a second report of the same attempt does nothing."""
        if attempt.is_late:
            return []
        attempt.is_late, attempt.hangs = True, hangs
        return [effects.Suspect(attempt.expert.key, attempt.job_id, hangs)]

    def give_up(self, outcome: Outcome, now_s: float) -> list[Effect]:
        """Stop all attempts that run and tell the client the outcome, unless it has been told one."""
        if self.outcome:
            return []
        todo = [effect for attempt in self.attempts for effect in self.stop(attempt)]
        return [*todo, *self.conclude(outcome, now_s)]

    def conclude(self, outcome: Outcome, now_s: float) -> list[Effect]:
        """Tell the client the outcome; the request stays until everything it took is accounted."""
        self.outcome, self.concluded_s = outcome, now_s
        self.on_chosen = self.on_hedge = None
        if isinstance(outcome, Completed):
            # The client has the words of those that broke off, too: what they took was not for nothing.
            for author in self.authors:
                if author.state in (AttemptState.FAILED, AttemptState.LOST):
                    author.state = AttemptState.BROKEN_OFF
        return [*self._end_wait(now_s, served=False), effects.Conclude(outcome), *self._retire_if_over()]

    # --- Events -------------------------------------------------------------------------------------------------------

    def _begin(self, chosen: Selection | NoExpert, now_s: float, *, may_wait: bool = False) -> list[Effect]:
        if isinstance(chosen, NoExpert):
            self.refused = chosen
            if may_wait and self.may_wait_for(chosen) and (waits := self.await_room(self._begin, now_s)) is not None:
                return waits
            return self.conclude(Failed(chosen.code, chosen.message), now_s)
        self.refused = None
        self.run = self.modes[chosen.mode](self)
        return self.run.begin(chosen, now_s)

    def _room_appeared(self, now_s: float) -> list[Effect]:
        """Look whether the room is room for this request."""
        wait = self.wait
        if wait is None:
            return []
        self.waited_s += now_s - wait.since_s
        self.wait = msgspec.structs.replace(wait, since_s=now_s)
        return self.choose(self._leave_queue, now_s)

    def _leave_queue(self, chosen: Selection | NoExpert, now_s: float) -> list[Effect]:
        """Go on with what was chosen; the request stays where it is if the room turned out to be none for it."""
        wait = self.wait
        if wait is None:
            return []
        # Who could keep its budgets may have been lost, and come back in time.
        if isinstance(chosen, NoExpert) and chosen.code in (ErrorCode.OVERLOADED, ErrorCode.INFEASIBLE):
            return []
        if isinstance(chosen, NoExpert) and self.may_wait_for(chosen):
            self.refused = chosen
            until_s = self.waits_until_s(now_s)
            if until_s > now_s:
                self.wait = msgspec.structs.replace(wait, until_s=until_s)
                return []
        served = isinstance(chosen, Selection)
        return [*self._end_wait(now_s, served=served), *wait.then(chosen, now_s)]

    def _room_refused(self, now_s: float) -> list[Effect]:
        if self.wait is None:
            return []
        refused = self.refusal_in_vain("All experts are busy, and so are all places in the queue.", now_s)
        wait, self.wait = self.wait, None
        self.waited_s += now_s - wait.since_s
        return wait.then(refused, now_s)

    def _end_wait(self, now_s: float, *, served: bool) -> list[Effect]:
        if self.wait is None:
            return []
        self.waited_s += now_s - self.wait.since_s
        self.wait = None
        return [effects.LeaveQueue(served)]

    def _ended(self, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        attempt = self.attempt_of(ended.job_id)
        if attempt is None or attempt.is_over or self.run is None:
            return []
        was_running = attempt.state is AttemptState.RUNNING
        is_cancelled = isinstance(ended, JobDone) and ended.reason == "cancelled"
        is_beaten = not was_running and attempt.ends_as is AttemptState.HEDGED
        attempt.usage = ended.usage
        attempt.state = attempt.ends_as if is_cancelled or is_beaten else AttemptState.ANSWERED
        todo: list[Effect] = [effects.ReleaseExpert(attempt.expert.key, attempt.job_id)]
        if self.outcome:
            return [*todo, *self._retire_if_over()]
        if not was_running:
            return todo
        if is_cancelled:
            attempt.state, attempt.error = AttemptState.FAILED, "cancelled by its agent"
            attempt.code = JobErrorCode.AGENT_BROKE_RULES
            failed = JobFailed(job_id=attempt.job_id, code=attempt.code, message="The agent cancelled the job.")
            return [*todo, *self.run.failed(attempt, failed, now_s)]
        return [*todo, *self.run.ended(attempt, ended, now_s)]

    def _failed(self, failed: JobFailed, now_s: float) -> list[Effect]:
        attempt = self.attempt_of(failed.job_id)
        if attempt is None or attempt.is_over:
            return []
        was_running = attempt.state is AttemptState.RUNNING
        attempt.state, attempt.usage, attempt.error = AttemptState.FAILED, failed.usage, failed.message
        attempt.code = failed.code
        # An agent that does not say which jobs were in the batch leaves them all open to suspicion.
        attempt.died_with = failed.code == JobErrorCode.ENGINE_CRASHED and failed.in_batch is not False
        released = effects.ReleaseExpert(attempt.expert.key, attempt.job_id)
        return [released, *self._after_failure(attempt, failed, was_running, now_s)]

    def _lost(self, agent_id: str, now_s: float) -> list[Effect]:
        todo: list[Effect] = []
        for attempt in tuple(self.attempts):
            expert = attempt.expert
            if attempt.is_over or expert.agent_id != agent_id:
                continue
            was_running = attempt.state is AttemptState.RUNNING
            text = f"The link to {expert.agent_name} broke."
            attempt.state, attempt.error, attempt.code = AttemptState.LOST, text, JobErrorCode.AGENT_LOST
            failed = JobFailed(job_id=attempt.job_id, code=JobErrorCode.AGENT_LOST, message=text)
            todo.append(effects.ReleaseExpert(expert.key, attempt.job_id))
            todo += self._after_failure(attempt, failed, was_running, now_s)
        return todo

    def _after_failure(self, attempt: Attempt, failed: JobFailed, was_running: bool, now_s: float) -> list[Effect]:
        if self.outcome:
            return self._retire_if_over()
        if attempt.died_with and (suspected := verdict(self.attempts)) is not None:
            return self.give_up(suspected, now_s)
        if failed.code == JobErrorCode.CONTEXT_EXCEEDED:
            self.least_context_tokens = max(self.least_context_tokens, attempt.expert.report.context_tokens)
        return self.run.failed(attempt, failed, now_s) if self.run and was_running else []

    def _time_passed(self, now_s: float) -> list[Effect]:
        if now_s < self.next_deadline_s:
            return []
        if self.outcome is None:
            return self._limit_reached(now_s)
        lost = self.lose_rest("its agent did not confirm the cancellation")
        for attempt in lost:
            attempt.hangs = True
        return [*(effects.ReleaseExpert(attempt.expert.key, attempt.job_id) for attempt in lost), effects.Retire()]

    def _cut_off(
        self, event: events.ClientGone | events.ServiceStopping | events.HandlingFailed, now_s: float
    ) -> list[Effect]:
        """End the request for a reason that lies neither with its experts nor with its limits."""
        match event:
            case events.ClientGone():
                return self.give_up(Cancelled(), now_s)
            case events.ServiceStopping():
                text = "The coordinator is shutting down; send it again."
                return self.give_up(Failed(ErrorCode.STOPPING, text), now_s)
            case events.HandlingFailed():
                # The request fails even if it was being concluded: its client may not have been told.
                self.outcome = None
                return self.give_up(HANDLING_FAILED, now_s)

    def _limit_reached(self, now_s: float) -> list[Effect]:
        age_s = now_s - self.request.arrived_s
        if now_s >= self.request.deadline_s:
            text = f"The request's time was up after {age_s:.1f} s."
            return self.give_up(Failed(JobErrorCode.DEADLINE_EXCEEDED, text), now_s)
        if now_s >= self.expires_s:
            begun = "its answer was not complete" if self.first_token_s is not None else "no token had come"
            text = f"The request's budget was used up: {begun} after {age_s:.1f} s."
            return self.give_up(Failed(ErrorCode.BUDGET_EXCEEDED, text), now_s)
        if self.wait and now_s >= self.wait.until_s:
            then = self.wait.then
            refused = self.waited_in_vain(now_s)
            return [*self._end_wait(now_s, served=False), *then(refused, now_s)]
        todo: list[Effect] = []
        for attempt in tuple(self.attempts):
            if attempt.hangs_at_s is not None and attempt.hangs_at_s <= now_s:
                todo += self.suspect(attempt, hangs=True)
                todo += self.run.hangs(attempt, now_s) if self.run else []
        run_s = self.run.next_deadline_s if self.run else None
        # A request that waits for an answer about one that hangs has nothing else to ask.
        if self.run and self.on_chosen is None and run_s is not None and run_s <= now_s:
            todo += self.run.time_passed(now_s)
        return todo

    def _retire_if_over(self) -> list[Effect]:
        return [effects.Retire()] if self.outcome and not self.unended else []

    def _started(self, started: JobStarted) -> list[Effect]:
        if (attempt := self.attempt_of(started.job_id)) is not None:
            attempt.prompt_tokens = started.prompt_tokens
        return []

    def _waits_behind_others(self, job_id: str, now_s: float) -> list[Effect]:
        attempt = self.attempt_of(job_id)
        if attempt is None or attempt.state is not AttemptState.RUNNING or self.outcome:
            return []
        return self.run.waits_behind_others(attempt, now_s) if self.run else []

    def _tokens(self, job_id: str, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        run, attempt = self._heard(job_id, now_s)
        if run is None or attempt is None:
            return []
        was_isolated = attempt.is_isolated
        attempt.n_tokens += len(pieces)
        shared = was_isolated and not attempt.is_isolated
        freed: list[Effect] = [effects.ShareExpert(attempt.expert.key)] if shared else []
        return [*freed, *run.tokens(attempt, pieces, now_s)]

    def _heard(self, job_id: str, now_s: float) -> tuple[ModeRun | None, Attempt | None]:
        """The mode's run and the attempt that a word from an agent is for; None if nobody waits for it any more."""
        attempt = self.attempt_of(job_id)
        if attempt is None or attempt.state is not AttemptState.RUNNING or self.outcome:
            return None, None
        attempt.last_sign_s = now_s
        return self.run, attempt


MakeRun = Callable[[Lifecycle], ModeRun]
"""Begins a mode for a request."""
