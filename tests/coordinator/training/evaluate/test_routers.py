"""The baselines, each on a case small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.gate.features import FeatureConfig, FeatureExtractor
from moe2.coordinator.training.evaluate.routers import (
    at_random,
    by_value,
    cosine_similarities,
    label_means,
    neighbour_means,
    round_robin,
    score_of,
)

FEASIBLE = np.array([[True, True, True], [False, True, True], [False, False, False]])


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
