"""Tests of a gate's gain: what is compared, and when it is clearly behind."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.training.gain import Gain, best_single, chosen_scores, gain_of

NAN = float("nan")


def test_the_gain_is_paired() -> None:
    """Its error is that of the differences, so two choices that agree have none."""
    same = gain_of(np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert (same.gain, same.standard_error, same.is_clearly_behind) == (0.0, 0.0, False)
    better = gain_of(np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]))
    assert better.gain == 0.5
    assert better.standard_error == pytest.approx(0.2887, abs=1e-4)


def test_rows_that_one_of_both_was_not_run_on_do_not_count() -> None:
    """Only prompts with both scores are compared."""
    found = gain_of(np.array([1.0, NAN, 1.0]), np.array([0.0, 0.0, NAN]))
    assert (found.rows, found.gain, found.standard_error) == (1, 1.0, None)


def test_nothing_to_compare_is_an_error() -> None:
    """Without a common prompt there is no gain, not one of 0."""
    with pytest.raises(ValueError, match="scores of both"):
        gain_of(np.array([NAN]), np.array([1.0]))


@pytest.mark.parametrize(
    ("score", "error", "is_behind"), [(0.29, 0.10, True), (0.41, 0.10, False), (0.50, 0.01, False), (0.1, None, False)]
)
def test_clearly_behind_is_by_more_than_the_error(score: float, error: float | None, is_behind: bool) -> None:
    """A gate that is behind by less than one standard error may as well be ahead."""
    assert Gain(25, score, 0.42, error).is_clearly_behind is is_behind


def test_the_gain_is_told_with_its_error() -> None:
    """In points, with the number of prompts and both scores."""
    told = Gain(52, 0.46, 0.42, 0.031).told("the best single expert")
    assert told.startswith("On 52 prompts")
    assert told.endswith("0.460 and the best single expert 0.420: +4.0 ± 3.1 points.")


def test_an_expert_that_was_not_run_is_not_chosen() -> None:
    """The likeliest of those that were run stands for the choice; a row without any has no score."""
    scores = np.array([[NAN, 0.5, 0.25], [NAN, NAN, NAN]])
    probabilities = np.array([[0.9, 0.2, 0.3], [0.9, 0.2, 0.3]])
    assert chosen_scores(probabilities, scores) == pytest.approx([0.25, NAN], nan_ok=True)


def test_the_best_single_expert_is_by_known_scores() -> None:
    """An expert that was run on few rows is compared by its mean over those."""
    assert best_single(np.array([[1.0, NAN], [0.0, 0.75], [0.5, NAN]])) == 1


def test_who_cannot_be_compared_is_not_the_best_single() -> None:
    """A newcomer with a few right answers was asked none of the prompts that the best one is compared on."""
    scores = np.array([[1.0, NAN], [0.5, NAN], [0.5, 1.0]])
    assert best_single(scores) == 1
    assert best_single(scores, np.array([[1.0, NAN], [0.0, NAN]])) == 0
