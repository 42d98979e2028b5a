"""The job that embeds: one vector for a text, from the vectors of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.batch import Chunk, Run
from moe2.agent.engine.job import Job
from moe2.agent.engine.protocol import Embed, Embedded, Event

Vector = npt.NDArray[np.floating[Any]]


class Pooling(Enum):
    """How token vectors become one vector of the text."""

    MEAN = auto()
    FIRST = auto()
    LAST = auto()


class Embedding(Job):
    """Pools the last layer's vectors of all tokens into one."""

    wants_embeddings = True

    def __init__(
        self,
        request: Embed,
        prompt: list[int],
        *,
        queued_at_s: float,
        pooling: Pooling,
        embedding: Callable[[int], Vector],
    ) -> None:
        super().__init__(request.job_id, prompt, cells=len(prompt), queued_at_s=queued_at_s)
        # Tokens taken from the cache would have no vectors.
        self.logits_from = 0
        self._pooling = pooling
        self._embedding = embedding
        self._pooled: Vector | None = None

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        for offset in range(len(chunk.tokens)):
            vector = self._embedding(place + offset)
            if self._pooled is None:
                self._pooled = vector.astype(np.float64)
            elif self._pooling is Pooling.MEAN:
                self._pooled = self._pooled + vector
            elif self._pooling is Pooling.LAST:
                self._pooled = vector.astype(np.float64)
        if not run.remaining:
            self.reason = "stop"

    def success(self, now_s: float) -> Event:
        wait_s, prefill_s, _ = self.phases.durations_s(now_s)
        pooled = np.zeros(0) if self._pooled is None else self._pooled
        # The mean's division falls out of the normalisation.
        length = float(np.linalg.norm(pooled))
        return Embedded(
            job_id=self.job_id,
            embedding=tuple(map(float, pooled / length if length else pooled)),
            prompt_tokens=len(self.prompt),
            wait_s=wait_s,
            prefill_s=prefill_s or 0.0,
        )
