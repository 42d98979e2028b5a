"""The life of one request: attempts, deadline, cancellation, one outcome. PURE: events in, effects out.

How experts answer it is a `Play`, one per mode; what all modes share is here. Each request has exactly one terminal
outcome (`Conclude`), and is retired only when every attempt has reported what it consumed, or its agent is gone for
good: work that was cancelled or failed is accounted like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from moe2.common.errors import JobErrorCode
from moe2.common.messages import ChatPrompt, Job, JobDone, JobFailed, JobScored, Submit, TokenPiece
from moe2.coordinator.budgets import Mode
from moe2.coordinator.dispatch import effects as do
from moe2.coordinator.dispatch import events as on
from moe2.coordinator.dispatch.attempt import Attempt, AttemptState, Purpose
from moe2.coordinator.dispatch.effects import Cancelled, Effect, Failed, Outcome
from moe2.coordinator.dispatch.events import Event
from moe2.coordinator.dispatch.mix import Mix
from moe2.coordinator.dispatch.play import Play
from moe2.coordinator.dispatch.rank import Rank
from moe2.coordinator.dispatch.request import Request
from moe2.coordinator.dispatch.route import MOST_ATTEMPTS, Route
from moe2.coordinator.dispatch.vote import Vote
from moe2.coordinator.selection import Member, NoExpert, Selection, SelectionRequest
from moe2.coordinator.structure import uses_tools

WIND_DOWN_S = 10.0
"""How long a concluded request waits for the usage of attempts that were told to stop."""

PLAYS: dict[Mode, type[Play]] = {Mode.ROUTE: Route, Mode.VOTE: Vote, Mode.RANK: Rank, Mode.MIX: Mix}

MakeJob = Callable[[str, float], Job]
"""A job from its id and the seconds it may take."""
Choose = Callable[[SelectionRequest], Selection | NoExpert]


@dataclass
class Lifecycle:
    """One request's state. `choose` answers from the live table and must not have side effects."""

    request: Request
    choose: Choose
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome | None = None
    first_token_s: float | None = None
    concluded_s: float | None = None
    least_context_tokens: int = 0
    refused: NoExpert | None = None
    play: Play | None = None

    @property
    def leading(self) -> Attempt | None:
        """Whose answer it is, or who has the most weight in it."""
        found = self.play.leading if self.play else None
        return found or (self.attempts[-1] if self.attempts else None)

    @property
    def next_deadline_s(self) -> float:
        if self.concluded_s is not None:
            return self.concluded_s + WIND_DOWN_S
        sooner_s = self.play.next_deadline_s if self.play else None
        return self.request.deadline_s if sooner_s is None else min(sooner_s, self.request.deadline_s)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take in one event; returns what the service is to do, in order."""
        match event:
            case on.TokensArrived(job_id=job_id, pieces=pieces):
                play, attempt = self._running(job_id)
                return play.tokens(attempt, pieces, now_s) if play and attempt else []
            case on.NextTokensArrived(next_tokens=next_tokens):
                play, attempt = self._running(next_tokens.job_id)
                return play.next_tokens(attempt, next_tokens, now_s) if play and attempt else []
            case on.Admitted():
                return self._begin(now_s)
            case on.AttemptStarted():
                return []
            case on.AttemptDone(done=ended) | on.AttemptScored(scored=ended):
                return self._ended(ended, now_s)
            case on.AttemptFailed(failed=failed):
                return self._failed(failed, now_s)
            case on.AgentLost(agent_id=agent_id):
                return self._lost(agent_id, now_s)
            case on.ClientGone():
                return self.give_up(Cancelled(), now_s)
            case on.ServiceStopping():
                return self.give_up(Failed("stopping", "The coordinator is shutting down; send it again."), now_s)
            case on.TimePassed():
                return self._time_passed(now_s)

    # --- For plays ----------------------------------------------------------------------------------------------------

    def select(self, now_s: float) -> Selection | NoExpert:
        """The best choice now, of experts that have not been tried, with what is left of the budgets."""
        request = self.request
        spent_j = (attempt.usage.energy.joules for attempt in self.attempts if attempt.usage)
        return self.choose(
            SelectionRequest(
                model=request.model,
                demand=request.demand,
                text=request.text,
                wish=request.wish,
                budgets=request.principal.budgets,
                # The first choice is made within microseconds: counting them would make every request a new problem.
                elapsed_s=now_s - request.arrived_s if self.attempts else 0.0,
                spent_j=sum(joules for joules in spent_j if joules is not None),
                excluded=frozenset(attempt.expert.key for attempt in self.attempts),
                least_context_tokens=self.least_context_tokens,
                needs_chat_template=isinstance(request.prompt, ChatPrompt),
                needs_tools=uses_tools(request.prompt),
                modes=request.modes,
                choice_tokens=request.ballot.tokens if request.ballot else None,
            )
        )

    def plan_again(self, told: JobFailed | None, now_s: float) -> list[Effect]:
        """Have other experts answer, or conclude with what the last one said."""
        chosen = self.select(now_s)
        if isinstance(chosen, NoExpert):
            self.refused = chosen
        elif len(self.attempts) < MOST_ATTEMPTS:
            self.play = PLAYS[chosen.mode](self)
            return self.play.begin(chosen, now_s)
        # What an expert itself said beats what the table says afterwards.
        failed = Failed(told.code, told.message) if told else Failed(JobErrorCode.INTERNAL, "All attempts failed.")
        return self.conclude(failed, now_s)

    def submit(
        self,
        member: Member,
        selection: Selection,
        job: MakeJob,
        now_s: float,
        purpose: Purpose = Purpose.ANSWER,
    ) -> list[Effect]:
        """Give an expert work."""
        job_id = f"{self.request.request_id}.{len(self.attempts)}"
        attempt = Attempt(job_id=job_id, member=member, selection=selection, submitted_s=now_s, purpose=purpose)
        self.attempts.append(attempt)
        return [do.SubmitJob(member.expert, job(job_id, self.request.deadline_s - now_s))]

    def answer(
        self, member: Member, selection: Selection, now_s: float, purpose: Purpose = Purpose.ANSWER
    ) -> list[Effect]:
        """Have an expert write the answer."""
        request = self.request

        def job(job_id: str, deadline_s: float) -> Submit:
            return Submit(
                job_id=job_id,
                request_id=request.request_id,
                model=member.expert.model,
                prompt=request.prompt,
                sampling=request.sampling,
                max_tokens=request.max_tokens,
                stop=request.stop,
                logprobs=request.logprobs,
                deadline_s=deadline_s,
                json_schema=request.structure.json_schema,
                grammar=request.structure.grammar,
                forced_tools=request.structure.forced_tools,
            )

        return self.submit(member, selection, job, now_s, purpose)

    def deliver(self, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        """Hand the client a part of the answer."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        return [do.Deliver(pieces)]

    def stop(self, attempt: Attempt) -> list[Effect]:
        """End an attempt whose work is not wanted any more; what it spent is still to come."""
        if attempt.state is not AttemptState.RUNNING:
            return []
        attempt.state = AttemptState.STOPPING
        return [do.StopJob(attempt.expert.agent_id, attempt.job_id)]

    def give_up(self, outcome: Outcome, now_s: float) -> list[Effect]:
        """Stop whatever runs and tell the client."""
        if self.outcome:
            return []
        effects = [effect for attempt in self.attempts for effect in self.stop(attempt)]
        return [*effects, *self.conclude(outcome, now_s)]

    def conclude(self, outcome: Outcome, now_s: float) -> list[Effect]:
        """Tell the client; the request stays until everything is accounted."""
        self.outcome, self.concluded_s = outcome, now_s
        return [do.Conclude(outcome), *self._retire_if_over()]

    # --- Events -------------------------------------------------------------------------------------------------------

    def _begin(self, now_s: float) -> list[Effect]:
        chosen = self.select(now_s)
        if isinstance(chosen, NoExpert):
            self.refused = chosen
            return self.conclude(Failed(chosen.code, chosen.message), now_s)
        self.play = PLAYS[chosen.mode](self)
        return self.play.begin(chosen, now_s)

    def _ended(self, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        attempt = self._attempt(ended.job_id)
        if attempt is None or attempt.is_over or self.play is None:
            return []
        was_running = attempt.state is AttemptState.RUNNING
        is_cancelled = isinstance(ended, JobDone) and ended.reason == "cancelled"
        attempt.usage = ended.usage
        attempt.state = AttemptState.CANCELLED if is_cancelled else AttemptState.ANSWERED
        effects: list[Effect] = [do.ReleaseExpert(attempt.expert.key, attempt.job_id)]
        if self.outcome:
            return [*effects, *self._retire_if_over()]
        if not was_running:
            return effects
        if is_cancelled:
            attempt.state, attempt.error = AttemptState.FAILED, "cancelled by its agent"
            failed = JobFailed(
                job_id=attempt.job_id, code=JobErrorCode.INTERNAL, message="The agent cancelled the job."
            )
            return [*effects, *self.play.failed(attempt, failed, now_s)]
        return [*effects, *self.play.ended(attempt, ended, now_s)]

    def _failed(self, failed: JobFailed, now_s: float) -> list[Effect]:
        attempt = self._attempt(failed.job_id)
        if attempt is None or attempt.is_over:
            return []
        was_running = attempt.state is AttemptState.RUNNING
        attempt.state, attempt.usage, attempt.error = AttemptState.FAILED, failed.usage, failed.message
        released = do.ReleaseExpert(attempt.expert.key, attempt.job_id)
        return [released, *self._after_failure(attempt, failed, was_running, now_s)]

    def _lost(self, agent_id: str, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for attempt in tuple(self.attempts):
            expert = attempt.expert
            if attempt.is_over or expert.agent_id != agent_id:
                continue
            was_running = attempt.state is AttemptState.RUNNING
            text = f"The link to {expert.agent_name} broke."
            attempt.state, attempt.error = AttemptState.LOST, text
            failed = JobFailed(job_id=attempt.job_id, code=JobErrorCode.AGENT_LOST, message=text)
            effects.append(do.ReleaseExpert(expert.key, attempt.job_id))
            effects += self._after_failure(attempt, failed, was_running, now_s)
        return effects

    def _after_failure(self, attempt: Attempt, failed: JobFailed, was_running: bool, now_s: float) -> list[Effect]:
        if self.outcome:
            return self._retire_if_over()
        if failed.code == JobErrorCode.CONTEXT_EXCEEDED:
            self.least_context_tokens = max(self.least_context_tokens, attempt.expert.report.context_tokens)
        return self.play.failed(attempt, failed, now_s) if self.play and was_running else []

    def _time_passed(self, now_s: float) -> list[Effect]:
        if now_s < self.next_deadline_s:
            return []
        if self.outcome is None:
            if now_s < self.request.deadline_s and self.play:
                return self.play.time_passed(now_s)
            waited_s = now_s - self.request.arrived_s
            return self.give_up(
                Failed(JobErrorCode.DEADLINE_EXCEEDED, f"The request's time was up after {waited_s:.1f} s."), now_s
            )
        effects: list[Effect] = []
        for attempt in self.attempts:
            if not attempt.is_over:
                attempt.state, attempt.error = AttemptState.LOST, "its agent did not confirm the cancellation"
                effects.append(do.ReleaseExpert(attempt.expert.key, attempt.job_id))
        return [*effects, do.Retire()]

    def _retire_if_over(self) -> list[Effect]:
        return [do.Retire()] if self.outcome and all(attempt.is_over for attempt in self.attempts) else []

    def _running(self, job_id: str) -> tuple[Play | None, Attempt | None]:
        """The play and the attempt that a word from an agent is for; None if nobody waits for it any more."""
        attempt = self._attempt(job_id)
        if attempt is None or attempt.state is not AttemptState.RUNNING or self.outcome:
            return None, None
        return self.play, attempt

    def _attempt(self, job_id: str) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.job_id == job_id), None)
