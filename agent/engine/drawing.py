"""The job that writes: draws token after token until an end, a stop string or a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from moe2.agent.engine.batch import Chunk, Run
from moe2.agent.engine.distribution import Logits, logprob, most_likely
from moe2.agent.engine.writing import Means, Writing
from moe2.common.link.messages import Submit, TokenAlternative, TokenPiece
from moe2.common.textstream import TextStream


class Draw(Protocol):
    """One job's sampler: draws a token from the logits at a place of the last batch, or from a copy of them."""

    @property
    def is_ready(self) -> bool:
        """False while it is not yet known what may be drawn; the job is resumed when it is."""

    def sample(self, place: int) -> int | None:
        """None where the answer is complete. Raises `RequestError` where what it must follow cannot be followed."""

    def sample_kept(self, logits: Logits) -> int | None:
        """Draws a token from kept logits, for a job whose mask was not ready with the batch."""

    def close(self) -> None: ...


class Drawing(Writing):
    """Draws token after token."""

    def __init__(
        self, request: Submit, prompt: list[int], means: Means, *, cells: int, queued_at_s: float, draw: Draw
    ) -> None:
        super().__init__(request, prompt, means, cells=cells, queued_at_s=queued_at_s)
        self._request = request
        self._draw = draw
        self._text = TextStream(request.stop)
        self._pieces: list[TokenPiece] = []
        self._kept: tuple[Run, Logits] | None = None
        """What the model said while the draw was not ready; the next batch writes over the original."""

    @property
    def is_ready(self) -> bool:
        return self._draw.is_ready

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run.remaining:
            return
        place += len(chunk.tokens) - 1
        if self._draw.is_ready:
            self._write(run, self._draw.sample(place), lambda: self._logits(place))
        else:
            self._kept = run, self._logits(place).copy()

    def resume(self) -> None:
        """Go on if the draw has become ready."""
        if self._kept is not None and self._draw.is_ready:
            (run, logits), self._kept = self._kept, None
            self._write(run, self._draw.sample_kept(logits), lambda: logits)

    def _write(self, run: Run, token: int | None, logits: Callable[[], Logits]) -> None:
        if token is None:
            self.reason = "stop"
            return
        self.decoded_tokens += 1
        if self._vocabulary.is_end(token):
            self.reason = "stop"
            return
        self._pieces += self._text.feed(self._vocabulary.piece(token), *self._likelihood(token, logits))
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

    def _likelihood(
        self, token: int, logits_of: Callable[[], Logits]
    ) -> tuple[float | None, tuple[TokenAlternative, ...]]:
        wanted = self._request.logprobs
        if wanted is None:
            return None, ()
        logits = logits_of()
        alternatives = tuple(
            TokenAlternative(self._vocabulary.piece(other).decode("utf-8", "replace"), value)
            for other, value in most_likely(logits, wanted)
        )
        return logprob(logits, token), alternatives
