"""What both jobs that write an answer have in common: whoever draws its tokens, it ends at the same limits."""

from __future__ import annotations

from collections.abc import Callable

from moe2.agent.engine.batch import Lanes, Run
from moe2.agent.engine.distribution import Logits
from moe2.agent.engine.job import Job
from moe2.agent.engine.protocol import Event
from moe2.agent.engine.request import Vocabulary


class Writing(Job):
    """An answer in the making. `max_tokens`: of the answer, None for no limit; `most_tokens`: prompt and answer."""

    def __init__(
        self,
        job_id: str,
        prompt: list[int],
        *,
        max_tokens: int | None,
        cells: int,
        queued_at_s: float,
        vocabulary: Vocabulary,
        logits: Callable[[int], Logits],
        lanes: Lanes,
        most_tokens: int,
    ) -> None:
        super().__init__(job_id, prompt, cells=cells, queued_at_s=queued_at_s)
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary
        self._logits = logits
        self._lanes = lanes
        self._most_tokens = most_tokens

    def success(self, now_s: float) -> Event:
        return self._finished(now_s)

    def _go_on(self, run: Run, token: int) -> None:
        """The answer's newest token, already counted, goes through the model next, unless the answer is at its end."""
        if (
            self.decoded_tokens == self._max_tokens
            or len(self.prompt) + self.decoded_tokens >= self._most_tokens
            or not self._lanes.grow(run)
        ):
            self.reason = "length"
        else:
            run.tokens.append(token)
