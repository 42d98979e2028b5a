"""The draw of an answer that has a form: only tokens that its matcher allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.decoding.distribution import Logits


class Chooser(Protocol):
    """What a token is drawn by (see `moe2.agent.engine.llama.sampler.Sampler`)."""

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int: ...
    def take(self, token: int) -> None: ...
    def close(self) -> None: ...


class Matching(Protocol):
    """How far an answer has come in its form (see `moe2.agent.engine.structure.matchers.JobMatcher`)."""

    @property
    def is_ready(self) -> bool: ...
    def wait(self, seconds: float) -> None: ...
    def mask(self) -> bytes | None: ...
    def accept(self, *tokens: int) -> None: ...
    def forced(self) -> bytes: ...
    def look_ahead(self, tokens: Sequence[int]) -> None: ...
    def close(self) -> None: ...


class Source(Protocol):
    """What a model says at the places of the last batch."""

    def logits(self, place: int) -> Logits: ...


class Spelling(Protocol):
    """How a model spells text (see `moe2.agent.engine.llama.model.Model`)."""

    def piece(self, token: int) -> bytes: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class MatchedDraw:
    """A sampler that draws only what a matcher allows.

    selectors: of a model whose calls stand apart from its answer, the tokens after which the matcher follows a tool's
    arguments, by its name; the model cannot draw them where it is held to its form.
    """

    def __init__(
        self,
        sampler: Chooser,
        context: Source,
        matcher: Matching,
        selectors: Mapping[str, tuple[int, ...]],
        *,
        freely: Callable[[int], int],
        spelling: Spelling,
    ) -> None:
        """freely: draws any token at a place of the last batch."""
        self._sampler = sampler
        self._context = context
        self._matcher = matcher
        self._selectors = selectors
        self._freely = freely
        self._hidden = np.array(sorted({token for tokens in selectors.values() for token in tokens}), np.intp)
        self._selected: str | None = None
        self._selecting: deque[int] = deque()
        self._spelling = spelling
        self._coming: deque[int] = deque()
        """Tokens of a text that the form leaves no choice about; the matcher knows of them."""
        self._ending: list[int] = []
        """The last token of that text, which may be the beginning of a longer one; none where there is no such text."""
        self.offered: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it is known what may be drawn. Takes the next step of a selection, where one is under way."""
        if self._coming:
            return True
        while self._matcher.is_ready:
            if not self._selecting:
                return True
            self._matcher.accept(self._selecting.popleft())
        return False

    def follows(self, name: str) -> bool:
        """Selects a tool, whose arguments are drawn from now on. False where no form is known for them."""
        if self._selected is None and name in self._selectors:
            self._selected = name
            self._selecting += self._selectors[name]
        return self._selected == name

    def sample(self, place: int) -> int | None:
        """Draws a token at a place of the last batch; None where the answer is complete."""
        if self._coming:
            # There may be no logits at its place: nobody wanted them.
            return self._come()
        return self.sample_kept(self._context.logits(place))

    def sample_kept(self, logits: Logits) -> int | None:
        """Draws a token from logits; None where the answer is complete. Raises `RequestError` as the matcher does."""
        if self._coming:
            return self._come()
        mask = self._matcher.mask()
        if mask is None:
            return None
        if self.offered is None:
            self._foresee()
            if self._coming:
                return self._come()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little"))
        if len(self._hidden):
            allowed = np.setdiff1d(allowed, self._hidden)
        if not len(allowed):
            # The end itself, of a model that has no token for it.
            return None
        if self.offered is not None:
            allowed = np.union1d(allowed, (self.offered,))
        token = self._sampler.sample_among(logits, allowed)
        if token != self.offered:
            self._matcher.accept(token)
        self._ending = []
        return token

    def _come(self) -> int:
        """The next token of a text about which there is no choice: it is not drawn."""
        token = self._coming.popleft()
        self._sampler.take(token)
        return token

    def foresee(self, patience_s: float) -> tuple[list[int], list[int]]:
        """(the next tokens, as far as there is no choice about them; what is likely behind them), as far as that is
        known within so many seconds. To be asked where the form goes on, and not where anything is offered."""
        if not self._coming and not self._selecting:
            self._matcher.wait(patience_s)
            self._foresee()
        return list(self._coming), list(self._ending)

    def _foresee(self) -> None:
        """Takes in the text that has to come next, as the model's own tokenizer has it; nothing where it cannot be
        written so."""
        text = self._matcher.forced()
        if not text or self._ending:
            return
        try:
            tokens = self._spelling.tokenize(text.decode(), add_special=False, parse_special=True)
        except UnicodeDecodeError:
            return
        if b"".join(map(self._spelling.piece, tokens)) == text:
            *coming, ending = tokens
            self._coming += coming
            self._ending = [ending]
            if coming:
                self._matcher.accept(*coming)

    def wait(self, seconds: float) -> None:
        """Waits at most so long until it is known what may be drawn."""
        if not self._coming:
            self._matcher.wait(seconds)

    def look_ahead(self, tokens: Sequence[int]) -> None:
        """Has it found out what may be drawn after these tokens, in case that they are drawn. They begin with those
        that come in any case."""
        if guessed := tokens[len(self._coming) :]:
            self._matcher.look_ahead(guessed)

    def sample_freely(self, place: int) -> int:
        """Draws any token; the form does not go on."""
        return self._freely(place)

    def close(self) -> None:
        """Frees what sampler and matcher hold."""
        self._sampler.close()
        self._matcher.close()
