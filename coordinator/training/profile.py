"""The experts' profile: how well each answers each kind of prompt, by empirical Bayes. PURE.

A mean over few rows is mostly chance, and a gate that believes it chooses whoever was lucky. So each expert's mean
score on a kind is split into three parts: its overall mean, how hard the kind is for all experts, and what is left,
which is the only part that can change who is chosen on that kind. Hardness and rest are each shrunk towards 0 by what
chance alone would explain of their spread (the method of moments; Efron and Morris, "Data analysis using Stein's
estimator and its generalizations", JASA 70, 1975). Where the rows do not show that experts differ by kind, nothing is
left of the rest, and the best expert overall is chosen everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CHARACTERS_PER_TOKEN = 4.0
"""Characters per token, assumed: what outcomes say of an answer's length is its characters."""
_OVERALL_ROWS = 20.0
"""Rows that an expert's mean length over all kinds counts as much as, in its mean on one kind."""
_MIN_VARIANCE = 1e-4
"""Least variance of a score: a few equal scores do not make an expert's next one certain."""
_MARGIN = 0.5
"""Rows of average score that an expert's overall mean is counted with, so that it is never quite 0 or 1."""


def shrunk_profile(scores: FloatArray, labels: Sequence[str], kinds: Sequence[str]) -> FloatArray:
    """Returns the expected score, 0..1, of each expert on each kind of prompt: (K, N).

    scores: (rows, N), NaN where an expert was not run; each expert has a known score. labels: the kind of each row.
    kinds: the K kinds of the profile; one without any known score has the experts' overall means.
    """
    known = ~np.isnan(scores)
    overall = _overall(scores, known)
    place = {kind: k for k, kind in enumerate(kinds)}
    of_row = np.array([place[label] for label in labels], dtype=np.intp)

    # How hard a kind is: the mean over its rows of what the experts that were run lack to their overall means.
    lacking = np.where(known, scores - overall, 0.0)
    run = known.sum(axis=1)
    of_all = lacking.sum(axis=1) / np.maximum(run, 1)
    hardness = _shrunk_means(of_all[:, None], (run > 0)[:, None], of_row, len(kinds))

    # What is left of each expert is what it does better in a row than the experts that were run on it. Of a row with
    # few of them their mean is mostly their own, so the kind's hardness stands for it as far as some were not run.
    share = (run - 1) / max(scores.shape[1] - 1, 1)
    shared = np.where(run > 0, share * of_all + (1 - share) * hardness[of_row, 0], 0.0)
    own = np.where(known, lacking - shared[:, None], 0.0)
    return np.asarray(np.clip(overall + hardness + _shrunk_means(own, known, of_row, len(kinds)), 0.0, 1.0))


def _shrunk_means(
    values: FloatArray, known: npt.NDArray[np.bool_], of_row: npt.NDArray[np.intp], kinds: int
) -> FloatArray:
    """(K, C) the means of columns of values (rows, C) by kind, each shrunk towards 0 by how much of it is chance.

    values: 0 where not known. The variance of the truth is by how much the means' spread exceeds chance, means with
    less chance counting more.
    """
    counts, totals = np.zeros((kinds, values.shape[1])), np.zeros((kinds, values.shape[1]))
    np.add.at(counts, of_row, known)
    np.add.at(totals, of_row, values)
    means = totals / np.maximum(counts, 1)
    around = np.where(known, values - means[of_row], 0.0)
    free = known.sum(axis=0) - (counts > 0).sum(axis=0)
    # With one row for each kind nothing tells chance from truth; then all of it counts as chance.
    spread = np.where(free > 0, (around**2).sum(axis=0) / np.maximum(free, 1), (values**2).sum(axis=0))
    chance = np.maximum(spread, _MIN_VARIANCE) / np.maximum(counts, 1)
    weights = np.where(counts > 0, 1 / chance, 0.0)
    truth = max(0.0, float((weights * (means**2 - chance)).sum() / weights.sum()))
    return np.asarray(means * truth / (truth + chance))


def scoring_profile(
    by_scoring: FloatArray | None, labels: Sequence[str], kinds: Sequence[str], profile: FloatArray
) -> FloatArray | None:
    """Returns the expected score, 0..1, of each expert that scores options on each kind: (K, N); None where nobody did.

    by_scoring: (rows, N), NaN where an expert was not asked so. profile: (K, N) by writing, which stands in for experts
    that were never asked to score.
    """
    if by_scoring is None:
        return None
    asked = ~np.isnan(by_scoring).all(axis=0)
    if not asked.any():
        return None
    found = np.array(profile, dtype=np.float64)
    found[:, asked] = shrunk_profile(by_scoring[:, asked], labels, kinds)
    return found


def length_profile(chars: FloatArray, labels: Sequence[str], kinds: Sequence[str]) -> FloatArray | None:
    """Returns the expected length in tokens of each expert's answer to each kind of prompt: (K, N).

    chars: (rows, N) characters of the answers, NaN where unknown. An expert of which no length is known has NaN. None
    where that holds for all of them.
    """
    known = ~np.isnan(chars)
    if not known.any():
        return None
    tokens = np.where(known, chars, 0.0) / CHARACTERS_PER_TOKEN
    with np.errstate(invalid="ignore"):
        overall = tokens.sum(axis=0) / known.sum(axis=0)
    place = {kind: k for k, kind in enumerate(kinds)}
    of_row = np.array([place[label] for label in labels], dtype=np.intp)
    counts, totals = np.zeros((len(kinds), chars.shape[1])), np.zeros((len(kinds), chars.shape[1]))
    np.add.at(counts, of_row, known)
    np.add.at(totals, of_row, tokens)
    return np.asarray((totals + _OVERALL_ROWS * overall) / (counts + _OVERALL_ROWS))


def _overall(scores: FloatArray, known: npt.NDArray[np.bool_]) -> FloatArray:
    """(N,) the mean of each expert's known scores, with a little of the mean of all."""
    everyone = float(scores[known].mean())
    totals = np.where(known, scores, 0.0).sum(axis=0)
    return np.asarray((totals + _MARGIN * everyone) / (known.sum(axis=0) + _MARGIN), dtype=np.float64)
