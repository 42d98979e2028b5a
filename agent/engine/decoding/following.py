"""The job that says what it thinks of each next token, and takes the one that somebody else draws."""

from __future__ import annotations

from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.decoding.distribution import most_likely, within
from moe2.agent.engine.decoding.writing import Means, Writing
from moe2.agent.engine.protocol import Event
from moe2.common.link.messages import Candidate, FollowJob, NextTokens


class Following(Writing):
    """A job that proposes its next tokens, then waits in its slot for the one that is taken."""

    def __init__(self, request: FollowJob, prompt: list[int], means: Means, *, cells: int, queued_at_s: float) -> None:
        super().__init__(request, prompt, means, cells=cells, queued_at_s=queued_at_s)
        self._request = request
        self._proposed: list[Event] = []

    @property
    def is_waiting(self) -> bool:
        """Whether a proposal has been sent whose token has not come yet."""
        return self.trunk is not None and not self.trunk.remaining

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run.remaining:
            return
        logits = self._logits(place + len(chunk.tokens) - 1)
        likely = within(self._request.top_p, most_likely(logits, self._request.most))
        candidates = tuple(
            Candidate(token, value, self._vocabulary.piece(token), self._vocabulary.is_end(token))
            for token, value in likely
        )
        self._proposed.append(NextTokens(job_id=self.job_id, step=self.decoded_tokens, candidates=candidates))

    def taken(self, step: int, token: int | None) -> None:
        """The answer goes on with `token`, or is complete. A step that is not the one waited for is a late word."""
        run = self.trunk
        if run is None or not self.is_waiting or step != self.decoded_tokens:
            return
        if token is None:
            self.reason = "stop"
            return
        self.decoded_tokens += 1
        if self._vocabulary.is_end(token):
            self.reason = "stop"
        else:
            self._go_on(run, token)

    def events(self) -> list[Event]:
        proposed, self._proposed = self._proposed, []
        return proposed
