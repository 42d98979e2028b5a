"""Weights of a panel's members, its distribution over given texts, and what its judges say of written ones. PURE.

With weights w_n that sum to 1 and each member's own distribution p_n over C texts, the panel's distribution is

    p(y | x) = sum_n w_n p_n(y | x)

The weights are the gate's: w_n = softmax_S(z)_n with its logits z_n = p_n / tau, the pointwise optimum of the gate's
entropy-regularised objective on every subset S of the experts (design, section 2). So the weights of the members that
are left after one has dropped out are the same softmax over fewer logits.

Where experts judge written candidates (`judged`), who is right is the gate's word first. A likelihood says how usual a
text is to a model, and hardly whether it is right: a base model prefers what is bland, and every model what it has
written itself. So a judge's likelihoods per byte are brought to one scale over the candidates of others, its own text
is left out, and what all judges say together can turn the gate's word only where the gate takes the writers for nearly
equal. How much a judge may say follows from outcomes: from how often it was right where it scored given options.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

JUDGES_SAY = 0.5
"""Log-odds that a judge which is always right gives the best candidate, if it prefers it by one standard deviation."""
TIES_SAY = 0.01
"""The same of a judge that nobody has seen judging: it only tells equals apart."""
CHANCE = 0.25
"""How often who knows nothing scores the right option highest: most questions with options have four."""


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


def says_of(right: FloatArray) -> FloatArray:
    """(M,) the log-odds that each judge's view of one standard deviation is worth.

    right: (M,) how often each judge scores the right one of given options highest, from outcomes; NaN where nobody has
    asked it. A judge that is no better than chance only tells equals apart.
    """
    skill = np.clip((np.nan_to_num(right) - CHANCE) / (1 - CHANCE), 0.0, 1.0)
    return np.maximum(JUDGES_SAY * skill, TIES_SAY)


def judged(
    weights: FloatArray, per_byte: FloatArray, wrote: BoolArray, writers: FloatArray, says: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The judges' views (M, C) of C candidates, and the candidates' shares (C,) of the decision; each sums to 1.

    weights: (M,) of the judges, by the gate; they sum to 1. per_byte: (M, C) the log-likelihood per UTF-8 byte.
    wrote: (M, C) True where a judge has written the candidate itself. writers: (C,) the weight of each candidate's
    writers together, which is more than 0 where anybody has written it. says: (M,) what each judge's view is worth, as
    of `says_of`.
    """
    opinions = np.array([_opinion(row, own) for row, own in zip(per_byte, wrote, strict=True)])
    said = _softmax(opinions)
    # A judge that wrote a candidate says nothing of it, and weighs nothing there.
    heard = np.where(wrote, 0.0, weights[:, None])
    total = heard.sum(axis=0)
    told = (heard * says[:, None] * opinions).sum(axis=0)
    mean = np.where(total > 0, told / np.where(total > 0, total, 1.0), 0.0)
    return said, _softmax(np.log(np.maximum(writers, np.finfo(float).tiny)) + mean)


def _opinion(per_byte: FloatArray, own: BoolArray) -> FloatArray:
    """(C,) a judge's view of others' candidates in standard deviations around their mean; 0 for its own.

    It has no view where fewer than two are others', or all of them are equally likely to it.
    """
    opinion = np.zeros(per_byte.size)
    others = per_byte[~own]
    # What cannot be written at all is as unlikely as the least likely of the rest.
    known = others[np.isfinite(others)]
    if known.size == 0:
        return opinion
    others = np.where(np.isfinite(others), others, known.min())
    spread = others.std()
    if others.size > 1 and spread > 0:
        opinion[~own] = (others - others.mean()) / spread
    return opinion
