"""Tests of a vote over final answers: its leader, its probability, and when it is settled."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.answers.vote import Settled, Vote

WEIGHTS = st.lists(st.floats(0, 4), min_size=1, max_size=5)
ANSWERS = st.lists(st.sampled_from(["x", "y", "z", None]), min_size=5, max_size=5)


def vote(weights: list[float], answers: list[str | None]) -> Vote:
    """A vote in which the first members have given these answers."""
    found = Vote({str(n): weight for n, weight in enumerate(weights)}, 1.0)
    for n, answer in enumerate(answers):
        found.add(str(n), answer)
    return found


def names(count: int, start: int = 0) -> list[str]:
    """The members from `start` to `count`."""
    return [str(n) for n in range(start, count)]


@given(WEIGHTS, ANSWERS, st.data())
def test_a_leader_that_cannot_lose_never_does(
    weights: list[float], answers: list[str | None], data: st.DataObject
) -> None:
    """Whatever the members that were not asked would have said, the answer stays; the rule misses no certain one."""
    asked = data.draw(st.integers(0, len(weights)))
    begun = vote(weights, answers[:asked])
    left = names(len(weights), asked)
    settled = begun.settled(left)
    endings = product(["x", "y", "z", "new", None], repeat=len(left))
    ends = {vote(weights, [*answers[:asked], *rest]).leader for rest in endings}
    if settled is not None:
        assert ends == {begun.leader}
    elif begun.leader is not None:
        first, second, *_ = [*sorted(begun.sums.values(), reverse=True), 0.0]
        assert len(ends) > 1 or first - second <= sum(weights[asked:])


@given(WEIGHTS, ANSWERS)
def test_probabilities_are_shares(weights: list[float], answers: list[str | None]) -> None:
    """The leader's probability is within 0..1, and 0 without any answer."""
    found = vote(weights, answers[: len(weights)])
    assert (found.probability == 0.0) is (found.leader is None)
    assert found.probability < 1.0


def test_the_heavier_side_wins_and_not_the_larger() -> None:
    """Two light members do not outvote a heavy one."""
    assert vote([3.0, 1.0, 1.0], ["x", "y", "y"]).leader == "x"
    assert vote([3.0, 2.0, 2.0], ["x", "y", "y"]).leader == "y"


@pytest.mark.parametrize(
    ("answers", "wanted", "settled"),
    [
        ([], None, None),
        (["x"], None, None),
        (["x"], 0.6, Settled.PROBABLE),
        (["x"], 0.99, None),
        (["x", "x"], None, Settled.CANNOT_LOSE),
        (["x", "y"], None, None),
        ([None, None], 0.1, None),
        ([None, None, None], None, Settled.ALL_ASKED),
        (["x", "y", "z"], None, Settled.ALL_ASKED),
    ],
)
def test_asking_ends_when_the_outcome_is_settled(
    answers: list[str | None], wanted: float | None, settled: Settled | None
) -> None:
    """It ends with certainty about the outcome, with the wanted probability, or with the last member."""
    assert vote([2.0, 2.0, 2.0], answers).settled(names(3, len(answers)), wanted) == settled


def test_members_without_weight_change_nothing() -> None:
    """A first answer is certain where nobody else's vote counts."""
    assert vote([1.0, 0.0], ["x"]).settled(["1"]) is Settled.CANNOT_LOSE


def test_supporters_come_with_the_heaviest_first() -> None:
    """The client gets the text of the first one."""
    assert vote([1.0, 3.0, 2.0], ["x", "x", "y"]).supporters("x") == ["1", "0"]
