"""The kinds of jobs: what each does with the logits it asked for. No llama.cpp, no clock, no pipes.

The decoder runs a job's prompt and hands it logits; a job records why and when it ended, the decoder reports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.batch import Chunk, Lanes, Run
from moe2.agent.engine.distribution import Logits, logprob, most_likely
from moe2.agent.engine.protocol import (
    Candidate,
    ContinuationScore,
    Embed,
    Embedded,
    Event,
    Finished,
    Generate,
    Predict,
    Predicted,
    Score,
    Scored,
)
from moe2.agent.engine.request import Vocabulary
from moe2.agent.engine.text import TextStream
from moe2.common.messages import TokenAlternative, TokenPiece

Vector = npt.NDArray[np.floating[Any]]


class Draw(Protocol):
    """One job's sampler: draws a token from the logits at a place of the last batch."""

    def sample(self, place: int) -> int: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Phases:
    """When a job entered each phase, on the decoder's clock; None is not yet."""

    queued_at_s: float
    started_at_s: float | None = None
    first_at_s: float | None = None

    def durations_s(self, now_s: float) -> tuple[float, float | None, float | None]:
        """(wait, prefill, decode) up to now; None for a phase never entered."""
        started_s, first_s = self.started_at_s, self.first_at_s
        return (
            (now_s if started_s is None else started_s) - self.queued_at_s,
            None if started_s is None else (now_s if first_s is None else first_s) - started_s,
            None if first_s is None else now_s - first_s,
        )


class Pooling(Enum):
    """How token vectors become one vector of the text."""

    MEAN = auto()
    FIRST = auto()
    LAST = auto()


class Job(ABC):
    """One request on its way. `reason` is set once it has ended."""

    wants_embeddings = False

    def __init__(self, job_id: str, prompt: list[int], *, cells: int, queued_at_s: float) -> None:
        """`cells`: tokens of cache to reserve."""
        self.job_id = job_id
        self.prompt = prompt
        self.cells = cells
        self.logits_from = len(prompt) - 1
        self.phases = Phases(queued_at_s)
        self.trunk: Run | None = None
        self.cached_tokens = 0
        self.decoded_tokens = 0
        self.reason: str | None = None

    @abstractmethod
    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        """A chunk of one of this job's runs went through the model; its first token was at `place` in the batch."""

    @abstractmethod
    def success(self, now_s: float) -> Event:
        """The event that reports what the job was run for."""

    def branches(self) -> list[list[int]]:
        """Token sequences to run next, each beginning with all of the trunk's."""
        return []

    def branched(self, run: Run) -> None:  # noqa: B027 - most jobs never branch
        """The first of `branches` has become `run`."""

    def pieces(self) -> list[TokenPiece]:
        """Text that became final since the last call."""
        return []

    def close(self) -> None:  # noqa: B027 - most jobs hold nothing there
        """Free what llama.cpp holds for this job."""

    def ended(self, now_s: float) -> Event:
        """The job's last event."""
        if self.reason != "cancelled":
            return self.success(now_s)
        return self._finished(now_s)

    def _finished(self, now_s: float) -> Finished:
        wait_s, prefill_s, decode_s = self.phases.durations_s(now_s)
        return Finished(
            job_id=self.job_id,
            reason=self.reason or "",
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            decoded_tokens=self.decoded_tokens,
            wait_s=wait_s,
            prefill_s=prefill_s,
            decode_s=decode_s,
        )


class Generation(Job):
    """Draws token after token."""

    def __init__(
        self,
        request: Generate,
        prompt: list[int],
        *,
        cells: int,
        queued_at_s: float,
        draw: Draw,
        vocabulary: Vocabulary,
        logits: Callable[[int], Logits],
        lanes: Lanes,
        most_tokens: int,
    ) -> None:
        """`most_tokens`: prompt and answer together."""
        super().__init__(request.job_id, prompt, cells=cells, queued_at_s=queued_at_s)
        self._request = request
        self._draw = draw
        self._vocabulary = vocabulary
        self._logits = logits
        self._lanes = lanes
        self._most_tokens = most_tokens
        self._text = TextStream(request.stop)
        self._pieces: list[TokenPiece] = []

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run.remaining:
            return
        place += len(chunk.tokens) - 1
        token = self._draw.sample(place)
        self.decoded_tokens += 1
        if self._vocabulary.is_end(token):
            self.reason = "stop"
            return
        self._pieces += self._text.feed(self._vocabulary.piece(token), *self._likelihood(token, place))
        if self._text.stopped:
            self.reason = "stop"
        elif (
            self.decoded_tokens == self._request.max_tokens
            or len(self.prompt) + self.decoded_tokens >= self._most_tokens
            or not self._lanes.grow(run)
        ):
            self.reason = "length"
        else:
            run.tokens.append(token)

    def pieces(self) -> list[TokenPiece]:
        if self.reason is not None:
            self._pieces += self._text.finish()
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        self._draw.close()

    def success(self, now_s: float) -> Event:
        return self._finished(now_s)

    def _likelihood(self, token: int, place: int) -> tuple[float | None, tuple[TokenAlternative, ...]]:
        wanted = self._request.logprobs
        if wanted is None:
            return None, ()
        logits = self._logits(place)
        alternatives = tuple(
            TokenAlternative(self._vocabulary.piece(other).decode("utf-8", "replace"), value)
            for other, value in most_likely(logits, wanted)
        )
        return logprob(logits, token), alternatives


class Scoring(Job):
    """Sums the log-probabilities of given continuations.

    The prompt's last logits give every continuation's first token; the other tokens are branches of the prompt's run.
    """

    def __init__(
        self,
        request: Score,
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


class Prediction(Job):
    """Reports the distribution of the one next token."""

    def __init__(
        self,
        request: Predict,
        prompt: list[int],
        *,
        queued_at_s: float,
        vocabulary: Vocabulary,
        logits: Callable[[int], Logits],
    ) -> None:
        super().__init__(request.job_id, prompt, cells=len(prompt), queued_at_s=queued_at_s)
        self._request = request
        self._vocabulary = vocabulary
        self._logits = logits
        self._candidates: tuple[Candidate, ...] = ()

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run.remaining:
            return
        logits = self._logits(place + len(chunk.tokens) - 1)
        self._candidates = tuple(
            Candidate(token, value, self._vocabulary.piece(token), self._vocabulary.is_end(token))
            for token, value in most_likely(logits, self._request.top)
        )
        self.reason = "stop"

    def success(self, now_s: float) -> Event:
        wait_s, prefill_s, _ = self.phases.durations_s(now_s)
        return Predicted(
            job_id=self.job_id,
            candidates=self._candidates,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            wait_s=wait_s,
            prefill_s=prefill_s or 0.0,
        )
