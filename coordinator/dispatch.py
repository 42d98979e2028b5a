"""The life of one request: attempts, failover, deadline, cancellation. PURE: events in, effects out.

Each request has exactly one terminal outcome (`Conclude`), and is retired only when every attempt has reported what it
consumed, or its agent is gone for good: work that was cancelled or failed is accounted like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.common.messages import (
    ChatPrompt,
    JobDone,
    JobFailed,
    JobStarted,
    JobUsage,
    Sampling,
    Submit,
    TextPrompt,
    TokenPiece,
)
from moe2.coordinator.access.principal import ANYBODY, Principal
from moe2.coordinator.budgets import Wish
from moe2.coordinator.predict import Demand
from moe2.coordinator.selection import NoExpert, Selection, SelectionRequest
from moe2.coordinator.structure import FREE, Structure, uses_tools
from moe2.coordinator.table import Expert

MOST_ATTEMPTS = 4
WIND_DOWN_S = 10.0
"""How long a concluded request waits for the usage of attempts that were told to stop."""


@dataclass(frozen=True)
class Request:
    """What a client asked for, in moe2's words. `arrived_s` is when its last byte had been read."""

    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    sampling: Sampling
    demand: Demand
    arrived_s: float
    deadline_s: float
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    wish: Wish = field(default_factory=Wish)
    structure: Structure = FREE
    principal: Principal = ANYBODY

    @property
    def text(self) -> str:
        """The prompt as the gate reads it: the last message of a conversation, or the text."""
        if isinstance(self.prompt, ChatPrompt):
            return self.prompt.messages[-1].content
        return self.prompt.text


# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Admitted:
    """The first event of every request."""


@dataclass(frozen=True)
class AttemptStarted:
    started: JobStarted


@dataclass(frozen=True)
class TokensArrived:
    job_id: str
    pieces: tuple[TokenPiece, ...]


@dataclass(frozen=True)
class AttemptDone:
    done: JobDone


@dataclass(frozen=True)
class AttemptFailed:
    failed: JobFailed


@dataclass(frozen=True)
class AgentLost:
    agent_id: str


@dataclass(frozen=True)
class ClientGone:
    """The client disconnected."""


@dataclass(frozen=True)
class ServiceStopping:
    """The coordinator shuts down and cannot wait any longer."""


@dataclass(frozen=True)
class TimePassed:
    """`next_deadline_s` has been reached."""


Event = (
    Admitted
    | AttemptStarted
    | TokensArrived
    | AttemptDone
    | AttemptFailed
    | AgentLost
    | ClientGone
    | ServiceStopping
    | TimePassed
)

# --- Effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubmitJob:
    expert: Expert
    submit: Submit


@dataclass(frozen=True)
class StopJob:
    agent_id: str
    job_id: str


@dataclass(frozen=True)
class ReleaseExpert:
    """An attempt has ended; its expert has room again."""

    expert_key: str
    job_id: str


@dataclass(frozen=True)
class Deliver:
    pieces: tuple[TokenPiece, ...]


@dataclass(frozen=True)
class Conclude:
    """The one outcome that the client learns."""

    outcome: Outcome


@dataclass(frozen=True)
class Retire:
    """Everything is accounted; forget the request."""


Effect = SubmitJob | StopJob | ReleaseExpert | Deliver | Conclude | Retire


@dataclass(frozen=True)
class Completed:
    """reason: "stop" or "length"."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """`code` is a `JobErrorCode` value or a `NoExpert.code`."""

    code: str
    message: str


@dataclass(frozen=True)
class Cancelled:
    """By the client."""


Outcome = Completed | Failed | Cancelled

# --- State ------------------------------------------------------------------------------------------------------------


class AttemptState(StrEnum):
    RUNNING = "running"
    STOPPING = "stopping"
    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass
class Attempt:
    """One expert's work for the request. `usage` None: nothing was spent, or (state LOST) nobody can say."""

    job_id: str
    selection: Selection
    submitted_s: float
    state: AttemptState = AttemptState.RUNNING
    usage: JobUsage | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state not in (AttemptState.RUNNING, AttemptState.STOPPING)


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
    last_failure: JobFailed | None = None
    refused: NoExpert | None = None

    @property
    def next_deadline_s(self) -> float:
        if self.concluded_s is not None:
            return self.concluded_s + WIND_DOWN_S
        return self.request.deadline_s

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take in one event; returns what the service is to do, in order."""
        match event:
            case TokensArrived(job_id=job_id, pieces=pieces):
                return self._tokens(job_id, pieces, now_s)
            case Admitted():
                return self._try_next(now_s)
            case AttemptStarted():
                return []
            case AttemptDone(done=done):
                return self._done(done, now_s)
            case AttemptFailed(failed=failed):
                return self._failed(failed, now_s)
            case AgentLost(agent_id=agent_id):
                return self._lost(agent_id, now_s)
            case ClientGone():
                return self._give_up(Cancelled(), now_s)
            case ServiceStopping():
                return self._give_up(Failed("stopping", "The coordinator is shutting down; send it again."), now_s)
            case TimePassed():
                return self._time_passed(now_s)

    def _try_next(self, now_s: float) -> list[Effect]:
        """Submit to the best expert that has not failed this request yet, or conclude that there is none."""
        request = self.request
        spent_j = (attempt.usage.energy.joules for attempt in self.attempts if attempt.usage)
        chosen = self.choose(
            SelectionRequest(
                model=request.model,
                demand=request.demand,
                text=request.text,
                wish=request.wish,
                budgets=request.principal.budgets,
                # The first choice is made within microseconds: counting them would make every request a new problem.
                elapsed_s=now_s - request.arrived_s if self.attempts else 0.0,
                spent_j=sum(joules for joules in spent_j if joules is not None),
                excluded=frozenset(attempt.selection.expert.key for attempt in self.attempts),
                least_context_tokens=self.least_context_tokens,
                needs_chat_template=isinstance(request.prompt, ChatPrompt),
                needs_tools=uses_tools(request.prompt),
            )
        )
        if isinstance(chosen, NoExpert) or len(self.attempts) >= MOST_ATTEMPTS:
            self.refused = chosen if isinstance(chosen, NoExpert) else None
            return self._conclude(self._why_nobody(chosen), now_s)
        job_id = f"{request.request_id}.{len(self.attempts)}"
        self.attempts.append(Attempt(job_id=job_id, selection=chosen, submitted_s=now_s))
        submit = Submit(
            job_id=job_id,
            request_id=request.request_id,
            model=chosen.expert.model,
            prompt=request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            logprobs=request.logprobs,
            deadline_s=request.deadline_s - now_s,
            json_schema=request.structure.json_schema,
            grammar=request.structure.grammar,
            forced_tools=request.structure.forced_tools,
        )
        return [SubmitJob(chosen.expert, submit)]

    def _why_nobody(self, chosen: Selection | NoExpert) -> Failed:
        """The most telling reason: what an expert itself said beats what the table says afterwards."""
        if self.last_failure:
            return Failed(self.last_failure.code, self.last_failure.message)
        if isinstance(chosen, NoExpert):
            return Failed(chosen.code, chosen.message)
        return Failed(JobErrorCode.INTERNAL, "All attempts failed.")

    def _tokens(self, job_id: str, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        attempt = self._attempt(job_id)
        if attempt is None or attempt.state is not AttemptState.RUNNING or self.outcome:
            return []
        if self.first_token_s is None:
            self.first_token_s = now_s
        return [Deliver(pieces)]

    def _done(self, done: JobDone, now_s: float) -> list[Effect]:
        attempt = self._attempt(done.job_id)
        if attempt is None or attempt.is_over:
            return []
        was_running = attempt.state is AttemptState.RUNNING
        attempt.usage = done.usage
        attempt.state = AttemptState.CANCELLED if done.reason == "cancelled" else AttemptState.ANSWERED
        effects: list[Effect] = [ReleaseExpert(attempt.selection.expert.key, attempt.job_id)]
        if self.outcome:
            return [*effects, *self._retire_if_over()]
        if was_running and attempt.state is AttemptState.CANCELLED:
            attempt.state, attempt.error = AttemptState.FAILED, "cancelled by its agent"
            return [*effects, *self._conclude(Failed(JobErrorCode.INTERNAL, "The agent cancelled the job."), now_s)]
        return [*effects, *self._conclude(Completed(done.reason), now_s)]

    def _failed(self, failed: JobFailed, now_s: float) -> list[Effect]:
        attempt = self._attempt(failed.job_id)
        if attempt is None or attempt.is_over:
            return []
        attempt.state, attempt.usage, attempt.error = AttemptState.FAILED, failed.usage, failed.message
        return [
            ReleaseExpert(attempt.selection.expert.key, attempt.job_id),
            *self._after_failure(attempt, failed, now_s),
        ]

    def _lost(self, agent_id: str, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for attempt in tuple(self.attempts):
            expert = attempt.selection.expert
            if attempt.is_over or expert.agent_id != agent_id:
                continue
            text = f"The link to {expert.agent_name} broke."
            attempt.state, attempt.error = AttemptState.LOST, text
            failed = JobFailed(job_id=attempt.job_id, code=JobErrorCode.AGENT_LOST, message=text)
            effects.append(ReleaseExpert(expert.key, attempt.job_id))
            effects += self._after_failure(attempt, failed, now_s)
        return effects

    def _after_failure(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """Before the first token another expert may take over; after it the client has to be told."""
        if self.outcome:
            return self._retire_if_over()
        if failed.code == JobErrorCode.CONTEXT_EXCEEDED:
            self.least_context_tokens = max(self.least_context_tokens, attempt.selection.expert.report.context_tokens)
        # A crash or a refusal may pass; that the request itself is wrong stays the reason to give.
        blamed = self.last_failure is not None and self.last_failure.code in REQUEST_FAULTS
        if not blamed or failed.code in REQUEST_FAULTS:
            self.last_failure = failed
        gives_up = self.first_token_s is not None or failed.code in (
            JobErrorCode.INVALID_REQUEST,
            JobErrorCode.INVALID_GRAMMAR,
            JobErrorCode.DEADLINE_EXCEEDED,
        )
        if gives_up:
            return self._conclude(Failed(failed.code, failed.message), now_s)
        return self._try_next(now_s)

    def _time_passed(self, now_s: float) -> list[Effect]:
        if now_s < self.next_deadline_s:
            return []
        if self.outcome is None:
            waited_s = now_s - self.request.arrived_s
            return self._give_up(
                Failed(JobErrorCode.DEADLINE_EXCEEDED, f"The request's time was up after {waited_s:.1f} s."), now_s
            )
        effects: list[Effect] = []
        for attempt in self.attempts:
            if not attempt.is_over:
                attempt.state, attempt.error = AttemptState.LOST, "its agent did not confirm the cancellation"
                effects.append(ReleaseExpert(attempt.selection.expert.key, attempt.job_id))
        return [*effects, Retire()]

    def _give_up(self, outcome: Outcome, now_s: float) -> list[Effect]:
        if self.outcome:
            return []
        effects: list[Effect] = []
        for attempt in self.attempts:
            if attempt.state is AttemptState.RUNNING:
                attempt.state = AttemptState.STOPPING
                effects.append(StopJob(attempt.selection.expert.agent_id, attempt.job_id))
        return [*effects, *self._conclude(outcome, now_s)]

    def _conclude(self, outcome: Outcome, now_s: float) -> list[Effect]:
        self.outcome, self.concluded_s = outcome, now_s
        return [Conclude(outcome), *self._retire_if_over()]

    def _retire_if_over(self) -> list[Effect]:
        return [Retire()] if self.outcome and all(attempt.is_over for attempt in self.attempts) else []

    def _attempt(self, job_id: str) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.job_id == job_id), None)
