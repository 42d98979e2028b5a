"""PURE: guesses from the text itself: what followed, earlier in this sequence or in other answers, on the same tokens.

Known as prompt lookup decoding (Saxena 2023). llama.cpp's server has it as `ngram-simple`, `ngram-map-k` and
`ngram-mod`; as there, what is looked up and what is remembered have bounds, so that a guess takes microseconds.
"""

from __future__ import annotations

from bisect import bisect_left
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

_MAX_REPLACEMENT = 3
"""Tokens that may stand in place of one or two others."""

SUBSTITUTED, SHARED, FORCED, REPLACED, SPELLED = range(5)
"""Grounds of a guess: it goes on behind a token that was guessed wrongly; it followed in another answer; the answer's
form leaves no other text; the answer has written it before in place of what is copied; the form leaves no other text,
but longer tokens begin so."""
_FIRST_LENGTH_GROUND = 5
_LENGTHS = (2, 3, 4, 6, 8, 12, 16, 24)
"""Tokens that were the same before the guess: one ground each, from that many on."""
LONGEST_COPY = _LENGTHS[-1]
"""Copied tokens from which on a longer copy is no surer."""
DRAFTED = _FIRST_LENGTH_GROUND + len(_LENGTHS)
"""The ground of all that a draft model guesses, beside those by how sure it is."""
_SURENESS = (0.4, 0.6, 0.8, 0.95)
"""Probabilities that the draft model gives to its guess: one ground each, up to that one, and one above."""
GROUNDS = DRAFTED + 1 + len(_SURENESS) + 1
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


@dataclass(slots=True)
class _Course:
    """A copy under way. place: where its next token stands. length: tokens that were copied, or replaced as before.

    due: what is still to come of a replacement, before the place counts.
    """

    place: int
    length: int
    due: tuple[int, ...] = ()


class TokenHistory:
    """The tokens of one prompt and its answer, by the n-grams in them."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}
        """Where the token stands that follows on an n-gram, the last time."""
        self._before: list[int] = []
        """For each token, where the one stands that followed on the same n-gram the time before; 0 for nowhere."""
        self._course: _Course | None = None
        self.n_copies = 0
        """How many copies were begun: one that goes on elsewhere than the one under way is another."""
        self._left: tuple[_Course, tuple[int, ...]] | None = None
        """The copy that was left, and what was written in place of it since."""
        self._replaced: dict[tuple[int, ...], tuple[int, ...]] = {}
        """What the answer writes in place of one or two tokens that it would copy."""
        for token in prompt[-MAX_INDEXED_TOKENS:]:
            self._add(token)

    def append(self, token: int) -> None:
        """The sequence goes on with this token."""
        course, self._course = self._course, None
        left, self._left = self._left, None
        if course is not None:
            self._follow(course, token)
        if left is not None and (self._left is None or self._left[0].length < left[0].length):
            # One that went on elsewhere for a few tokens is no reason to give up the longer one.
            self._left = None
            self._come_back(*left, token)
        self._add(token)

    def _follow(self, course: _Course, token: int) -> None:
        """The sequence goes on with a token, where a copy would go on, too."""
        expected, after = self._next(course)
        if expected == token:
            self._course = after
        elif not course.due and self._token(course.place) == token:
            # What was replaced before is not, this time.
            self._replaced.pop(self._key(course.place), None)
            self._course = _Course(course.place + 1, course.length + 1)
        elif course.length >= _MIN_SUBSTITUTED and not course.due and expected is not None:
            self._left = course, (token,)

    def _come_back(self, course: _Course, written: tuple[int, ...], token: int) -> None:
        """Whether the sequence goes on behind what was replaced by `written`: then that is known from now on."""
        for span in (1, 2):
            if self._token(course.place + span) == token:
                self._replaced.pop(written, None)
                self._replaced[tuple(self.tokens[course.place : course.place + span])] = written
                if course.length >= self.copied_length:
                    self._course = _Course(course.place + span + 1, course.length + 1)
                return
        if len(written) < _MAX_REPLACEMENT:
            self._left = course, (*written, token)

    def _token(self, place: int) -> int | None:
        return self.tokens[place] if place < len(self.tokens) else None

    def _key(self, place: int) -> tuple[int, ...]:
        """The tokens at a place that are replaced; none where nothing is known of them."""
        for span in (2, 1):
            key = tuple(self.tokens[place : place + span])
            if key in self._replaced:
                return key
        return ()

    def _next(self, course: _Course) -> tuple[int | None, _Course]:
        """(the next token of a copy, None at the text's end; the copy after it)."""
        length = course.length + 1
        if course.due:
            return course.due[0], _Course(course.place, length, course.due[1:])
        if self._replaced and (key := self._key(course.place)):
            first, *rest = self._replaced[key]
            return first, _Course(course.place + len(key), length, tuple(rest))
        return self._token(course.place), _Course(course.place + 1, length)

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

    def behind(self, coming: Sequence[int], most: int) -> tuple[list[int], list[int]]:
        """At most so many tokens that may follow on what is known to come next, which has at least one token, and why
        each of them is guessed: those that followed the last time."""
        end = [*self.tokens[-_MAX_COMPARED:], *coming][-_MAX_COMPARED:]
        place = self._latest.get(tuple(end[-_NGRAM:]), 0)
        if place < _NGRAM or most < 1:
            return [], []
        length = _NGRAM
        while length < min(len(end), place) and self.tokens[place - length - 1] == end[-length - 1]:
            length += 1
        return self._foreseen(_Course(place, length), most)

    def substituted(self) -> int | None:
        """Where the sequence may go on as before, after a token that was another one than then; None for nowhere."""
        if self._left is None or len(self._left[1]) > 1:
            return None
        place = self._left[0].place + 1
        return place if place < len(self.tokens) else None

    @property
    def copied_length(self) -> int:
        """How many tokens the copy under way has, those among them that were replaced as before; 0 for none."""
        return 0 if self._course is None else self._course.length

    def copy(self, place: int, length: int, most: int) -> tuple[list[int], list[int]]:
        """(tokens from a place on, before which `length` tokens are the same; why each of them is guessed).

        Beyond the end come those that were copied first, so that what repeats goes on. What the answer has replaced
        before is replaced.
        """
        if self._course is None or self._course.place != place:
            self.n_copies += 1
        self._course = _Course(place, length)
        return self._foreseen(self._course, most)

    def forget_replaced(self) -> None:
        """Forget what the answer writes in place of what it would copy."""
        self._replaced.clear()

    def go_on(self, most: int) -> tuple[list[int], list[int]]:
        """The same for the copy under way, of which there is one."""
        assert self._course is not None  # noqa: S101 - the caller has looked at `copied_length`
        return self._foreseen(self._course, most)

    def resume(self, most: int) -> tuple[list[int], list[int]]:
        """The same from where the sequence may go on as before (see `substituted`)."""
        assert self._left is not None  # noqa: S101 - the caller has looked at `substituted`
        # Whether it is so is known when the next token is: until then it is no copy under way.
        self._course = None
        tokens, grounds = self._foreseen(_Course(self._left[0].place + 1, _NGRAM - 1), most)
        return tokens, [SUBSTITUTED, *grounds[1:]]

    def _foreseen(self, course: _Course, most: int) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        grounds: list[int] = []
        while len(tokens) < most:
            is_literal = not course.due and not (self._replaced and self._key(course.place))
            token, after = self._next(course)
            if token is None:
                break
            tokens.append(token)
            grounds.append(ground_of_copy(course.length) if is_literal else REPLACED)
            course = after
        period = len(tokens)
        while period and len(tokens) < most:
            tokens.append(tokens[len(tokens) - period])
            grounds.append(ground_of_copy(course.length + len(tokens)))
        return tokens, grounds


def ground_of_copy(length: int) -> int:
    """The ground of a token that is copied from where `length` tokens are the same."""
    return _GROUND_OF_LENGTH[min(length, _LENGTHS[-1])]


def ground_of_draft(probability: float) -> int:
    """The ground of a token that a draft model guesses with such a probability."""
    return DRAFTED + 1 + bisect_left(_SURENESS, probability)


def is_drafted(ground: int) -> bool:
    """True for the ground of a guess that a draft model has made."""
    return ground > DRAFTED
