"""Weights of a panel's members, and the panel's distribution over given texts. PURE.

With weights w_n that sum to 1 and each member's own distribution p_n over C texts, the panel's distribution is

    p(y | x) = sum_n w_n p_n(y | x)

The weights are the gate's: w_n = softmax_S(z)_n with its logits z_n = p_n / tau, the pointwise optimum of the gate's
entropy-regularised objective on every subset S of the experts (design, section 2). So the weights of the members that
are left after one has dropped out are the same softmax over fewer logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def gate_weights(logits: npt.ArrayLike) -> FloatArray:
    """The weights (M,) of M >= 1 members from their gate logits (M,); they sum to 1."""
    return _softmax(np.asarray(logits, dtype=np.float64))


def renormalised(weights: npt.ArrayLike) -> FloatArray:
    """The weights (M,) of M >= 1 members, scaled to sum to 1; equal weights where all of them are 0."""
    left = np.asarray(weights, dtype=np.float64)
    total = left.sum()
    return np.asarray(left / total if total > 0 else np.full(left.size, 1 / left.size))


def distributions(log_likelihoods: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
    """Each member's distribution over C texts (M, C), from the texts' log-likelihoods (M, C) in nats.

    lengths: (C,) or (M, C) positive lengths of the texts. Without them the likelihoods are normalised over the C texts:
    what the member would write if it had to write one of them. With them the likelihood is taken per unit of length
    (its geometric mean), so that a text is not less likely only because it is longer. A length in UTF-8 bytes means the
    same to members with different tokenizers.
    """
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    if lengths is not None:
        scores = scores / np.asarray(lengths, dtype=np.float64)
    return _softmax(scores)


def mixture(weights: npt.ArrayLike, members: npt.ArrayLike) -> FloatArray:
    """The panel's distribution (C,) from its members' weights (M,) and distributions (M, C)."""
    return np.asarray(np.asarray(weights, dtype=np.float64) @ np.asarray(members, dtype=np.float64))


def best_of(distribution: FloatArray) -> int:
    """The place of the most likely text; the first of equally likely ones."""
    return int(distribution.argmax())


def _softmax(scores: FloatArray) -> FloatArray:
    """The softmax along the last axis; it is uniform where every score is -inf."""
    most = scores.max(axis=-1, keepdims=True)
    shifted = np.where(np.isneginf(most), 0.0, scores - np.where(np.isneginf(most), 0.0, most))
    parts = np.exp(shifted)
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))
