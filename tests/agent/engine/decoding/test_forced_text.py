"""Text about which an answer's form leaves no choice."""

from __future__ import annotations

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


def test_the_rest_of_such_a_text_is_known_ahead() -> None:
    """So that it goes into the next batch at once."""
    sampler = Counting()
    matcher = Slow(COMPILER.compile(Constraint(syntax="gbnf", source='root ::= "abcd" [xy]')))
    draw = MatchedDraw(sampler, sampler, matcher, {}, freely=lambda place: 0, spelling=ALPHABET)
    assert draw.coming() == []
    while not draw.is_ready:
        pass
    assert draw.sample(0) == ord("a")
    assert bytes(draw.coming()) == b"bc"
