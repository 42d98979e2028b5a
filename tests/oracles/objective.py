"""The training objective: the entropy-regularised expected loss. Pure: numpy only.

    L(w, S) = sum_{n in S} w_n loss_n + tau * sum_{n in S} w_n log w_n

Its pointwise minimum on *every* set S is w_n proportional to exp(-loss_n / tau) over S, so one vector of logits,
z_n = -loss_n / tau, fitted once with all experts, is optimal for each subset as well once it is renormalised there.
This is the optimality-preserving property that lets training and selection be separated (docs: design, section 2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def restricted_softmax(logits: FloatArray, members: BoolArray) -> FloatArray:
    """(..., N) softmax of `logits` over the members of a set, 0 elsewhere.

    members: (..., N), broadcast against `logits`. Raises ValueError where a row has no member.
    """
    members = np.broadcast_to(members, logits.shape)
    if not members.any(axis=-1).all():
        raise ValueError("a softmax over an empty set of experts has no value")
    masked = np.where(members, logits, -np.inf)
    weights = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)


def entropy_regularised_loss(weights: FloatArray, losses: FloatArray, tau: float) -> FloatArray:
    """(...) the objective's value for weights (..., N) and losses (..., N); a weight of 0 contributes 0."""
    entropy = np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1.0)), 0.0)
    expected = np.where(weights > 0, weights * losses, 0.0)
    return np.asarray((expected + tau * entropy).sum(axis=-1), dtype=np.float64)


def optimal_logits(losses: FloatArray, tau: float) -> FloatArray:
    """(..., N) the logits whose restricted softmax minimises the objective on every subset. tau > 0."""
    if tau <= 0:
        raise ValueError(f"tau must be positive, not {tau}")
    return np.asarray(-losses / tau, dtype=np.float64)


def free_energy(losses: FloatArray, members: BoolArray, tau: float) -> FloatArray:
    """(...) the objective's minimum over weights on the set: -tau log sum exp(-loss / tau). Falls as the set grows."""
    masked = np.where(np.broadcast_to(members, losses.shape), -losses / tau, -np.inf)
    top = masked.max(axis=-1, keepdims=True)
    return np.asarray(-tau * (top[..., 0] + np.log(np.exp(masked - top).sum(axis=-1))), dtype=np.float64)


def mixture_cross_entropy(weights: FloatArray, label_probability: FloatArray, expert_probability: FloatArray) -> float:
    """The naive alternative: cross-entropy of the linear mixture of the experts' answers. Not optimality-preserving.

    weights: (N,), label_probability: (C,), expert_probability: (N, C). Kept as the counter-example that a test shows.
    """
    return float(-(label_probability * np.log(weights @ expert_probability)).sum())
