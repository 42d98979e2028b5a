"""The job that writes: draws token after token until an end, a stop string or a limit."""

from __future__ import annotations

from typing import Protocol

from moe2.agent.engine.batch import Chunk, Run
from moe2.agent.engine.distribution import logprob, most_likely
from moe2.agent.engine.protocol import Generate
from moe2.agent.engine.writing import Means, Writing
from moe2.common.messages import TokenAlternative, TokenPiece
from moe2.common.textstream import TextStream


class Draw(Protocol):
    """One job's sampler: draws a token from the logits at a place of the last batch."""

    def sample(self, place: int) -> int: ...
    def close(self) -> None: ...


class Generation(Writing):
    """Draws token after token."""

    def __init__(
        self, request: Generate, prompt: list[int], means: Means, *, cells: int, queued_at_s: float, draw: Draw
    ) -> None:
        super().__init__(request, prompt, means, cells=cells, queued_at_s=queued_at_s)
        self._request = request
        self._draw = draw
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
        else:
            self._go_on(run, token)

    def pieces(self) -> list[TokenPiece]:
        if self.reason is not None:
            self._pieces += self._text.finish()
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        self._draw.close()

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
