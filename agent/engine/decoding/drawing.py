"""The job that writes: draws token after token until an end, a stop string or a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from moe2.agent.engine.calls.translator import CallTranslator
from moe2.agent.engine.decoding.batch import Chunk, Run
from moe2.agent.engine.decoding.distribution import Logits, logprob, most_likely
from moe2.agent.engine.decoding.writing import Means, Writing
from moe2.agent.engine.prompt.thinking import Channels, Thinker
from moe2.agent.engine.speculation.ngrams import Guess
from moe2.agent.engine.speculation.speculation import Speculator
from moe2.common.link.messages import Submit, TokenAlternative, TokenPiece
from moe2.common.textstream import Likelihood, TextStream


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


@runtime_checkable
class BoundDraw(Draw, Protocol):
    """A draw for an answer of a given form, before which there may be reasoning of any form."""

    offered: int | None
    """A token that may be drawn beside those that the form allows; it is no part of the form."""

    def sample_freely(self, place: int) -> int:
        """Draws any token; the form does not go on."""

    def foresee(self, patience_s: float) -> tuple[list[int], list[int]]:
        """(the next tokens, as far as the form leaves no choice about them; what is likely behind them), as far as that
        is known within so many seconds. To be asked where the form goes on."""

    def wait(self, seconds: float) -> None:
        """Waits at most so long until it is known what may be drawn."""

    def look_ahead(self, tokens: Sequence[int]) -> None:
        """Has it found out what may be drawn after these tokens, in case that they are drawn."""

    def follows(self, name: str) -> bool:
        """Has the form be that of a tool's arguments from now on. False where they have none."""


@dataclass(frozen=True)
class Reasoning:
    """How an answer's reasoning is read and bounded.

    begun: what the prompt has of the answer already, from the mark on where it has one. bound: the draw, where the
    answer has a form. budget_tokens: the most tokens of reasoning; None for no limit.
    """

    thinker: Thinker
    begun: str = ""
    bound: BoundDraw | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True)
class Calling:
    """How an answer's calls are read. spelled: the bytes of control tokens that are marks of calls."""

    translator: CallTranslator
    spelled: Mapping[int, bytes]


class Drawing(Writing):
    """Draws token after token."""

    def __init__(
        self,
        request: Submit,
        prompt: list[int],
        means: Means,
        *,
        cells: int,
        queued_at_s: float,
        draw: Draw,
        reasoning: Reasoning | None = None,
        calling: Calling | None = None,
    ) -> None:
        """reasoning: None for a model that has none. calling: None where no calls have to be read."""
        super().__init__(request, prompt, means, cells=cells, queued_at_s=queued_at_s)
        self._request = request
        self.reads_anew = not request.cache_prompt
        self._draw = draw
        self._text = TextStream(request.stop)
        self._pieces: list[TokenPiece] = []
        self._kept: tuple[Run, Logits] | None = None
        """What the model said while the draw was not ready; the next batch writes over the original."""
        self._reasoning = reasoning
        self._channels = reasoning.thinker.marks.reader(reasoning.begun) if reasoning else None
        self._translator = calling.translator if calling else None
        self._spelled = {**(calling.spelled if calling else {}), **(reasoning.thinker.spelled if reasoning else {})}
        self._forced: deque[int] = deque()
        """Tokens that come next, whatever the model says."""
        self.reasoning_tokens = 0
        may_guess = means.speculation is not None and not self.reads_anew
        self._speculator = means.speculation.speculator(prompt) if means.speculation and may_guess else None
        self._bound = draw if isinstance(draw, BoundDraw) else None
        self._patience_s = 0.0
        """How long the next tokens' form may be waited for, beside a step of the model."""
        self._n_certain = 0
        """How many of the tokens that were guessed last come in any case."""

    @property
    def speculator(self) -> Speculator | None:
        return self._speculator

    def guessable(self, most: int) -> int:
        # The last token of an answer does not go through the model.
        most = min(most, self._most_tokens - len(self.prompt) - self.decoded_tokens - 1)
        if self._max_tokens is not None:
            most = min(most, self._max_tokens - self.decoded_tokens - 1)
        return 0 if self._speculator is None else max(0, most)

    def guess(self, most: int, patience_s: float = 0.0) -> Guess | None:
        if self._speculator is None:
            return None
        self._patience_s = patience_s
        known, likely = list(self._forced), list[int]()
        if not known and self._bound is not None and self._goes_by_form(self._bound):
            known, likely = self._bound.foresee(patience_s)
        self._n_certain = len(known)
        if known:
            return self._speculator.suppose(known, likely, most)
        return self._speculator.guess(most) or (self._speculator.suppose([], likely, most) if likely else None)

    def expect(self, tokens: Sequence[int]) -> int:
        if self._bound is not None and not self._forced:
            self._bound.look_ahead(tokens)
        return min(self._n_certain, len(tokens)) if self._request.logprobs is None else 0

    @property
    def is_ready(self) -> bool:
        return self._draw.is_ready

    def take(self, run: Run, chunk: Chunk, place: int) -> None:
        if run.remaining:
            return
        last = place + len(chunk.tokens) - 1
        for at in range(last - chunk.guessed, last + 1):
            if at < last and self._bound is not None:
                # What was guessed behind is lost where this is not known.
                self._bound.wait(self._patience_s)
            written = len(run.tokens)
            self._draw_at(run, at)
            goes_on = len(run.tokens) > written
            if not goes_on or at == last or run.tokens[-1] != chunk.tokens[at + 1 - place]:
                return
            # The guess is what was drawn: the model has said already what follows on it.
            run.filled += 1

    def _draw_at(self, run: Run, place: int) -> None:
        """Draws the token that follows on the one at `place`."""
        if (token := self._token_of_reasoning(place)) is not None:
            self._write(run, token, lambda: self._logits(place))
        elif self._draw.is_ready:
            self._write(run, self._draw.sample(place), lambda: self._logits(place))
        else:
            self._kept = run, self._logits(place).copy()

    def resume(self) -> None:
        """Go on if the draw has become ready."""
        if self._kept is not None and self._draw.is_ready:
            (run, logits), self._kept = self._kept, None
            self._write(run, self._draw.sample_kept(logits), lambda: logits)

    def _token_of_reasoning(self, place: int) -> int | None:
        """The next token, where it is no matter of the answer's form; None where the draw is to say."""
        if self._channels is None or self._reasoning is None:
            return None
        if not self._forced:
            self._force_end(self._channels, self._reasoning)
        if self._forced:
            return self._forced.popleft()
        bound, thinker = self._reasoning.bound, self._reasoning.thinker
        if bound is None:
            return None
        if self._goes_by_form(bound):
            if self._channels.is_answering:
                bound.offered = None
            return None
        if not (self._channels.is_reasoning or thinker.marks.is_harmony):
            # The answer has not begun: the model may think first, but not where its mark is text that could begin an
            # answer, too: what is no call in the form of the answer would be one behind reasoning.
            if len(thinker.opening) == 1:
                bound.offered = thinker.opening[0]
            else:
                self._channels.answer()
            return None
        token = bound.sample_freely(place)
        if self._vocabulary.is_end(token) and not self._channels.may_end:
            # An answer of a given form is still to come.
            self._forced += thinker.closing
            token = self._forced.popleft()
        return token

    def _goes_by_form(self, bound: BoundDraw) -> bool:
        """True where the form says what may come next: in the answer, and in a call's arguments."""
        channels = self._channels
        if channels is None or channels.is_answering:
            return True
        return channels.recipient is not None and bound.follows(channels.recipient)

    def _force_end(self, channels: Channels, reasoning: Reasoning) -> None:
        """Ends the reasoning where its budget is spent."""
        most = reasoning.budget_tokens
        if channels.is_reasoning and most is not None and self.reasoning_tokens >= most:
            self._forced += reasoning.thinker.closing

    def _write(self, run: Run, token: int | None, logits: Callable[[], Logits]) -> None:
        if token is None:
            self.reason = "stop"
            return
        self.decoded_tokens += 1
        if self._vocabulary.is_end(token):
            self.reason = "stop"
            return
        self._say(token, logits)
        self.stop = self._text.stopped_by
        if self.stop is not None:
            self.reason = "stop"
        else:
            self._go_on(run, token)
            if self._speculator is not None and self.reason is None:
                self._speculator.drew(token)

    def _say(self, token: int, logits: Callable[[], Logits]) -> None:
        """Adds a token to the text."""
        spelled = self._spelled.get(token)
        said = self._vocabulary.piece(token) if spelled is None else spelled
        piece = self._text.decoded(said, self._likelihood(token, said, logits))
        if self._channels is None:
            self._answer(self._text.take(piece))
            return
        was_reasoning = self._channels.is_reasoning
        self._take(self._channels.feed(piece))
        if was_reasoning and self._channels.is_reasoning and not self._forced:
            self.reasoning_tokens += 1

    def _take(self, pieces: list[TokenPiece]) -> None:
        """Adds pieces to the answer and to its reasoning. A stop string is looked for in the answer alone."""
        for piece in pieces:
            if piece.is_reasoning:
                self._pieces.append(piece)
            elif not self._text.stopped:
                self._answer(self._text.take(piece))

    def _answer(self, pieces: Iterable[TokenPiece]) -> None:
        """Adds pieces to the answer, with its calls in the form that the coordinator reads."""
        if self._translator is None:
            self._pieces += pieces
        else:
            for piece in pieces:
                self._pieces += self._translator.feed(piece)

    def pieces(self) -> list[TokenPiece]:
        if self.reason is not None:
            if self._channels is not None:
                self._take(self._channels.finish())
            self._answer(self._text.finish(is_cut=self.reason != "stop"))
            if self._translator is not None:
                self._pieces += self._translator.finish()
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> None:
        self._draw.close()

    def _likelihood(self, token: int, said: bytes, logits_of: Callable[[], Logits] | None) -> Likelihood | None:
        """What is told of a token beside its text. logits_of: None for one that nothing comes before."""
        wanted = self._request.logprobs
        if wanted is None:
            return None
        name = "" if said else self._vocabulary.special_text(token)
        if logits_of is None:
            return Likelihood(None, name=name)
        logits = logits_of()
        alternatives = tuple(self._alternative(other, value) for other, value in most_likely(logits, wanted))
        return Likelihood(logprob(logits, token), alternatives, name)

    def _alternative(self, token: int, value: float) -> TokenAlternative:
        said = self._vocabulary.piece(token)
        if not said or self._vocabulary.is_end(token):
            # A control token has a name, by which a client tells the end from an empty text, and no bytes.
            return TokenAlternative(self._vocabulary.special_text(token), value, None)
        text = said.decode("utf-8", "replace")
        return TokenAlternative(text, value, "" if text.encode() == said else said.hex())
