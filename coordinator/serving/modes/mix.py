"""Mix: members with one vocabulary write together, token by token in lock step. PURE.

At each step every member says what it thinks of the next token; the mixture of their distributions is drawn from here,
with the request's own sampling parameters and seed, and the token is told to all of them. So it streams at the pace of
the slowest, plus a round trip per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

from moe2.common.generation import USUAL_SAMPLING, overlaid
from moe2.common.link.messages import (
    Candidate,
    FollowJob,
    JobDone,
    JobScored,
    NextTokens,
    TakeToken,
    TokenAlternative,
    TokenPiece,
)
from moe2.common.textstream import Likelihood, TextStream
from moe2.coordinator.choosing.result import Member, Selection
from moe2.coordinator.serving.attempt import Attempt, Purpose
from moe2.coordinator.serving.effects import Completed, Effect, Tell
from moe2.coordinator.serving.life import Lifecycle, MakeJob
from moe2.coordinator.serving.mode import Collaboration
from moe2.coordinator.serving.modes.panel import PanelRun
from moe2.coordinator.serving.modes.token_mixture import TokenDraw, TokenMixture, mix_tokens

GREEDY_TOP_P, GREEDY_MOST = 0.99, 32
"""How much members send of each distribution where the best token of the mixture is taken: mass, and tokens at most."""
DRAWN_TOP_P, DRAWN_MOST = 0.999, 256
"""How much members send where tokens are drawn, or penalties may lift one from below: mass, and tokens at most."""


class Mix(PanelRun):
    """A mixture in progress: one round per token, and a last one for the accounts."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        request = life.request
        sampling = request.generation.sampling
        seed = sampling.seed
        if seed is None:
            seed = int.from_bytes(sha256(request.request_id.encode()).digest()[:8])
        self._draw = TokenDraw(overlaid(sampling, USUAL_SAMPLING), seed)
        self._text = TextStream(request.generation.stop)
        self._views: dict[str, tuple[Candidate, ...]] = {}
        self._step = 0
        self._ended_by: str | None = None

    @property
    def next_deadline_s(self) -> float | None:
        # At the end nobody's word is needed any more, so nobody is waited for beyond patience.
        if self._ended_by is not None:
            return min(self._due_s.values(), default=None)
        return super().next_deadline_s

    @property
    def answer_tokens(self) -> int | None:
        return self._step

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        todo: list[Effect] = []
        for member in selection.members:
            todo += self.life.submit(member, selection, self._job(member), now_s, Purpose.FOLLOW)
            attempt = self.life.attempts[-1]
            self.active.append(attempt)
            predicted_s = member.prediction.ttft_s
            self.wait_for(attempt, predicted_s.p95 if predicted_s else None, now_s)
        return todo

    def next_tokens(self, attempt: Attempt, next_tokens: NextTokens, now_s: float) -> list[Effect]:
        is_late = self._ended_by is not None or next_tokens.step != self._step
        if is_late or not next_tokens.candidates or not self.is_waited_for(attempt):
            return []
        self._views[attempt.job_id] = next_tokens.candidates
        return self.arrived(attempt, now_s)

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        if attempt not in self.active:
            return []
        if self._ended_by is None:
            return self._left(attempt, now_s)
        return self.arrived(attempt, now_s) if self.is_waited_for(attempt) else []

    def round_over(self, now_s: float) -> list[Effect]:
        if self._ended_by is not None:
            return self.life.conclude(Completed(self._ended_by), now_s)
        mixture = mix_tokens([self._views[attempt.job_id] for attempt in self.active], self.weights)
        chosen = self._draw.draw(mixture)
        step, self._step = self._step, self._step + 1
        pieces: tuple[TokenPiece, ...] = ()
        if chosen.ends:
            self._ended_by = "stop"
        else:
            pieces = self._text.feed(chosen.piece, self._likelihood(chosen, mixture))
            if self._text.stopped:
                self._ended_by = "stop"
            elif self._step == self.life.request.generation.max_tokens:
                self._ended_by = "length"
        token = chosen.token if self._ended_by is None else None
        if token is None:
            pieces += self._text.finish()
        # First the members, who then work while the client is served.
        told = self._tell(step, token, now_s)
        return [*told, *(self.life.deliver(pieces, now_s) if pieces else [])]

    @property
    def collaboration(self) -> Collaboration:
        return Collaboration(
            members=self.shares(),
            dropped=tuple(self.dropped),
        )

    def time_passed(self, now_s: float) -> list[Effect]:
        if self._ended_by is None:
            return super().time_passed(now_s)
        # The answer is complete; whoever has not confirmed it is told to stop, and accounted when it does.
        late = [attempt for attempt in self.active if self._due_s.get(attempt.job_id, math.inf) <= now_s]
        todo = [effect for attempt in late for effect in self.life.stop(attempt)]
        for attempt in late:
            del self._due_s[attempt.job_id]
        return [*todo, *self.proceed(now_s)]

    def _nobody_left(self, now_s: float) -> list[Effect]:
        # The last one may fail while it only had to confirm the end.
        if self._ended_by is not None:
            return self.life.conclude(Completed(self._ended_by), now_s)
        return super()._nobody_left(now_s)

    def _left(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Act on a member whose context is full: the others go on, and with the last one the answer ends."""
        if len(self.active) > 1:
            self.drop(attempt, "its context is full")
            return self.proceed(now_s)
        pieces = self._text.finish()
        delivered = self.life.deliver(pieces, now_s) if pieces else []
        return [*delivered, *self.life.conclude(Completed("length"), now_s)]

    def _tell(self, step: int, token: int | None, now_s: float) -> list[Effect]:
        todo: list[Effect] = []
        for attempt in self.active:
            take = TakeToken(job_id=attempt.job_id, step=step, token=token)
            todo.append(Tell(attempt.expert.agent_id, take))
            predicted_s = attempt.prediction.per_token_s
            self.wait_for(attempt, predicted_s.p95 if predicted_s else None, now_s)
        return todo

    def _likelihood(self, chosen: Candidate, mixture: TokenMixture) -> Likelihood | None:
        wanted = self.life.request.generation.logprobs
        return None if wanted is None else Likelihood(chosen.logprob, _alternatives(mixture.best(wanted)))

    def _job(self, member: Member) -> MakeJob:
        request = self.life.request
        sampling = request.generation.sampling
        steered = bool(sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias)
        is_greedy = sampling.temperature == 0 and not steered

        def job(job_id: str, deadline_s: float) -> FollowJob:
            return FollowJob(
                job_id=job_id,
                request_id=request.request_id,
                model=member.expert.model,
                prompt=request.prompt,
                top_p=GREEDY_TOP_P if is_greedy else DRAWN_TOP_P,
                most=GREEDY_MOST if is_greedy else DRAWN_MOST,
                max_tokens=request.generation.max_tokens,
                deadline_s=deadline_s,
            )

        return job


def _alternatives(candidates: Sequence[Candidate]) -> tuple[TokenAlternative, ...]:
    return tuple(TokenAlternative(other.piece.decode("utf-8", "replace"), other.logprob) for other in candidates)
