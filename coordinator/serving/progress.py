"""How far a request has come, and what follows from that alone: what it asks for next, how long it may wait. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from moe2.common.error_codes import PASSING, ErrorCode
from moe2.common.errors import JobErrorCode
from moe2.common.link.prompts import ChatPrompt
from moe2.coordinator.choosing.explain import Decision
from moe2.coordinator.choosing.request import Budgets, Demand, Mode, SelectionRequest, Wish, budgets_for
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Effect, Outcome
from moe2.coordinator.serving.mode import ModeRun
from moe2.coordinator.serving.request import Request, has_gap, uses_tools
from moe2.coordinator.serving.suspicion import is_suspect, restarts_seen

WIND_DOWN_S = 10.0
"""Seconds that a concluded request waits for the usage of attempts that were told to stop."""

OnChosen = Callable[[Selection | NoExpert, float], list[Effect]]
"""What to do with a choice of experts, or with the reason why there is none, at a moment in monotonic seconds."""


class Limits(msgspec.Struct, frozen=True):
    """A request's budgets as moments by which something must have happened; None: no limit. Decision 0012."""

    first_token_by_s: float | None = None
    """When the first token must have come, in monotonic seconds."""
    end_by_s: float | None = None
    """When the answer must be complete, in monotonic seconds."""
    energy_j: float | None = None
    """Joules that all attempts together may take."""
    per_token_s: float | None = None
    """Seconds that a token after the first one may take on average."""

    @classmethod
    def of(cls, left: Budgets, since_s: float) -> Limits:
        """The limits that budgets mean. left: what is left of them at `since_s`, when nothing has been spent yet."""
        return cls(
            first_token_by_s=None if left.ttft_budget_s is None else since_s + left.ttft_budget_s,
            end_by_s=None if left.latency_budget_s is None else since_s + left.latency_budget_s,
            energy_j=left.energy_budget_j,
            per_token_s=left.tpot_budget_s,
        )

    def expires_s(self, *, begun: bool, strict: bool) -> float | None:
        """When the request is over unless something happens. begun: its first token has come."""
        if begun:
            return self.end_by_s if strict else None
        if self.first_token_by_s is None or self.end_by_s is None:
            return self.end_by_s if self.first_token_by_s is None else self.first_token_by_s
        return min(self.first_token_by_s, self.end_by_s)

    def exceeded(
        self, *, first_token_s: float | None, end_s: float, joules: float | None, tokens: int | None
    ) -> tuple[str, ...]:
        """Names of the budgets that a request did not keep, as far as that is known."""
        found = []
        if joules is not None and self.energy_j is not None and joules > self.energy_j:
            found.append("energy_budget_j")
        if self.end_by_s is not None and end_s > self.end_by_s:
            found.append("latency_budget_s")
        came_s = end_s if first_token_s is None else first_token_s
        if self.first_token_by_s is not None and came_s > self.first_token_by_s:
            found.append("ttft_budget_s")
        if first_token_s is not None and tokens is not None and tokens > 1 and self.per_token_s is not None:
            per_token_s = (end_s - first_token_s) / (tokens - 1)
            found += ["tpot_budget_s"] if per_token_s > self.per_token_s else []
        return tuple(found)


NO_LIMITS = Limits()


class Wait(msgspec.Struct, frozen=True):
    """A request's wait for room with an expert."""

    since_s: float
    until_s: float
    then: OnChosen
    """What to do once somebody has room, or nobody ever will."""


class Progress(msgspec.Struct, eq=False, weakref=True):
    """The state of one request. All moments are monotonic seconds."""

    request: Request
    queue_s: float = 0.0
    """The longest wait for room; 0: the request does not wait."""
    attempts: list[Attempt] = []
    outcome: Outcome | None = None
    first_token_s: float | None = None
    concluded_s: float | None = None
    least_context_tokens: int = 0
    """The largest context that turned out to be too small for the request."""
    refused: NoExpert | None = None
    """The reason why the latest choice found no expert."""
    run: ModeRun | None = None
    authors: list[Attempt] = []
    """The attempts whose words are the answer, in their order."""
    hedge: Attempt | None = None
    """The attempt that was started beside a late one."""
    wait: Wait | None = None
    waited_s: float = 0.0
    """How long the request has waited for room, all in all."""
    limits: Limits = NO_LIMITS
    """What the budgets of the first decision mean for the clock."""
    shown: tuple[Selection | NoExpert, Decision | None] | None = None
    """The latest decision as receipts show it, with the choice that it was made of."""

    @property
    def leading(self) -> Attempt | None:
        """The attempt whose answer it is, or that has the most weight in it; the latest one while there is none."""
        found = self.run.leading if self.run else None
        latest = self.authors or self.attempts
        return found or (latest[-1] if latest else None)

    @property
    def running(self) -> list[Attempt]:
        """The attempts that work, and were not told to stop."""
        return [attempt for attempt in self.attempts if attempt.state is AttemptState.RUNNING]

    @property
    def tried(self) -> frozenset[str]:
        """Keys of the experts that this request is not given to again, however often their engine is restarted."""
        if not self.attempts:
            return frozenset()
        failed = (attempt.expert.key for attempt in self.attempts if not attempt.is_taken_back)
        return frozenset(failed) - restarts_seen(self.attempts).keys()

    @property
    def is_suspect(self) -> bool:
        """Whether the request may be what killed an engine, or makes one hang."""
        return is_suspect(self.attempts)

    @property
    def unended(self) -> list[Attempt]:
        """The attempts that have still to report what they took."""
        return [attempt for attempt in self.attempts if not attempt.is_over]

    @property
    def n_tokens_written(self) -> int:
        """Tokens that the client has."""
        return sum([author.n_tokens for author in self.authors])

    @property
    def n_tokens_left(self) -> int | None:
        """What is left of the request's `max_tokens`; None where it set none."""
        most = self.request.generation.max_tokens
        return None if most is None else max(0, most - self.n_tokens_written)

    @property
    def overhead_s(self) -> float | None:
        """What the coordinator itself took from the request's last byte to its dispatch, waiting for room left out."""
        if not self.attempts:
            return None
        first = self.attempts[0]
        return first.submitted_s - self.request.arrived_s - first.waited_s

    @property
    def expires_s(self) -> float:
        """When the request is over unless its first token comes, or, where its budget is strict, its end."""
        expires_s = self.limits.expires_s(begun=self.first_token_s is not None, strict=self.request.wish.strict)
        return self.request.deadline_s if expires_s is None else min(expires_s, self.request.deadline_s)

    @property
    def next_deadline_s(self) -> float:
        """When something is due if nothing happens before."""
        if self.concluded_s is not None:
            return self.concluded_s + WIND_DOWN_S
        next_s = self.expires_s
        if self.wait is not None:
            next_s = min(next_s, self.wait.until_s)
        if self.run is not None and (look_s := self.run.next_deadline_s) is not None:
            next_s = min(next_s, look_s)
        for attempt in self.attempts:
            if (hangs_at_s := attempt.hangs_at_s) is not None:
                next_s = min(next_s, hangs_at_s)
        return next_s

    @property
    def hurries(self) -> bool:
        """Whether `next_deadline_s` may have come nearer although no job was submitted."""
        return self.wait is not None or (self.run is not None and self.run.hurries)

    def elapsed_s(self, now_s: float) -> float:
        """The time that counts against the budgets.

        The first choice is made within microseconds: counting them would make every request a new problem.
        """
        return now_s - self.request.arrived_s if self.attempts or self.waited_s else 0.0

    def question(
        self,
        now_s: float,
        *,
        excluded: frozenset[str],
        modes: frozenset[Mode],
        down: Mapping[str, int] = MappingProxyType({}),
    ) -> SelectionRequest:
        """What the request asks the choice of experts for, with what is left of its budgets.

        excluded: keys of experts to leave out. modes: those to choose among. down: restarts that were counted, by key,
        when the engine of an expert died. Attempts that still run keep the joules that they may take.
        """
        request = self.request
        return SelectionRequest(
            model=request.model,
            demand=self._demand(),
            text=request.text,
            wish=self._wish(),
            budgets=request.principal.budgets,
            elapsed_s=self.elapsed_s(now_s),
            spent_j=sum([attempt.reserved_j for attempt in self.attempts]),
            excluded=excluded,
            least_context_tokens=self.least_context_tokens,
            needs_chat_template=isinstance(request.prompt, ChatPrompt),
            needs_tools=uses_tools(request.prompt),
            needs_infill=has_gap(request.prompt),
            needs_vectors=bool(request.texts),
            vector_size=request.vector_size,
            modes=modes,
            restarts_seen=down,
            choice_tokens=request.ballot.tokens if request.ballot else None,
            asks_final_answer=lambda: request.answer_form.kind is not None,
        )

    def waits_until_s(self, now_s: float) -> float:
        """How long the request may wait for an expert with room.

        That is until the queue's limit, the end of the budgets, or when even an idle expert would come too late. A
        request whose engine has died may wait as long as if it had just come; one whose model is being loaded, as long
        as its budgets let it.
        """
        if self.queue_s and self.refused and self.refused.code == ErrorCode.MODEL_LOADING:
            return self._patience_s()
        before_s = self.attempts[-1].waited_s if restarts_seen(self.attempts) else 0.0
        until_s = min(now_s + self.queue_s - (self.waited_s - before_s), self._patience_s())
        waits_s = self.refused.waits_s if self.refused else None
        return until_s if waits_s is None else min(until_s, now_s + waits_s)

    def _patience_s(self) -> float:
        """Until when waiting makes sense: before the first decision only the request's and its key's budgets are
        known."""
        request = self.request
        if self.attempts:
            return self.expires_s
        own = budgets_for(request.wish, "", {}, request.principal.budgets)
        expires_s = Limits.of(own, request.arrived_s).expires_s(begun=False, strict=False)
        return request.deadline_s if expires_s is None else min(expires_s, request.deadline_s)

    def _demand(self) -> Demand:
        """What is still to be done: the words that the client already has need not be written again."""
        demand = self.request.demand
        if not self.n_tokens_written:
            return demand
        return Demand(demand.prompt_tokens + self.n_tokens_written, self.n_tokens_left)

    def _wish(self) -> Wish:
        """The request's wish; once the first token has come, its budget is no limit for the expert that goes on."""
        wish = self.request.wish
        if self.first_token_s is None or self.limits.first_token_by_s is None:
            return wish
        return wish.model_copy(update={"ttft_budget_s": self.request.deadline_s})

    def may_wait_for(self, refused: NoExpert) -> bool:
        """True if the reason for a refusal may pass by itself: load does, and an engine that died comes back."""
        if refused.code in PASSING:
            return True
        return refused.code in (ErrorCode.EXHAUSTED, ErrorCode.NO_LIVE_EXPERT) and bool(restarts_seen(self.attempts))

    def refusal_in_vain(self, text: str, now_s: float) -> NoExpert:
        """The refusal of a request that has waited in vain. text: its message, where the request waited for room."""
        refused = self.refused
        if refused is None or refused.code not in PASSING - {ErrorCode.OVERLOADED}:
            return NoExpert(ErrorCode.OVERLOADED, text)
        return replace(refused, message=f"After {now_s - self.request.arrived_s:.1f} s: {refused.message}")

    def waited_in_vain(self, now_s: float) -> NoExpert:
        """The refusal of a request that has waited for as long as it may."""
        age_s = now_s - self.request.arrived_s
        return self.refusal_in_vain(f"No expert had room for the request within {age_s:.1f} s.", now_s)

    def lose_rest(self, error: str) -> list[Attempt]:
        """Mark every attempt that has not ended as lost, and return these attempts."""
        rest = self.unended
        for attempt in rest:
            attempt.state, attempt.error, attempt.code = AttemptState.LOST, error, JobErrorCode.INTERNAL
        return rest

    def attempt_of(self, job_id: str) -> Attempt | None:
        """The attempt that has this job; None where it has none."""
        for attempt in self.attempts:
            if attempt.job_id == job_id:
                return attempt
        return None
