"""The job that asks how likely given continuations are."""

from __future__ import annotations

from collections.abc import Callable

from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.decoding.distribution import Logits, logprob
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.protocol import Event, Scored
from moe2.common.link.messages import ContinuationScore, ScoreJob


class Scoring(Job):
    """Sums the log-probabilities of given continuations.

    The prompt's last logits give every continuation's first token; the other tokens are branches of the prompt's run.
    """

    def __init__(
        self,
        request: ScoreJob,
        prompt: list[int],
        continuations: list[list[int]],
        *,
        queued_at_s: float,
        logits: Callable[[int], Logits],
    ) -> None:
        super().__init__(
            request.job_id,
            prompt,
            cells=len(prompt) + sum(len(tokens) - 1 for tokens in continuations),
            queued_at_s=queued_at_s,
        )
        self._request = request
        self._continuations = continuations
        self._logits = logits
        self._sums = [0.0] * len(continuations)
        self._waiting = [index for index, tokens in enumerate(continuations) if len(tokens) > 1]
        self._runs: dict[Run, int] = {}

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run is self.trunk:
            if not run.remaining:
                logits = self._logits(place + len(chunk.tokens) - 1)
                for index, tokens in enumerate(self._continuations):
                    self._sums[index] += logprob(logits, tokens[0])
        else:
            index = self._runs[run]
            tokens = self._continuations[index]
            self.decoded_tokens += len(chunk.tokens)
            for offset in range(len(chunk.tokens)):
                following = chunk.start + offset + 1 - len(self.prompt)
                self._sums[index] += logprob(self._logits(place + offset), tokens[following])
            if not run.remaining:
                del self._runs[run]
        if self.trunk is not None and not (self.trunk.remaining or self._waiting or self._runs):
            self.reason = "stop"

    @property
    def branch_tokens(self) -> int:
        return self.cells - len(self.prompt)

    def branches(self) -> list[list[int]]:
        if self.trunk is None or self.trunk.remaining:
            return []
        return [self.prompt + self._continuations[index][:-1] for index in self._waiting]

    def branched(self, run: Run) -> None:
        self._runs[run] = self._waiting.pop(0)

    def success(self, now_s: float) -> Event:
        wait_s, prefill_s, decode_s = self.phases.durations_s(now_s)
        return Scored(
            job_id=self.job_id,
            scores=tuple(
                ContinuationScore(total, len(tokens), len(text.encode()))
                for total, tokens, text in zip(
                    self._sums, self._continuations, self._request.continuations, strict=True
                )
            ),
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            decoded_tokens=self.decoded_tokens,
            wait_s=wait_s,
            prefill_s=prefill_s or 0.0,
            decode_s=decode_s or 0.0,
        )
