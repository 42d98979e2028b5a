"""What outcomes with answers teach about votes: the weights of experts' votes, and the record to judge sets by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe2.coordinator.answers.normal_form import normalised
from moe2.coordinator.gate.calibration import log_odds_of
from moe2.coordinator.gate.votes import (
    MAX_VOTERS,
    NO_ANSWER,
    NOT_ASKED,
    PRIOR_BASE,
    PRIOR_OTHER,
    PRIOR_SLOPE,
    RIGHT,
    CodeArray,
    VoteRecord,
)
from moe2.coordinator.training.outcomes import Outcomes

FloatArray = npt.NDArray[np.float64]

MAX_RECORDED = 4096
"""Most prompts in a record: votes of sets are replayed on them whenever the fleet's models change."""
MIN_ROWS = 10
"""With fewer prompts that two experts have answered, nothing is learned about votes."""
_RIGHT_FROM = 0.5
"""A score from here on counts as a right answer."""
_SHRINKAGE = 20.0
"""How many prompts the prior weights count as much as."""
_LONGEST = 20.0
"""An answer counts as at most so many times as long as the expert's mean on the kind."""
_NEWTON_STEPS = 30
_SETS_PER_ROW, _SMALLEST_SET = 2, 2


def vote_record(
    train: Outcomes, kinds: Sequence[str], kind_of: Sequence[str], profile: FloatArray
) -> VoteRecord | None:
    """The record of the experts' votes on train rows; None where too few rows hold answers.

    kinds: names of the gate's kinds of prompts. kind_of: each row's kind. profile: (K, N) mean score of each expert on
    each kind.
    """
    codes = answer_codes(train)
    if codes is None:
        return None
    place = {name: number for number, name in enumerate(kinds)}
    numbers = np.array([place.get(name, -1) for name in kind_of])
    rows = np.flatnonzero(((codes != NOT_ASKED).sum(axis=1) >= 2) & (numbers >= 0))
    if rows.size < MIN_ROWS:
        return None
    log_odds = log_odds_of(profile, 1e-3)[numbers[rows]]
    base, slope, other = fitted_weights(*_in_random_sets(codes[rows], log_odds))
    if rows.size > MAX_RECORDED:
        # Evenly spread, so that equal outcomes give an equal record.
        rows = rows[np.linspace(0, rows.size - 1, MAX_RECORDED).astype(np.int64)]
    return VoteRecord(
        base=base,
        slope=slope,
        other=other,
        codes=codes[rows],
        kinds=numbers[rows].astype(np.int16),
        lengths=_relative_lengths(train.chars[rows], numbers[rows], len(kinds)),
    )


def _relative_lengths(chars: FloatArray, kinds: npt.NDArray[np.int64], count: int) -> FloatArray | None:
    """(R, N) the length of each answer relative to the expert's mean on the kind; 1 where unknown. None: nowhere known.

    chars: (R, N) characters, NaN where unknown. kinds: (R,) the place of each row's kind among `count`.
    """
    known = ~np.isnan(chars)
    if not known.any():
        return None
    totals, answers = np.zeros((count, chars.shape[1])), np.zeros((count, chars.shape[1]))
    np.add.at(totals, kinds, np.where(known, chars, 0.0))
    np.add.at(answers, kinds, known)
    means = (totals / np.maximum(answers, 1))[kinds]
    # Where all answers are empty, each is as long as the mean.
    usable = known & (means > 0)
    relative = np.where(usable, np.where(known, chars, 0.0) / np.where(usable, means, 1.0), 1.0)
    return np.minimum(relative, _LONGEST)


def answer_codes(outcomes: Outcomes) -> CodeArray | None:
    """(rows, N) what each expert answered, as codes of `gate.votes`; None where the outcomes hold no answers.

    An expert without any answer in the outcomes counts as not asked. Where somebody is right without an answer, answers
    were not recorded, and whoever has none in that row counts as not asked.
    """
    if outcomes.answers is None:
        return None
    codes: CodeArray = np.full(outcomes.scores.shape, NOT_ASKED, dtype=np.int16)
    told = [any(answers[n] for answers in outcomes.answers) for n in range(len(outcomes.experts))]
    for row, answers in enumerate(outcomes.answers):
        wrong: dict[str, int] = {}
        is_recorded = not any(
            told[n] and not answer and outcomes.scores[row, n] >= _RIGHT_FROM for n, answer in enumerate(answers)
        )
        for n, answer in enumerate(answers):
            score = outcomes.scores[row, n]
            if not told[n] or np.isnan(score) or not (answer or is_recorded):
                continue
            if score >= _RIGHT_FROM:
                codes[row, n] = RIGHT
            elif not answer:
                codes[row, n] = NO_ANSWER
            else:
                codes[row, n] = wrong.setdefault(normalised(answer) or answer.strip(), len(wrong) + 1)
    return codes if any(told) else None


def _in_random_sets(codes: CodeArray, log_odds: FloatArray) -> tuple[CodeArray, FloatArray]:
    """The rows several times over, each time with random sets of the experts alone, the same at every call.

    Weights that are learned from votes of everybody would be too low for the few that vote in the end.
    """
    experts = codes.shape[1]
    largest = min(MAX_VOTERS, experts)
    if experts <= _SMALLEST_SET:
        return codes, log_odds
    random = np.random.default_rng(0)
    parts = []
    for _ in range(_SETS_PER_ROW):
        rank = random.random(codes.shape).argsort(axis=1).argsort(axis=1)
        size = random.integers(_SMALLEST_SET, largest + 1, len(codes))
        parts.append(np.where(rank < size[:, None], codes, NOT_ASKED).astype(np.int16))
    return np.concatenate(parts), np.tile(log_odds, (_SETS_PER_ROW, 1))


def fitted_weights(codes: CodeArray, log_odds: FloatArray) -> tuple[FloatArray, float, float]:
    """The base (N,), slope and other of votes with the least log loss, drawn to the prior weights.

    codes, log_odds: (R, N). The likelihood of the right answer is a softmax over the answers given and something else,
    so that the loss is convex; it is minimised by damped Newton steps.
    """
    design, truth = _design(codes, log_odds)
    experts = codes.shape[1]
    prior = np.array([*[PRIOR_BASE] * experts, PRIOR_SLOPE, PRIOR_OTHER])
    penalty = np.full(prior.size, _SHRINKAGE)
    theta = prior.copy()
    value = _loss(design, truth, theta, prior, penalty)[0]
    for _ in range(_NEWTON_STEPS):
        _, gradient, curvature = _loss(design, truth, theta, prior, penalty)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while scale > 1e-6 and (following := _loss(design, truth, theta - scale * step, prior, penalty)[0]) > value:
            scale *= 0.5
        theta = theta - scale * step
        if value - following < 1e-9 * max(1.0, abs(value)):
            break
        value = following
    return theta[:experts], float(theta[experts]), float(theta[experts + 1])


def _design(codes: CodeArray, log_odds: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(R, C + 1, N + 2) what each answer's sum is made of, with NaN for answers that nobody gave; (R,) the right place.

    The last place stands for an answer that nobody gave.
    """
    rows, experts = codes.shape
    answers = int(codes.max(initial=0)) + 1
    design = np.zeros((rows, answers + 1, experts + 2))
    given = np.zeros((rows, answers + 1), dtype=np.bool_)
    for n in range(experts):
        gave = np.flatnonzero(codes[:, n] >= 0)
        design[gave, codes[gave, n], n] += 1.0
        design[gave, codes[gave, n], experts] += log_odds[gave, n]
        given[gave, codes[gave, n]] = True
    given[:, answers] = True
    design[:, answers, experts + 1] = 1.0
    design[~given] = np.nan
    return design, np.where(given[:, RIGHT], RIGHT, answers)


def _loss(
    design: FloatArray, truth: npt.NDArray[np.int64], theta: FloatArray, prior: FloatArray, penalty: FloatArray
) -> tuple[float, FloatArray, FloatArray]:
    """The log loss plus penalty / 2 * (theta - prior)**2, its gradient and its curvature."""
    present = ~np.isnan(design[:, :, -1])
    parts = np.nan_to_num(design)
    sums = np.where(present, parts @ theta, -np.inf)
    most = sums.max(axis=1, keepdims=True)
    shares = np.exp(sums - most)
    totals = shares.sum(axis=1, keepdims=True)
    shares /= totals
    every = np.arange(len(truth))
    loss = float((np.log(totals[:, 0]) + most[:, 0] - sums[every, truth]).sum())
    mean = np.einsum("rc,rcd->rd", shares, parts)
    gradient = (mean - parts[every, truth]).sum(axis=0)
    curvature = np.einsum("rc,rcd,rce->de", shares, parts, parts, optimize=True) - mean.T @ mean
    away = theta - prior
    return (
        loss + 0.5 * float(penalty @ away**2),
        gradient + penalty * away,
        curvature + np.diag(penalty),
    )
