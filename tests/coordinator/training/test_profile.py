"""Tests of the experts' profile: with few rows it stays with their overall means, with many it follows the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moe2.coordinator.training.profile import FloatArray, length_profile, scoring_profile, shrunk_profile

KINDS = tuple(f"kind-{k}" for k in range(10))
ALIKE = np.broadcast_to([0.30, 0.42, 0.36, 0.25], (10, 4))
"""Chances of experts that differ in ability, and not by kind."""
SPECIALISTS = np.array([[0.7 if k % 4 == n else 0.3 for n in range(4)] for k in range(10)])
"""Chances of experts that are each good at some kinds."""


def drawn(chances: FloatArray, rows: int, seed: int) -> tuple[FloatArray, list[str]]:
    """Scores and labels of rows whose experts are right with `chances` (kinds, experts)."""
    random = np.random.default_rng(seed)
    of_row = random.integers(0, len(KINDS), rows)
    scores = (random.random((rows, chances.shape[1])) < chances[of_row]).astype(float)
    return scores, [KINDS[k] for k in of_row]


def gain(chances: FloatArray, rows: int, seed: int) -> float:
    """What choosing by the profile gains in truth over the expert that is the best one on the same rows."""
    scores, labels = drawn(chances, rows, seed)
    profile = shrunk_profile(scores, labels, KINDS)
    chosen = chances[np.arange(len(KINDS)), profile.argmax(axis=1)].mean()
    return float(chosen - chances[:, scores.mean(axis=0).argmax()].mean())


def test_few_rows_of_experts_that_do_not_differ_by_kind_lose_nothing() -> None:
    """With 205 rows the mean loss to the best single expert is under half a point, whoever was lucky."""
    assert np.mean([gain(ALIKE, 205, seed) for seed in range(200)]) > -0.005


def test_few_rows_of_specialists_gain() -> None:
    """The same 205 rows gain ten points where experts do differ by kind."""
    assert np.mean([gain(SPECIALISTS, 205, seed) for seed in range(50)]) > 0.10


def test_many_rows_are_believed() -> None:
    """With many rows the profile is the truth."""
    scores, labels = drawn(SPECIALISTS, 20_000, 0)
    assert shrunk_profile(scores, labels, KINDS) == pytest.approx(SPECIALISTS, abs=0.05)


def test_a_kind_that_is_hard_for_all_is_hard_in_the_profile() -> None:
    """Hardness is kept although it changes no choice: probabilities are compared with prices."""
    hard = np.array([[0.1] * 4 if k < 5 else [0.9] * 4 for k in range(10)])
    scores, labels = drawn(hard, 400, 1)
    assert shrunk_profile(scores, labels, KINDS) == pytest.approx(hard, abs=0.1)


def test_a_kind_without_rows_has_the_overall_means() -> None:
    """Nothing is known of such a kind."""
    scores, labels = drawn(ALIKE, 300, 2)
    profile = shrunk_profile(scores, labels, (*KINDS, "never seen"))
    assert profile[-1] == pytest.approx(scores.mean(axis=0), abs=0.01)


def test_an_expert_that_was_run_on_easy_rows_only_is_not_flattered_there() -> None:
    """Where experts were run on different rows, the rest of each is what it does better than those beside it."""
    chances = np.tile([0.5, 0.5], (10, 1))
    scores, labels = drawn(chances, 600, 3)
    scores[[label != "kind-0" for label in labels], 1] = np.nan
    profile = shrunk_profile(scores, labels, KINDS)
    assert abs(profile[0, 0] - profile[0, 1]) < 0.1


def test_one_row_for_each_kind_is_all_chance() -> None:
    """Where no kind has two rows, nothing tells chance from truth, and the best expert overall is best everywhere."""
    scores = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    profile = shrunk_profile(scores, KINDS[:4], KINDS[:4])
    assert (profile.argmax(axis=1) == 0).all()


def test_an_expert_that_never_scored_options_has_its_scores_by_writing() -> None:
    """What is known of scoring replaces what is known of writing, expert by expert."""
    written = np.array([[0.2, 0.9], [0.3, 0.9]])
    scored = np.array([[1.0, np.nan]] * 8 + [[0.0, np.nan]] * 8)
    labels = ["kind-0"] * 8 + ["kind-1"] * 8
    found = scoring_profile(scored, labels, KINDS[:2], written)
    assert found is not None
    assert found[:, 1].tolist() == [0.9, 0.9]
    assert found[0, 0] > 0.8
    assert found[1, 0] < 0.2
    assert scoring_profile(None, labels, KINDS[:2], written) is None
    assert scoring_profile(np.full((16, 2), np.nan), labels, KINDS[:2], written) is None


@given(
    arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.sampled_from([0.0, 0.5, 1.0, np.nan])),
    st.data(),
)
def test_a_profile_is_always_made_of_probabilities(scores: FloatArray, data: st.DataObject) -> None:
    """Whatever was run where, every figure is finite and within 0..1."""
    scores[0] = np.nan_to_num(scores[0], nan=1.0)
    labels = data.draw(st.lists(st.sampled_from(KINDS), min_size=len(scores), max_size=len(scores)))
    profile = shrunk_profile(scores, labels, KINDS)
    assert profile.shape == (len(KINDS), scores.shape[1])
    assert ((profile >= 0) & (profile <= 1)).all()


def test_lengths_are_told_by_kind_and_expert() -> None:
    """With many rows they are the means in tokens; a kind without rows has the expert's mean over all."""
    chars = np.array([[400.0, 80.0]] * 2000 + [[1200.0, 80.0]] * 2000)
    found = length_profile(chars, ["a"] * 2000 + ["b"] * 2000, ("a", "b", "new"))
    assert found == pytest.approx(np.array([[100.0, 20.0], [300.0, 20.0], [200.0, 20.0]]), rel=0.02)


def test_unknown_lengths_stay_unknown() -> None:
    """An expert without any length has NaN; where nobody has one there is no profile."""
    chars = np.array([[400.0, np.nan], [np.nan, np.nan]])
    found = length_profile(chars, ["a", "b"], ("a", "b"))
    assert found == pytest.approx(np.array([[100.0, np.nan], [100.0, np.nan]]), nan_ok=True)
    assert length_profile(chars[:, 1:], ["a", "b"], ("a", "b")) is None
    assert length_profile(chars[:0], [], ("a",)) is None
