"""Text about which an answer's form leaves no choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.matched import MatchedDraw
from moe2.agent.engine.structure.constraint import Constraint
from tests.agent.engine.wishes import N_BYTES, Alphabet, Slow

ALPHABET = Alphabet(("<end>",), ends=("<end>",))
COMPILER = ALPHABET.compiler()


class Counting:
    """A sampler that takes the first token that is allowed, and remembers how many there were."""

    def __init__(self) -> None:
        self.choices: list[int] = []
        self.taken: list[int] = []

    def logits(self, place: int) -> Logits:
        return np.zeros(N_BYTES + 1, np.float32)

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int:
        self.choices.append(len(allowed))
        return int(allowed[0])

    def take(self, token: int) -> None:
        self.taken.append(token)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("grammar", "text", "choices"),
    [
        ('root ::= ("a" | "b") "cdef" [x-z]', "acdefx", [2, 1, 3]),
        ('root ::= "abc"', "abc", [1]),
        ("root ::= [ab] [cd]", "ac", [2, 2]),
        ('root ::= "ä" [xy] "öü"', "äxöü", [1, 2, 1]),
    ],
)
def test_a_text_without_a_choice_is_not_drawn(grammar: str, text: str, choices: list[int]) -> None:
    """But for its last token, which may be the beginning of a longer one; penalties know of it nevertheless."""
    sampler = Counting()
    matcher = Slow(COMPILER.compile(Constraint(syntax="gbnf", source=grammar)))
    draw = MatchedDraw(sampler, sampler, matcher, {}, freely=lambda place: 0, spelling=ALPHABET)
    written: list[int] = []
    while len(written) < len(text.encode()):
        while not draw.is_ready:
            pass
        token = draw.sample(0)
        assert token is not None
        written.append(token)
    assert bytes(written) == text.encode()
    assert sampler.choices == choices
    assert len(sampler.choices) + len(sampler.taken) == len(written)


class Noting(Slow):
    """A matcher that notes what it is to look ahead along."""

    ahead = b""

    def look_ahead(self, tokens: Sequence[int]) -> None:
        self.ahead = bytes(tokens)


def test_such_a_text_is_known_before_its_first_token_is_drawn() -> None:
    """So that it goes into the batch of the token before it; its last one is likely, until it has been drawn."""
    sampler = Counting()
    matcher = Noting(COMPILER.compile(Constraint(syntax="gbnf", source='root ::= [xy] "abcd" [xy]')))
    draw = MatchedDraw(sampler, sampler, matcher, {}, freely=lambda place: 0, spelling=ALPHABET)
    assert draw.foresee(0.0) == ([], [])
    while not draw.is_ready:
        pass
    assert draw.sample(0) == ord("x")
    assert draw.foresee(0.0) == ([*b"abc"], [*b"d"])
    assert bytes(filter(None, (draw.sample(0) for _ in range(2)))) == b"ab"
    assert draw.foresee(0.0) == ([*b"c"], [*b"d"])
    assert bytes(filter(None, (draw.sample(0) for _ in range(2)))) == b"cd"
    assert draw.foresee(0.0) == ([], [])


def test_masks_are_asked_for_behind_what_has_to_come() -> None:
    """The matcher knows of that already: only guesses behind it are news to it."""
    sampler = Counting()
    matcher = Noting(COMPILER.compile(Constraint(syntax="gbnf", source='root ::= "abc" [xy] "z"')))
    draw = MatchedDraw(sampler, sampler, matcher, {}, freely=lambda place: 0, spelling=ALPHABET)
    assert draw.foresee(0.0) == ([*b"ab"], [*b"c"])
    draw.look_ahead(b"a")
    assert matcher.ahead == b""
    draw.look_ahead(b"abcxz")
    assert matcher.ahead == b"cxz"
