"""Judging of written candidates by the experts that wrote them: who is right is the gate's word first. PURE.

A likelihood says how usual a text is to a model, and hardly whether it is right: a base model prefers what is bland,
and every model what it has written itself. So a judge's likelihoods per byte are brought to one scale over the
candidates of others, its own text is left out, and what all judges say together can turn the gate's word only where the
gate takes the writers for nearly equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe2.coordinator.choosing.mixture import FloatArray

BoolArray = npt.NDArray[np.bool_]

JUDGES_SAY = 0.5
"""Log-odds that the judges give the best candidate, if all of them prefer it by one standard deviation."""
TIES_SAY = 0.01
"""The same where the gate does not know all members from outcomes: then judges only tell equals apart."""


def judged(
    weights: FloatArray, per_byte: FloatArray, wrote: BoolArray, writers: FloatArray, *, say: float = JUDGES_SAY
) -> tuple[FloatArray, FloatArray]:
    """The judges' views (M, C) of C candidates, and the candidates' shares (C,) of the decision; each sums to 1.

    weights: (M,) of the judges, by the gate; they sum to 1. per_byte: (M, C) the log-likelihood per UTF-8 byte.
    wrote: (M, C) True where a judge has written the candidate itself. writers: (C,) the weight of each candidate's
    writers together, which is more than 0 where anybody has written it. say: log-odds that the judges give together.
    """
    opinions = np.array([_opinion(row, own) for row, own in zip(per_byte, wrote, strict=True)])
    said = _softmax(opinions)
    # A judge that wrote a candidate says nothing of it, and weighs nothing there.
    heard = np.where(wrote, 0.0, weights[:, None])
    total = heard.sum(axis=0)
    mean = np.where(total > 0, (heard * opinions).sum(axis=0) / np.where(total > 0, total, 1.0), 0.0)
    return said, _softmax(np.log(np.maximum(writers, np.finfo(float).tiny)) + say * mean)


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


def _softmax(scores: FloatArray) -> FloatArray:
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))
