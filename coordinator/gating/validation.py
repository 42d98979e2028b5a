"""What the validation rows decide: the residual's scale and the calibration; and the gate's figures there. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gating.calibration import (
    Calibration,
    binary_log_loss,
    expected_calibration_error,
    fit_calibration,
    log_odds_of,
    row_log_losses,
    sigmoid,
)
from moe2.coordinator.gating.gate import Gate
from moe2.coordinator.gating.outcomes import Outcomes

FloatArray = npt.NDArray[np.float64]

_RESIDUAL_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def chosen_on_validation(gate: Gate, val: Outcomes) -> tuple[Gate, dict[str, float]]:
    """The gate with the residual's scale and the calibration that validation prefers, and its figures there."""
    heads = [gate.heads(gate.extractor.extract(prompt)) for prompt in val.prompts]
    task_logits, residual = (np.stack(part).astype(np.float64) for part in zip(*heads, strict=True))
    posterior = np.exp(task_logits - task_logits.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    mean = log_odds_of(posterior @ gate.parameters.profile)
    plain = Calibration(np.ones(len(val.experts)), np.zeros(len(val.experts)))

    scale = _residual_scale(mean, residual, val.scores)
    raw = mean + scale * residual
    calibration = fit_calibration(raw, val.scores)
    before, after = plain.probabilities(raw), calibration.probabilities(raw)
    parameters = replace(
        gate.parameters,
        residual_weight=(gate.parameters.residual_weight * scale).astype(np.float32),
        residual_bias=(gate.parameters.residual_bias * scale).astype(np.float32),
        calibration_slope=calibration.slope.astype(np.float32),
        calibration_offset=calibration.offset.astype(np.float32),
    )
    metrics = {
        "residual_scale": scale,
        "val_score_top1": top1_score(after, val.scores),
        "val_score_best_single": float(np.nanmax(np.nanmean(val.scores, axis=0))),
        "val_log_loss": binary_log_loss(after, val.scores),
        "val_calibration_error_before": expected_calibration_error(before, val.scores),
        "val_calibration_error_after": expected_calibration_error(after, val.scores),
    }
    return Gate(parameters, gate.feature_config, gate.experts, gate.tau), metrics


def _residual_scale(mean: FloatArray, residual: FloatArray, scores: FloatArray) -> float:
    """The scale with the least log loss, or 0 where it gains no more than one standard error over having none."""
    losses = {scale: row_log_losses(sigmoid(mean + scale * residual), scores) for scale in _RESIDUAL_SCALES}
    best = min(_RESIDUAL_SCALES, key=lambda scale: float(np.nanmean(losses[scale])))
    gain = losses[0.0] - losses[best]
    gain = gain[~np.isnan(gain)]
    return best if gain.mean() > gain.std(ddof=1) / np.sqrt(gain.size) else 0.0


def top1_score(probabilities: FloatArray, scores: FloatArray) -> float:
    """Mean score of the likeliest expert among those that were run on the row."""
    masked = np.where(np.isnan(scores), -1.0, probabilities)
    usable = ~np.isnan(scores).all(axis=1)
    return float(scores[usable, masked[usable].argmax(axis=1)].mean())
