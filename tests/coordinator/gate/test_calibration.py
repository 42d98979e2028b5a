"""Tests of calibration and of its measure."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.gate.calibration import (
    binary_log_loss,
    expected_calibration_error,
    fit_calibration,
    fit_lines,
    log_odds_of,
    sigmoid,
)


def overconfident(rows: int = 4000, experts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds that are twice too large, and scores drawn from the true ones."""
    random = np.random.default_rng(0)
    truth = random.normal(0, 1.2, (rows, experts))
    return 2 * truth, (random.random((rows, experts)) < sigmoid(truth)).astype(float)


def test_calibration_undoes_overconfidence() -> None:
    """Log-odds that are twice too large get a slope near one half."""
    calibration = fit_calibration(*overconfident())
    assert calibration.slope == pytest.approx(0.5, abs=0.05)
    assert calibration.offset == pytest.approx(0.0, abs=0.1)


def test_calibration_lowers_error_and_log_loss_on_other_rows() -> None:
    """A calibration fitted on half the rows lowers error and log loss on the other half."""
    log_odds, scores = overconfident()
    calibration = fit_calibration(log_odds[:2000], scores[:2000])
    before, after = sigmoid(log_odds[2000:]), calibration.probabilities(log_odds[2000:])
    assert expected_calibration_error(after, scores[2000:]) < 0.5 * expected_calibration_error(before, scores[2000:])
    assert binary_log_loss(after, scores[2000:]) < binary_log_loss(before, scores[2000:])


def test_an_expert_without_rows_keeps_the_shared_temperature() -> None:
    """An expert that was not run on validation rows shares the others' slope and has no offset."""
    log_odds, scores = overconfident()
    scores[:, 2] = np.nan
    calibration = fit_lines(log_odds, scores)
    assert calibration.slope[2] == pytest.approx(0.5, abs=0.05)
    assert calibration.offset[2] == 0


def test_few_rows_cannot_reorder_the_experts() -> None:
    """Five lucky rows move an expert by little: the fit is shrunk to the shared line."""
    scores = np.full((5, 2), np.nan)
    scores[:, 0] = 1.0
    calibration = fit_lines(np.zeros((5, 2)), scores)
    assert calibration.probabilities(np.zeros((1, 2)))[0, 0] < 0.7


def test_good_probabilities_are_left_alone() -> None:
    """Where nothing is to be gained on other rows, nothing is changed: chance must not reorder experts."""
    random = np.random.default_rng(4)
    truth = random.normal(0, 1.2, (200, 3))
    calibration = fit_calibration(truth, (random.random((200, 3)) < sigmoid(truth)).astype(float))
    assert (calibration.slope == 1).all()
    assert (calibration.offset == 0).all()


def test_a_biased_expert_is_corrected() -> None:
    """One expert that is far worse than its log-odds say gets an offset of its own."""
    random = np.random.default_rng(4)
    truth = random.normal(0, 1.2, (800, 3))
    scores = (random.random((800, 3)) < sigmoid(truth - np.array([0.0, 0.0, 2.0]))).astype(float)
    calibration = fit_calibration(truth, scores)
    assert calibration.offset[2] == pytest.approx(-2.0, abs=0.4)
    assert abs(calibration.offset[0]) < 0.3


def test_no_known_score_leaves_the_odds_alone() -> None:
    """Without any score there is nothing to fit, and nothing changes."""
    calibration = fit_calibration(np.zeros((4, 2)), np.full((4, 2), np.nan))
    assert calibration.slope == pytest.approx(1.0)


def test_calibration_error_of_a_known_case() -> None:
    """Predictions of 0.8 where 0.5 is true have a calibration error of 0.3."""
    p, s = np.full(100, 0.8), np.tile([0.0, 1.0], 50)
    assert expected_calibration_error(p, s, bins=1) == pytest.approx(0.3)


def test_calibration_error_needs_scores() -> None:
    """A calibration error without any known score raises an error and is not 0."""
    with pytest.raises(ValueError, match="no known score"):
        expected_calibration_error(np.array([0.5]), np.array([np.nan]))


def test_log_odds_are_the_inverse_of_the_sigmoid() -> None:
    """The sigmoid of log-odds gives the same probability back, and the ends stay finite."""
    p = np.array([0.01, 0.5, 0.99])
    assert sigmoid(log_odds_of(p)) == pytest.approx(p)
    assert np.isfinite(log_odds_of(np.array([0.0, 1.0]))).all()
