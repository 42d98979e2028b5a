"""Calibration of the gate: from raw log-odds to probabilities that match how often experts answer well. PURE.

It is temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) shared by all experts, and
per expert a slope and an offset (Platt 1999), shrunk towards the shared temperature so that a small validation part
cannot reorder the experts by chance. Fractional scores count as fractional successes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_NEWTON_STEPS = 50
_SHRINKAGE = 20.0
"""How many of an expert's own rows the shared temperature weighs as much as."""
_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """The line from raw log-odds to calibrated ones for each of N experts: p_n = sigmoid(slope_n * x_n + offset_n)."""

    slope: FloatArray
    """(N,)"""
    offset: FloatArray
    """(N,)"""

    def probabilities(self, log_odds: FloatArray) -> FloatArray:
        """The calibrated probabilities (..., N) of raw log-odds (..., N)."""
        return sigmoid(self.slope * log_odds + self.offset)


def sigmoid(values: FloatArray) -> FloatArray:
    """The logistic function of each value, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), dtype=np.float64)


def log_odds_of(probabilities: FloatArray, margin: float = 1e-4) -> FloatArray:
    """The log-odds log(p / (1 - p)) of probabilities, which are kept `margin` away from 0 and 1."""
    clipped = np.clip(probabilities, margin, 1 - margin)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)


def binary_log_loss(probabilities: FloatArray, scores: FloatArray) -> float:
    """The mean of -(s log p + (1 - s) log(1 - p)) over the known scores, in nats; a NaN score was not run."""
    known = ~np.isnan(scores)
    p = np.clip(probabilities[known], 1e-7, 1 - 1e-7)
    s = scores[known]
    return float(-(s * np.log(p) + (1 - s) * np.log1p(-p)).mean())


def expected_calibration_error(probabilities: FloatArray, scores: FloatArray, bins: int = 15) -> float:
    """The mean gap, 0..1, between predicted and observed scores over equal-count bins (Nixon et al. 2019).

    probabilities, scores: of the same shape; NaN scores (not run) are left out. Raises ValueError where no score is
    known.
    """
    known = ~np.isnan(scores)
    if not known.any():
        raise ValueError("no known score to compare the probabilities with")
    order = np.argsort(probabilities[known], kind="stable")
    groups = np.array_split(order, min(bins, order.size))
    p, s = probabilities[known], scores[known]
    gaps = [abs(p[group].mean() - s[group].mean()) * group.size for group in groups]
    return float(sum(gaps) / order.size)


def fit_calibration(log_odds: FloatArray, scores: FloatArray) -> Calibration:
    """The calibration that cross-validation prefers: none, a shared temperature, or a line per expert.

    log_odds, scores: (rows, N); NaN scores are left out. A richer form is taken only where five-fold cross-validation
    shows it better by more than one standard error: a fit to few rows would otherwise reorder the experts by chance.
    """
    rows = scores.shape[0]
    plain = fit_temperature(log_odds[:0], scores[:0])
    best, best_losses = plain, row_log_losses(plain.probabilities(log_odds), scores)
    for fit in (fit_temperature, fit_lines):
        losses = np.full(rows, np.nan)
        for fold in range(_FOLDS):
            inside = np.arange(rows) % _FOLDS == fold
            fitted = fit(log_odds[~inside], scores[~inside])
            losses[inside] = row_log_losses(fitted.probabilities(log_odds[inside]), scores[inside])
        gain = (best_losses - losses)[~np.isnan(losses) & ~np.isnan(best_losses)]
        if gain.size > 1 and gain.mean() > gain.std(ddof=1) / np.sqrt(gain.size):
            best, best_losses = fit(log_odds, scores), losses
    return best


def fit_temperature(log_odds: FloatArray, scores: FloatArray) -> Calibration:
    """The calibration with one slope for all experts and no offset; the slope is 1 where no score is known.

    log_odds, scores: (rows, N); NaN scores are left out.
    """
    known = ~np.isnan(scores)
    slope = 1.0
    if known.any():
        slope = max(_fit_line(log_odds[known], scores[known], np.array([1.0, 0.0]), np.array([1e-3, 1e6]))[0], 0.05)
    return Calibration(np.full(scores.shape[1], slope), np.zeros(scores.shape[1]))


def fit_lines(log_odds: FloatArray, scores: FloatArray) -> Calibration:
    """The calibration with each expert's own slope and offset, shrunk towards a shared temperature.

    log_odds, scores: (rows, N); NaN scores are left out. An expert without a score keeps the shared temperature.
    """
    known = ~np.isnan(scores)
    common = fit_temperature(log_odds, scores)
    slope, offset = common.slope.copy(), common.offset.copy()
    for n in range(scores.shape[1]):
        rows = known[:, n]
        if rows.any():
            penalty = np.array([_SHRINKAGE, 0.25 * _SHRINKAGE])
            line = _fit_line(log_odds[rows, n], scores[rows, n], np.array([common.slope[n], 0.0]), penalty)
            slope[n], offset[n] = max(line[0], 0.05), line[1]
    return Calibration(slope, offset)


def row_log_losses(probabilities: FloatArray, scores: FloatArray) -> FloatArray:
    """(rows,) the mean log loss of each row's known scores, in nats; NaN for a row without any."""
    known = ~np.isnan(scores)
    p, s = np.clip(probabilities, 1e-7, 1 - 1e-7), np.where(known, scores, 0.0)
    each = np.where(known, -(s * np.log(p) + (1 - s) * np.log1p(-p)), 0.0)
    count = known.sum(axis=1)
    return np.asarray(np.where(count > 0, each.sum(axis=1) / np.maximum(count, 1), np.nan), dtype=np.float64)


def _fit_line(x: FloatArray, scores: FloatArray, centre: FloatArray, penalty: FloatArray) -> FloatArray:
    """(2,) the slope and offset with the least log loss plus penalty/2 * (line - centre)**2, by damped Newton steps."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    line = centre.copy()

    def value(candidate: FloatArray) -> float:
        eta = design @ candidate
        return float((np.logaddexp(0.0, eta) - scores * eta).sum() + 0.5 * (penalty * (candidate - centre) ** 2).sum())

    current = value(line)
    for _ in range(_NEWTON_STEPS):
        p = sigmoid(design @ line)
        gradient = design.T @ (p - scores) + penalty * (line - centre)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while scale > 1e-6 and value(line - scale * step) > current:
            scale *= 0.5
        line = line - scale * step
        following = value(line)
        if current - following < 1e-10:
            break
        current = following
    return line
