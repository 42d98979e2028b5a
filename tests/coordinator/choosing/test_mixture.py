"""Weights of a panel, its distribution over texts, and its judging: nobody judges itself, and the gate's word first."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.mixture import (
    CHANCE,
    JUDGES_SAY,
    TIES_SAY,
    FloatArray,
    best_of,
    distributions,
    gate_weights,
    judged,
    mixture,
    renormalised,
    says_of,
)

LOGITS = st.lists(st.floats(-50, 50), min_size=2, max_size=6)
EACH_ITS_OWN = np.eye(3, dtype=bool)
EVEN = np.full(3, 1 / 3)


FULL = np.full(3, JUDGES_SAY)
"""What judges say that are always right."""


def test_weights_are_a_softmax_of_the_logits() -> None:
    """Probabilities of 0.7 and 0.5 at tau = 0.1 give weights with odds of e^2 to 1."""
    assert gate_weights([7.0, 5.0]) == pytest.approx([math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)])


@given(LOGITS)
def test_who_is_left_has_the_weights_of_the_smaller_panel(logits: list[float]) -> None:
    """Renormalised weights equal the gate's weights for the smaller panel."""
    left = gate_weights(logits)[:-1]
    if left.sum() > 1e-9:
        assert renormalised(left) == pytest.approx(gate_weights(logits[:-1]), rel=1e-6, abs=1e-12)


def test_a_vote_is_the_weighted_mixture() -> None:
    """0.75 (0.6, 0.3, 0.1) + 0.25 (0.1, 0.8, 0.1) = (0.475, 0.425, 0.1)."""
    members = distributions(np.log([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]))
    assert mixture([0.75, 0.25], members) == pytest.approx([0.475, 0.425, 0.1])
    assert best_of(mixture([0.75, 0.25], members)) == 0


def test_likelihoods_are_normalised_over_the_choices() -> None:
    """Only 0.06 of all texts begin like one of the two: 0.05 and 0.01 are odds of 5 to 1."""
    assert distributions(np.log([[0.05, 0.01]]))[0] == pytest.approx([5 / 6, 1 / 6])


def test_length_normalisation_takes_the_likelihood_per_unit() -> None:
    """e^-2 over 2 bytes and e^-4 over 8 bytes are e^-1 and e^-0.5 per byte: the longer one is the likelier."""
    (plain,), (per_byte,) = distributions([[-2.0, -4.0]]), distributions([[-2.0, -4.0]], [2, 8])
    assert best_of(plain) == 0
    assert per_byte == pytest.approx([1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))])


def test_an_impossible_choice_has_no_share() -> None:
    """An impossible choice gets no share, and a member that finds all impossible is indifferent."""
    found = distributions([[-math.inf, -3.0], [-math.inf, -math.inf]])
    assert found.tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_of_equal_choices_the_first_is_taken() -> None:
    """Of equally likely choices the first is taken, not a random one."""
    assert best_of(np.array([0.2, 0.4, 0.4])) == 1


@given(st.lists(st.lists(st.floats(-200, 0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_mixture_is_a_distribution_between_its_members(log_likelihoods: list[list[float]]) -> None:
    """A mixture sums to 1, and gives no choice more than the member that likes it most."""
    members = distributions(log_likelihoods)
    mixed = mixture(gate_weights(np.zeros(len(members))), members)
    assert mixed.sum() == pytest.approx(1.0)
    assert (mixed <= members.max(axis=0) + 1e-12).all()
    assert (mixed >= members.min(axis=0) - 1e-12).all()


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
