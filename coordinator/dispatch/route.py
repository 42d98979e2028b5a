"""Route: one expert answers, and its stream passes through. PURE.

Before the first token another expert may take over: in the place of one that failed, or beside one that is late, where
the first token decides (a hedge, after Dean and Barroso, "The Tail at Scale", 2013). After the first token a failure is
told, unless the client asked that another expert goes on from the text so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.common.messages import ChatPrompt, JobDone, JobFailed, JobScored, TokenPiece
from moe2.coordinator.dispatch.attempt import Attempt, AttemptState
from moe2.coordinator.dispatch.effects import Completed, Effect, Failed
from moe2.coordinator.dispatch.play import Play
from moe2.coordinator.selection import Member, NoExpert, Selection
from moe2.coordinator.structure import FREE

if TYPE_CHECKING:
    from moe2.coordinator.dispatch.life import Lifecycle

MOST_ATTEMPTS = 4
RESUMES_SINCE_PROTOCOL = 2
"""Older agents do not know `Submit.prefix`: theirs would be a second answer behind the first one's beginning."""

_FINAL = frozenset({JobErrorCode.INVALID_REQUEST, JobErrorCode.INVALID_GRAMMAR, JobErrorCode.DEADLINE_EXCEEDED})


class Route(Play):
    """Failover and hedging before the first token, resuming after it; re-planned with what is left of the budgets."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        self._last_failure: JobFailed | None = None
        self._judged: set[str] = set()
        """Late jobs for which it has been decided."""
        self._text: list[str] | None = [] if _can_resume(life) else None

    @property
    def next_deadline_s(self) -> float | None:
        """When the attempt that runs is later than it should be, for one that may get help."""
        if self.life.first_token_s is not None or self.life.hedge is not None:
            return None
        times = (
            attempt.submitted_s + attempt.prediction.ttft_s.p95
            for attempt in self._running()
            if attempt.prediction.ttft_s is not None and attempt.job_id not in self._judged
        )
        return min(times, default=None)

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        return self.life.answer(selection.first, selection, now_s)

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        if self._text is not None:
            self._text += [piece.text for piece in pieces]
        if self.life.authors and self.life.authors[-1] is attempt:
            return self.life.deliver(pieces, now_s)
        return [*self._win(attempt, now_s), *self.life.deliver(pieces, now_s)]

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        reason = ended.reason if isinstance(ended, JobDone) else "stop"
        return [*self._win(attempt, now_s), *self.life.conclude(Completed(reason), now_s)]

    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """Another expert may take over, unless it is too late for that, or the request itself is wrong."""
        # A crash or a refusal may pass; that the request itself is wrong stays the reason to give.
        blamed = self._last_failure is not None and self._last_failure.code in REQUEST_FAULTS
        if not blamed or failed.code in REQUEST_FAULTS:
            self._last_failure = failed
        if failed.code in _FINAL:
            return self.life.give_up(Failed(failed.code, failed.message), now_s)
        if any(self._running()):
            return []
        if self.life.first_token_s is None:
            return self._go_on(self.life.select(now_s), now_s, may_wait=True)
        return self._resume(failed, now_s)

    def time_passed(self, now_s: float) -> list[Effect]:
        """An attempt is late: have a second expert try, if it can be the faster one."""
        late = [attempt for attempt in self._running() if attempt.job_id not in self._judged]
        self._judged |= {attempt.job_id for attempt in late}
        if not late or len(self.life.attempts) >= MOST_ATTEMPTS:
            return []
        chosen = self.life.select(now_s)
        if isinstance(chosen, NoExpert) or not _is_faster(chosen.first, late[0], now_s):
            return []
        if not self.life.terms.may_hedge():
            return []
        effects = self.life.answer(chosen.first, chosen, now_s)
        self.life.hedge = self.life.attempts[-1]
        return effects

    def _go_on(self, chosen: Selection | NoExpert, now_s: float, *, may_wait: bool = False) -> list[Effect]:
        """Submit to the best expert that has not failed this request yet, or conclude that there is none."""
        if len(self.life.attempts) < MOST_ATTEMPTS:
            if isinstance(chosen, Selection):
                return self.life.answer(chosen.first, chosen, now_s)
            self.life.refused = chosen
            if may_wait and chosen.code == "overloaded":
                waits = self.life.await_room(self._go_on, now_s)
                if waits is not None:
                    return waits
        return self._give_up(now_s)

    def _resume(self, failed: JobFailed, now_s: float) -> list[Effect]:
        """Have another expert go on from the text so far, or tell the client."""
        if self._text is not None and self.life.n_tokens_left == 0:
            return self.life.conclude(Completed("length"), now_s)
        older: frozenset[str] = frozenset()
        while self._text is not None and len(self.life.attempts) < MOST_ATTEMPTS:
            chosen = self.life.select(now_s, excluded=older)
            if isinstance(chosen, NoExpert):
                break
            if chosen.first.expert.protocol >= RESUMES_SINCE_PROTOCOL:
                # A stop string cannot lie across the seam: an agent holds back what may be the beginning of one.
                return self.life.answer(chosen.first, chosen, now_s, prefix="".join(self._text))
            older |= {chosen.first.expert.key}
        return self.life.conclude(Failed(failed.code, failed.message), now_s)

    def _give_up(self, now_s: float) -> list[Effect]:
        # What an expert itself said beats what the table says afterwards.
        told = self._last_failure
        failed = Failed(told.code, told.message) if told else Failed(JobErrorCode.INTERNAL, "All attempts failed.")
        return self.life.conclude(failed, now_s)

    def _win(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """The answer is this expert's; who else tries is not needed any more."""
        if attempt not in self.life.authors:
            self.life.authors.append(attempt)
        losers = [other for other in self._running() if other is not attempt]
        return [effect for loser in losers for effect in self.life.stop(loser, now_s, ends_as=AttemptState.HEDGED)]

    def _running(self) -> list[Attempt]:
        return [attempt for attempt in self.life.attempts if attempt.state is AttemptState.RUNNING]


def _can_resume(life: Lifecycle) -> bool:
    """A grammar, a tool call and log-probabilities cannot be taken up in the middle."""
    request = life.request
    tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else ()
    return request.wish.resume and request.structure == FREE and not tools and request.logprobs is None


def _is_faster(member: Member, late: Attempt, now_s: float) -> bool:
    """True if a second expert has a free slot and is predicted to begin within the time that the late one has already
    taken: nothing better is known of how long the late one still takes."""
    ttft_s = member.prediction.ttft_s
    return ttft_s is not None and member.prediction.shape.queued_ahead is None and ttft_s.p50 < now_s - late.submitted_s
