"""PURE: guesses from the text itself: what followed, earlier in this sequence or in other answers, on the same tokens.

Known as prompt lookup decoding (Saxena 2023). llama.cpp's server has it as `ngram-simple`, `ngram-map-k` and
`ngram-mod`; as there, what is looked up and what is remembered have bounds, so that a guess takes microseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_GUESSES = 31
"""Tokens that one sequence guesses at once."""
MAX_INDEXED_TOKENS = 32_768
"""Of a longer prompt only the end is looked through."""
MAX_SHARED_NGRAMS = 32_768
"""In the table that a model's requests share: about 8 MB."""
_NGRAM = 2
"""Tokens that have to be the same where a sequence is looked through."""
_SHARED_NGRAM = 4
"""Tokens that have to be the same in other answers."""
_MAX_PLACES = 8
"""Earlier places with the same tokens that are compared."""
_MAX_COMPARED = 24
"""Tokens before a place that are compared."""

_MIN_SUBSTITUTED = 4
"""Tokens that have to be the same before one that is taken for a substitution."""

SUBSTITUTED, SHARED, FORCED = 0, 1, 2
"""Grounds of a guess: it goes on behind a token that was guessed wrongly; it followed in another answer; the answer's
form leaves no other text."""
_FIRST_LENGTH_GROUND = 3
_LENGTHS = (2, 3, 4, 6, 8, 12, 16, 24)
"""Tokens that were the same before the guess: one ground each, from that many on."""
GROUNDS = _FIRST_LENGTH_GROUND + len(_LENGTHS)
_GROUND_OF_LENGTH = tuple(
    _FIRST_LENGTH_GROUND + max(at for at, least in enumerate(_LENGTHS) if least <= max(length, _NGRAM))
    for length in range(_LENGTHS[-1] + 1)
)


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that may come next. grounds: why each of them is guessed, once those before it were right."""

    tokens: list[int]
    grounds: list[int]


class SharedNgrams:
    """What followed in the latest answers of one model, whoever asked; the oldest are forgotten first."""

    def __init__(self, most: int = MAX_SHARED_NGRAMS) -> None:
        self._most = most
        self._next: OrderedDict[tuple[int, ...], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._next)

    def learn(self, tokens: Sequence[int]) -> None:
        """Take in the last token of a sequence as what follows on those before it."""
        if len(tokens) <= _SHARED_NGRAM:
            return
        self._next[tuple(tokens[-_SHARED_NGRAM - 1 : -1])] = tokens[-1]
        if len(self._next) > self._most:
            self._next.popitem(last=False)

    def following(self, tokens: Sequence[int], most: int) -> list[int]:
        """The tokens that followed on the last ones of `tokens`, one after the other."""
        found: list[int] = []
        window = tuple(tokens[-_SHARED_NGRAM:])
        while len(found) < most and (token := self._next.get(window)) is not None:
            found.append(token)
            window = (*window[1:], token)
        return found

    def forget(self) -> None:
        """Forget all answers."""
        self._next.clear()


class TokenHistory:
    """The tokens of one prompt and its answer, by the n-grams in them."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}
        """Where the token stands that follows on an n-gram, the last time."""
        self._before: list[int] = []
        """For each token, where the one stands that followed on the same n-gram the time before; 0 for nowhere."""
        self._substituted: int | None = None
        """Where the sequence may go on as before, after a token that was another one than then."""
        self._copied_from: int | None = None
        self._copied_length = 0
        for token in prompt[-MAX_INDEXED_TOKENS:]:
            self._add(token)

    def append(self, token: int) -> None:
        """The sequence goes on with this token."""
        source = self._copied_from
        self._copied_from = self._substituted = None
        if source is not None and source < len(self.tokens):
            if self.tokens[source] == token:
                self._copied_from, self._copied_length = source + 1, self._copied_length + 1
            elif self._copied_length >= _MIN_SUBSTITUTED:
                self._substituted = source + 1
        self._add(token)

    def _add(self, token: int) -> None:
        tokens = self.tokens
        key = tuple(tokens[-_NGRAM:])
        self._before.append(self._latest.get(key, 0))
        self._latest[key] = len(tokens)
        tokens.append(token)

    def longest(self) -> tuple[int, int]:
        """(where the sequence went on after what it ends with now, how many tokens are the same there); (0, 0) where it
        never did. Of places that are alike the latest counts."""
        tokens = self.tokens
        place = self._latest.get(tuple(tokens[-_NGRAM:]), 0)
        best, longest = 0, 0
        for _ in range(_MAX_PLACES):
            if place < _NGRAM:
                break
            length = self._same_before(place, longest)
            if length > longest:
                best, longest = place, length
                if length >= _MAX_COMPARED:
                    break
            place = self._before[place]
        return best, longest

    def _same_before(self, place: int, least: int) -> int:
        """How many tokens before a place are the same as at the end; 0 where no more than `least` are."""
        tokens, end = self.tokens, len(self.tokens)
        if least and (place <= least or tokens[place - least - 1] != tokens[end - least - 1]):
            return 0
        length, most = _NGRAM, min(_MAX_COMPARED, place)
        while length < most and tokens[place - length - 1] == tokens[end - length - 1]:
            length += 1
        return length

    def substituted(self) -> int | None:
        """Where the sequence may go on as before, after a token that was another one than then; None for nowhere."""
        place = self._substituted
        return place if place is not None and place < len(self.tokens) else None

    def copy(self, place: int, length: int, most: int) -> list[int]:
        """The tokens from a place on, before which `length` tokens are the same; beyond the end those that were copied
        first, so that what repeats goes on."""
        self._copied_from, self._copied_length = place, length
        found = self.tokens[place : place + most]
        period = len(found)
        while len(found) < most:
            found.append(found[len(found) - period])
        return found


def ground_of_copy(length: int) -> int:
    """The ground of a token that is copied from where `length` tokens are the same."""
    return _GROUND_OF_LENGTH[min(length, _LENGTHS[-1])]


def grounds_of_copy(length: int, count: int) -> list[int]:
    """The grounds of `count` tokens that are copied from where `length` tokens are the same."""
    return [ground_of_copy(length + at) for at in range(count)]


def grounds_after_substitution(count: int) -> list[int]:
    """The grounds of `count` tokens that are copied from behind a token that was another one."""
    return [SUBSTITUTED, *grounds_of_copy(_NGRAM, count - 1)] if count else []
