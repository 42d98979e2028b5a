"""Tests of the judging of candidates: one scale for all judges, nobody judges itself, and the gate's word first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.mixture import (
    CHANCE,
    JUDGES_SAY,
    TIES_SAY,
    FloatArray,
    distributions,
    gate_weights,
    judged,
    mixture,
    says_of,
)

EACH_ITS_OWN = np.eye(3, dtype=bool)
EVEN = np.full(3, 1 / 3)


FULL = np.full(3, JUDGES_SAY)
"""What judges say that are always right."""


def decided(weights: FloatArray, per_byte: FloatArray, says: FloatArray = FULL) -> FloatArray:
    return judged(weights, per_byte, EACH_ITS_OWN, weights, says)[1]


def test_a_judges_scale_does_not_matter() -> None:
    """A base model whose likelihoods are ten times as far apart says no more than another one."""
    per_byte = np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -1.0, -2.0]])
    loud = per_byte.copy()
    loud[2] = 10 * loud[2] - 5
    assert decided(EVEN, loud) == pytest.approx(decided(EVEN, per_byte))


def test_a_writers_view_of_its_own_text_is_left_out() -> None:
    """However much a member likes what it has written, the decision is the same."""
    per_byte = np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -1.0, -2.0]])
    vain = per_byte + 50 * EACH_ITS_OWN
    assert decided(EVEN, vain) == pytest.approx(decided(EVEN, per_byte))


def test_without_a_view_the_gate_decides() -> None:
    """Judges to whom all texts are alike, or who have one text of others to judge, leave the gate's weights."""
    weights = np.array([0.5, 0.3, 0.2])
    assert decided(weights, np.full((3, 3), -1.0)) == pytest.approx(weights)
    two = judged(
        np.array([0.7, 0.3]),
        np.array([[-9.0, -1.0], [-9.0, -1.0]]),
        np.eye(2, dtype=bool),
        np.array([0.7, 0.3]),
        FULL[:2],
    )
    assert two[1] == pytest.approx([0.7, 0.3])


def test_equals_are_told_apart_by_the_others() -> None:
    """Where the gate takes all writers for equal, the text that the others prefer wins."""
    per_byte = np.array([[-1.0, -2.0, -1.0], [-2.0, -1.0, -1.0], [-2.0, -3.0, -1.0]])
    assert decided(EVEN, per_byte).argmax() == 2


def test_what_two_have_written_has_the_weight_of_both() -> None:
    """Agreement counts, and is judged by those alone that have not written it."""
    wrote = np.array([[True, False], [False, True], [False, True]])
    _, shares = judged(np.array([0.4, 0.3, 0.3]), np.full((3, 2), -1.0), wrote, np.array([0.4, 0.6]), FULL)
    assert shares == pytest.approx([0.4, 0.6])


@pytest.mark.slow
@given(
    st.lists(st.floats(-1e6, 0.0) | st.just(-np.inf), min_size=9, max_size=9),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
)
def test_judges_move_the_gates_odds_by_a_bounded_amount(scores: list[float], raw: list[float]) -> None:
    """Whatever judges say, the shares are probabilities, and no odds of two candidates move by more than the bound."""
    weights = np.array(raw) / sum(raw)
    views, shares = judged(weights, np.array(scores).reshape(3, 3), EACH_ITS_OWN, weights, FULL)
    assert shares.sum() == pytest.approx(1.0)
    assert views.sum(axis=1) == pytest.approx(np.ones(3))
    moved = np.log(shares) - np.log(weights)
    # Of two texts of others the better one is one standard deviation above their mean, the other one below it.
    assert moved.max() - moved.min() <= 2 * JUDGES_SAY + 1e-9


def test_a_judge_says_as_much_as_it_was_right_beyond_chance() -> None:
    """Nobody's view, and that of one at chance or below, only tells equals apart; one that is always right says all."""
    right = np.array([np.nan, 0.0, CHANCE, (1 + CHANCE) / 2, 1.0])
    assert says_of(right) == pytest.approx([TIES_SAY, TIES_SAY, TIES_SAY, JUDGES_SAY / 2, JUDGES_SAY])


def test_a_judge_without_skill_is_not_heard_where_writers_differ() -> None:
    """Of two judges with opposite views the one that was right before turns the decision between near equals."""
    weights = np.array([0.36, 0.34, 0.3])
    # The third judge prefers the second text, the others have no view of the two.
    per_byte = np.array([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-3.0, -1.0, -1.0]])
    assert decided(weights, per_byte, says_of(np.array([0.9, 0.9, 0.9]))).argmax() == 1
    assert decided(weights, per_byte, says_of(np.array([0.9, 0.9, CHANCE]))).argmax() == 0


def simulated(questions: int, seed: int, believed: tuple[float, ...], skill: tuple[float, ...]) -> FloatArray:
    """(5, questions) SIMULATED: whether the former rule, this rule, and each of three members are right.

    Members are right with 0.645, 0.5 and 0.35; the third is a base model with three times the others' spread of taste.
    skill: by how many nats per byte a right text is likelier to each judge.
    """
    random = np.random.default_rng(seed)
    accuracy, taste, vanity = np.array([0.645, 0.5, 0.35]), np.array([0.4, 0.4, 1.5]), np.array([0.5, 0.5, 1.0])
    weights = gate_weights(np.array(believed) / 0.1)
    style = random.normal(size=3)
    outcomes = []
    for _ in range(questions):
        right = random.random(3) < accuracy
        bland = 0.5 * (style + random.normal(size=3))
        noise = 0.3 * random.normal(size=(3, 3))
        per_byte = taste[:, None] * (bland + noise) + np.outer(skill, right) + np.diag(vanity) - 1.5
        former = mixture(weights, distributions(per_byte)).argmax()
        outcomes.append((right[former], right[decided(weights, per_byte).argmax()], *right))
    return np.array(outcomes, dtype=float).T


@pytest.mark.slow
def test_a_bland_base_model_does_not_pull_the_panel_below_its_best_member() -> None:
    """SIMULATED fleets whose gate knows who is good: judges without skill cost under one error of 110 questions."""
    runs = [simulated(110, seed, (0.62, 0.52, 0.38), (0.0, 0.0, 0.0)).mean(axis=1) for seed in range(40)]
    former, present, best, *_ = np.mean(runs, axis=0)
    assert present > best - 0.046
    assert former < best - 0.046


def test_judges_with_some_skill_are_a_gain() -> None:
    """SIMULATED: where right texts are a little likelier to judges, the panel is better than its best member."""
    runs = [simulated(110, seed, (0.62, 0.52, 0.38), (0.8, 0.8, 0.3)).mean(axis=1) for seed in range(40)]
    _, present, best, *_ = np.mean(runs, axis=0)
    assert present > best + 0.02
