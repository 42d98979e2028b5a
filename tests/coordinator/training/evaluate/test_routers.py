"""Routers, and the panels that evaluation chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe2.coordinator.gate.features import FeatureConfig, FeatureExtractor
from moe2.coordinator.training.evaluate.routers import (
    PanelProblem,
    Planner,
    at_random,
    by_value,
    cosine_similarities,
    label_means,
    neighbour_means,
    round_robin,
    score_of,
)
from tests.coordinator.training.evaluate.enumeration import best_panel

FEASIBLE = np.array([[True, True, True], [False, True, True], [False, False, False]])
# Steps far above the planner's rounding, so that both see the same ties.
UNIT = hnp.arrays(float, 5, elements=st.integers(5, 95).map(lambda share: share / 100))


def test_the_largest_feasible_value_is_chosen() -> None:
    """The best expert is taken where it fits, else the next; nothing where nobody fits."""
    assert by_value(np.array([3.0, 1.0, 2.0]))(FEASIBLE).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_random_is_an_exact_expectation() -> None:
    """Chance is shared equally among those that fit."""
    assert at_random()(FEASIBLE) == pytest.approx(np.array([[1 / 3] * 3, [0, 0.5, 0.5], [0, 0, 0]]))


def test_round_robin_takes_turns() -> None:
    """Four rows over three experts: 0, 1, 2, 0."""
    shares = round_robin()(np.ones((4, 3), dtype=bool))
    assert shares.argmax(axis=1).tolist() == [0, 1, 2, 0]


def test_label_means_fall_back_to_the_overall_mean() -> None:
    """A kind never seen in training gets the overall mean; unknown scores do not count."""
    scores = np.array([[1.0, 0.0], [0.0, np.nan], [0.5, 1.0]])
    means = label_means(["a", "a", "b"], scores, ["a", "c"])
    assert means == pytest.approx(np.array([[0.5, 0.0], [0.5, 0.5]]))


def test_neighbours_vote_with_their_scores() -> None:
    """The two nearest train prompts decide, the opposite one does not."""
    scores = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert neighbour_means(np.array([[1.0, 0.8, -1.0]]), scores, 2) == pytest.approx(np.array([[0.5, 0.0]]))


def test_similarity_is_the_cosine_of_ngrams() -> None:
    """A prompt is wholly like itself, partly like one that shares words, and like nothing where nothing is shared."""
    extractor = FeatureExtractor(FeatureConfig(character_orders=(), word_orders=(1,)))
    idf = np.ones(extractor.config.buckets, dtype=np.float32)
    known = ["red blue", "red green", "?", "yellow"]
    (row,) = cosine_similarities(["red blue"], known, extractor, idf)
    assert row == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-6)


def test_unanswered_rows_score_nothing() -> None:
    """Where nothing was run the score is 0; an unknown score of an expert that was not run does no harm."""
    shares = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert score_of(shares, np.array([[0.7, np.nan], [1.0, 1.0]])).tolist() == [0.7, 0.0]


def problem(p: np.ndarray, energy: np.ndarray, delay: np.ndarray, **limits: float) -> PanelProblem:
    return PanelProblem(
        probabilities=p,
        energy_j=energy,
        delay_s=delay,
        available=np.ones(p.size, dtype=bool),
        max_energy_j=limits.get("max_energy_j", float("inf")),
        max_delay_s=limits.get("max_delay_s", float("inf")),
        max_experts=int(limits.get("max_experts", p.size)),
    )


@given(UNIT, UNIT, UNIT, st.floats(0, 3), st.floats(0, 1), st.integers(1, 5))
def test_the_panel_is_worth_as_much_as_the_best_of_all(
    p: np.ndarray, energy: np.ndarray, delay: np.ndarray, most_j: float, most_s: float, count: int
) -> None:
    """The chosen panel keeps every limit, and no other that does is worth more."""
    request = problem(p, energy, delay, max_energy_j=most_j, max_delay_s=most_s, max_experts=count)
    panel, other = list(Planner().select(request)), list(best_panel(request))
    assert energy[panel].sum() <= most_j * (1 + 1e-9)
    assert all(delay[panel] <= most_s * (1 + 1e-9))
    assert len(panel) <= count
    assert bool(panel) >= bool(other)
    assert np.prod(1 - p[panel]) <= np.prod(1 - p[other]) + 1e-8


@pytest.mark.slow
@given(UNIT, UNIT, UNIT, hnp.arrays(bool, 5), st.floats(0, 1))
def test_a_panel_of_one_is_the_likeliest_expert_that_fits(
    p: np.ndarray, energy: np.ndarray, delay: np.ndarray, available: np.ndarray, most_s: float
) -> None:
    """With one seat the largest probability wins, ties by joules, and nobody where nobody fits."""
    request = problem(p, energy, np.round(delay), max_delay_s=round(most_s), max_experts=1)
    request = PanelProblem(**{**vars(request), "available": available})
    assert Planner().select(request) == best_panel(request)


def test_ties_go_to_the_cheaper_expert() -> None:
    """Of experts with equal value the one with fewer joules is chosen."""
    p = np.array([0.5, 0.5])
    assert Planner().select(problem(p, np.array([2.0, 1.0]), np.ones(2), max_experts=1)) == (1,)


def test_members_are_numbers_in_the_order_of_the_arrays() -> None:
    """Members of more than ten experts are numbers in the arrays' order, not the names' order."""
    p = np.linspace(0.1, 0.5, 12)
    assert Planner().select(problem(p, np.ones(12), np.ones(12), max_energy_j=3)) == (9, 10, 11)
    assert Planner().select(problem(np.full(12, 0.5), np.ones(12), np.ones(12), max_experts=2)) == (0, 1)


def test_no_expert_is_needed_to_fit() -> None:
    """The panel is empty where no expert is available."""
    request = problem(np.array([0.5]), np.ones(1), np.ones(1), max_energy_j=0.5)
    assert Planner().select(request) == ()
    assert best_panel(request) == ()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_limit_that_is_met_exactly_is_kept(limit: float) -> None:
    """An expert whose joules equal the budget fits."""
    request = problem(np.array([0.5]), np.full(1, limit), np.ones(1), max_energy_j=limit)
    assert Planner().select(request) == best_panel(request) == (0,)
