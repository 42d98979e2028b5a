"""How much each expert counts, and what a panel thinks of given texts. PURE.

With weights w_n that sum to 1, and each member's own distribution p_n over C texts, the panel's is the mixture

    p(y | x) = sum_n w_n p_n(y | x)

The weights are the gate's: w_n = softmax_S(z)_n with its logits z_n = p_n / tau, the pointwise optimum of the gate's
entropy-regularised objective on every subset S of the experts (design, section 2). So the weights of those that are
left after a member has dropped out are the same softmax over fewer logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def gate_weights(logits: npt.ArrayLike) -> FloatArray:
    """(M,) weights that sum to 1 from the M members' gate logits, M >= 1."""
    return _softmax(np.asarray(logits, dtype=np.float64))


def renormalised(weights: npt.ArrayLike) -> FloatArray:
    """(M,) the weights of the members that are left, M >= 1; equal ones where all of them had next to none."""
    left = np.asarray(weights, dtype=np.float64)
    total = left.sum()
    return np.asarray(left / total if total > 0 else np.full(left.size, 1 / left.size))


def distributions(log_likelihoods: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
    """(M, C) each member's distribution over C texts from their log-likelihoods (M, C), in nats.

    Without lengths that is the likelihood itself, normalised over the C texts: what the member would write, if it had
    to write one of them. lengths: (C,) or (M, C), of each text, > 0; the likelihood is then taken per unit of length
    (its geometric mean), so that a longer text is not the less likely one for that alone. In UTF-8 bytes it means the
    same to members with different tokenizers.
    """
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    if lengths is not None:
        scores = scores / np.asarray(lengths, dtype=np.float64)
    return _softmax(scores)


def mixture(weights: npt.ArrayLike, members: npt.ArrayLike) -> FloatArray:
    """(C,) the panel's distribution from its members' (M, C)."""
    return np.asarray(np.asarray(weights, dtype=np.float64) @ np.asarray(members, dtype=np.float64))


def best_of(distribution: FloatArray) -> int:
    """The place of the most likely; of equals the first."""
    return int(distribution.argmax())


def _softmax(scores: FloatArray) -> FloatArray:
    """Along the last axis. Members that find every text impossible are indifferent."""
    most = scores.max(axis=-1, keepdims=True)
    shifted = np.where(np.isneginf(most), 0.0, scores - np.where(np.isneginf(most), 0.0, most))
    parts = np.exp(shifted)
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))
