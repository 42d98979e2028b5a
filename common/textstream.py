"""PURE: from token bytes to text that can be shown: whole characters, and nothing that a stop string may take back.

A stop string may begin in one token and end in another, so a piece is held back while its end could still turn into a
stop string. Pieces keep their log-probabilities while they wait.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from moe2.common.link.messages import TokenAlternative, TokenPiece


def answer_text(pieces: Iterable[TokenPiece]) -> str:
    """The answer that pieces make, without the reasoning that came before it."""
    return "".join(piece.text for piece in pieces if not piece.is_reasoning)


class Likelihood(NamedTuple):
    """What is told of a token where log-probabilities are asked for.

    logprob: None for a token that nothing comes before. name: how a control token is spelt; "" for all others.
    """

    logprob: float | None
    alternatives: tuple[TokenAlternative, ...] = ()
    name: str = ""


class TextStream:
    """The text of one job, token by token."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[TokenPiece] = []
        self.stopped_by: str | None = None
        """The stop string that has ended the text; None while none has."""

    @property
    def stopped(self) -> bool:
        """True once a stop string has ended the text."""
        return self.stopped_by is not None

    def feed(self, token: bytes, likelihood: Likelihood | None = None) -> tuple[TokenPiece, ...]:
        """Take in one token's bytes; returns the pieces that are final now (see `take`)."""
        return self.take(self.decoded(token, likelihood))

    def decoded(self, token: bytes, likelihood: Likelihood | None = None) -> TokenPiece:
        """One token's bytes as a piece. A character's text belongs to the token that completes it."""
        text = self._decoder.decode(token)
        if likelihood is None:
            return TokenPiece(text)
        own = "" if text.encode() == token else token.hex()
        return TokenPiece(text, likelihood.logprob, likelihood.alternatives, hex=own, name=likelihood.name)

    def take(self, piece: TokenPiece) -> tuple[TokenPiece, ...]:
        """Take in the next piece; returns those that are final now.

        Sets `stopped_by` when a stop string is complete: the text before it is returned, the rest is dropped, and
        nothing may be taken in any more.
        """
        if not self._stop:
            return (piece,)
        self._held.append(piece)
        text = "".join(held.text for held in self._held)
        end = self._first_stop(text)
        if end is not None:
            self.stopped_by = min(self._stop, key=lambda stop: (text.find(stop) != end, -len(stop)))
            return self._release(end)
        return self._release(len(text) - self._undecided(text))

    def finish(self, *, is_cut: bool = False) -> tuple[TokenPiece, ...]:
        """The end of the stream: everything still held. An unfinished character becomes U+FFFD.

        is_cut: the stream was to go on; then an unfinished character is dropped, as its half says nothing.
        """
        if self.stopped:
            return ()
        rest = "" if is_cut else self._decoder.decode(b"", True)
        released = tuple(self._held) + ((TokenPiece(rest),) if rest else ())
        self._held.clear()
        return released

    def _first_stop(self, text: str) -> int | None:
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return min(found) if found else None

    def _undecided(self, text: str) -> int:
        """Characters at the end of `text` that could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, end: int) -> tuple[TokenPiece, ...]:
        """Pieces that lie before `end`, in characters of the held text; after a stop the last one is cut there."""
        released: list[TokenPiece] = []
        start = 0
        for piece in self._held:
            if start + len(piece.text) > end:
                if self.stopped and end > start:
                    released.append(TokenPiece(piece.text[: end - start], piece.logprob, piece.alternatives))
                break
            if self.stopped and start == end:
                break
            released.append(piece)
            start += len(piece.text)
        del self._held[: len(released)]
        return tuple(released)


class HeldPieces:
    """Pieces that are not final yet, as one text that is cut from its beginning."""

    def __init__(self) -> None:
        self._pieces: list[TokenPiece] = []
        self.text = ""

    def add(self, piece: TokenPiece) -> None:
        """Adds a piece at the end."""
        self._pieces.append(piece)
        self.text += piece.text

    def take(self, count: int, *, is_reasoning: bool = False) -> Iterator[TokenPiece]:
        """Yields the first `count` characters, piece by piece. One that is cut keeps nothing but its text."""
        self.text = self.text[count:]
        while self._pieces and len(self._pieces[0].text) <= count:
            piece = self._pieces.pop(0)
            count -= len(piece.text)
            yield msgspec.structs.replace(piece, is_reasoning=True) if is_reasoning else piece
        if self._pieces and count:
            cut = self._pieces[0].text
            yield TokenPiece(cut[:count], is_reasoning=is_reasoning)
            self._pieces[0] = TokenPiece(cut[count:])

    def uncut(self, count: int) -> int:
        """Returns the largest number of characters up to `count` that cuts no piece: so nothing of a token's
        log-probability is lost, and no token becomes two pieces."""
        start = 0
        for piece in self._pieces:
            if start + len(piece.text) > count:
                break
            start += len(piece.text)
        return start

    def drop(self, count: int) -> None:
        """Forgets the first `count` characters."""
        for _ in self.take(count):
            pass


def begun(text: str, *marks: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of one of the marks."""
    longest = max(map(len, marks)) - 1
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0
    )
