"""The job that repeats its prompt before it writes: a piece for each of its tokens, scored where that is asked for."""

from __future__ import annotations

from functools import partial

from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.decoding.drawing import Draw, Drawing
from moe2.agent.engine.decoding.writing import Means
from moe2.common.link.messages import Submit
from moe2.common.textstream import TextStream


class Echoing(Drawing):
    """Sends the prompt's tokens as they are read, and draws then as its parent does.

    With `logprobs` every token has its log-probability after those before it; the first one has none. The prompt is
    read anew then, as a cache keeps no logits.
    """

    def __init__(
        self, request: Submit, prompt: list[int], means: Means, *, cells: int, queued_at_s: float, draw: Draw
    ) -> None:
        super().__init__(request, prompt, means, cells=cells, queued_at_s=queued_at_s, draw=draw)
        self._prompt_text = TextStream()
        self._n_echoed = 0
        self._most = request.max_tokens
        if request.logprobs is not None:
            self.logits_from = 0

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if self._n_echoed < len(self.prompt):
            self._echo(chunk, place)
        if not run.remaining and self._most == 0:
            self.reason = "length"
        else:
            super().take(run, chunk, place)

    def _echo(self, chunk: Chunk, place: int) -> None:
        """Adds the prompt's tokens up to the one that the chunk's last token foretells."""
        until = min(chunk.start + len(chunk.tokens) + 1, len(self.prompt))
        for index in range(self._n_echoed, until):
            token = self.prompt[index]
            at = place + index - 1 - chunk.start
            said = self._vocabulary.piece(token)
            likelihood = self._likelihood(token, said, partial(self._logits, at) if index else None)
            self._pieces += self._prompt_text.feed(said, likelihood)
        self._n_echoed = until
        if until == len(self.prompt):
            self._pieces += self._prompt_text.finish()
