"""What both jobs that write an answer have in common: whoever draws its tokens, it ends at the same limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe2.agent.engine.decoding.batch import Lanes, Run
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.prompt.request import Vocabulary
from moe2.agent.engine.protocol import Event
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.link.messages import FollowJob, Submit


@dataclass(frozen=True)
class Means:
    """The means that every answer of one engine is written with.

    logits: those at a place of the last batch. most_tokens: of prompt and answer together. speculation: None where
    nothing is guessed.
    """

    vocabulary: Vocabulary
    logits: Callable[[int], Logits]
    lanes: Lanes
    most_tokens: int
    speculation: Speculation | None = None


class Writing(Job):
    """An answer in the making, of at most `request.max_tokens` tokens where that is set."""

    def __init__(
        self,
        request: Submit | FollowJob,
        prompt: list[int],
        means: Means,
        *,
        cells: int,
        queued_at_s: float,
    ) -> None:
        super().__init__(request.job_id, prompt, cells=cells, queued_at_s=queued_at_s)
        self._max_tokens = request.max_tokens
        self._vocabulary = means.vocabulary
        self._logits = means.logits
        self._lanes = means.lanes
        self._most_tokens = means.most_tokens

    def success(self, now_s: float) -> Event:
        return self._finished(now_s)

    def _go_on(self, run: Run, token: int) -> None:
        """The answer's newest token, already counted, goes through the model next, unless the answer is at its end."""
        if (
            (self._max_tokens is not None and self.decoded_tokens >= self._max_tokens)
            or len(self.prompt) + self.decoded_tokens >= self._most_tokens
            or not self._lanes.grow(run)
        ):
            self.reason = "length"
        else:
            run.tokens.append(token)
