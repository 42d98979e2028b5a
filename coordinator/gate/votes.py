"""What is known of how experts' answers agree: weights of votes, and recorded answers to judge sets by. PURE.

A vote adds up weights. Expert n's weight on one prompt is `base_n + slope * log-odds(p_n)`, with p_n its probability of
answering well; never below 0. The share of a vote's answer a, among the answers that were given and something else, is

    P(a | answers) = exp(sum of the weights for a) / (sum over given answers of exp(their sums) + exp(other))

This is a softmax regression on who said what. Base, slope and other are learned from outcomes with answers (the log
loss is convex in them), which makes the share a calibrated probability, and takes weight from experts that err
together: two that always agree get half of it each. Experts without such outcomes have the constants below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.calibration import log_odds_of

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int16]

RIGHT, NO_ANSWER, NOT_ASKED = 0, -1, -2
"""Codes of recorded answers; wrong answers to a prompt are numbered from 1, equal ones alike."""
PRIOR_BASE, PRIOR_SLOPE, PRIOR_OTHER = 0.8, 0.3, 1.0
"""Weights of experts without outcomes: rounded from what four models of 4 to 8 billion parameters learn on MMLU-Pro."""
ERROR_CORRELATION = 0.55
"""Tetrachoric correlation of two models' being right; ten of up to 8 billion parameters on MMLU-Pro have 0.56."""
SAME_ERROR = 0.6
"""How often two models that are both wrong say the same.

Of the same ten models it is 0.34 over all questions, and more on hard ones. With 0.6 for all, made-up votes of four
members gain what recorded ones do (4.3 points; 4.4 recorded)."""


@dataclass(frozen=True)
class VoteRecord:
    """What a gate's outcomes say of its N experts' votes. Raises ValueError where the arrays do not fit together."""

    base: FloatArray
    """(N,)"""
    slope: float
    other: float
    """What counts for an answer that nobody gave."""
    codes: CodeArray
    """(R, N) what each expert answered on R recorded prompts: RIGHT, NO_ANSWER, NOT_ASKED, or which wrong answer."""
    kinds: CodeArray
    """(R,) the place of each prompt's kind among the gate's kinds."""
    lengths: FloatArray | None = None
    """(R, N) length of each answer relative to the expert's mean on the kind, 1 where unknown; None where all are."""

    def __post_init__(self) -> None:
        rows, experts = self.codes.shape if self.codes.ndim == 2 else (-1, -1)
        if self.base.shape != (experts,) or self.kinds.shape != (rows,):
            raise ValueError(f"votes of shapes {self.base.shape}, {self.codes.shape} and {self.kinds.shape}")
        if not (np.isfinite(self.base).all() and np.isfinite(self.slope) and np.isfinite(self.other)):
            raise ValueError("weights of votes that are not finite")
        lengths = np.ones((rows, experts)) if self.lengths is None else self.lengths
        if lengths.shape != self.codes.shape or not np.isfinite(lengths).all() or (lengths < 0).any():
            raise ValueError("lengths of recorded answers that are no lengths, or not one for each answer")
        if self.codes.size and (self.codes.min() < NOT_ASKED or self.codes.max() > experts):
            raise ValueError("recorded answers that are out of range")

    @classmethod
    def empty(cls, experts: int) -> VoteRecord:
        """The record of experts of which no answers are known."""
        return cls(
            base=np.full(experts, PRIOR_BASE),
            slope=PRIOR_SLOPE,
            other=PRIOR_OTHER,
            codes=np.empty((0, experts), dtype=np.int16),
            kinds=np.empty(0, dtype=np.int16),
        )

    def weights(self, probabilities: FloatArray) -> FloatArray:
        """(..., N) the weights of the experts' votes, from their probabilities (..., N) of answering well."""
        return np.maximum(self.base + self.slope * log_odds_of(probabilities, 1e-3), 0.0)

    def of_fleet(self, columns: tuple[int | None, ...]) -> VoteRecord:
        """The record of a fleet's experts. columns: the place of each among the gate's; None without outcomes."""
        rows = self.codes.shape[0]
        base = [PRIOR_BASE if column is None else float(self.base[column]) for column in columns]
        unknown: CodeArray = np.full(rows, NOT_ASKED, dtype=np.int16)
        codes = [unknown if column is None else self.codes[:, column] for column in columns]
        lengths = None
        if self.lengths is not None:
            usual = np.ones(rows)
            own = [usual if column is None else self.lengths[:, column] for column in columns]
            lengths = np.stack(own, axis=1)
        return VoteRecord(
            base=np.array(base),
            slope=self.slope,
            other=self.other,
            codes=_renumbered(np.stack(codes, axis=1)),
            kinds=self.kinds,
            lengths=lengths,
        )


def _renumbered(codes: CodeArray) -> CodeArray:
    """(R, N) the same answers, with the wrong ones numbered by the first expert that gave them."""
    found = codes.copy()
    for n in range(codes.shape[1] - 1, -1, -1):
        same = (codes == codes[:, n : n + 1]) & (codes > RIGHT)
        found[same] = n + 1
    return found


def assumed_codes(probabilities: FloatArray, rows: int) -> CodeArray:
    """(rows, N) made-up answers of experts that are right with the given probabilities (N,), the same at every call.

    Being right correlates by `ERROR_CORRELATION`, as some prompts are harder for all, and wrong experts say the same
    wrong answer as often as `SAME_ERROR` says.
    """
    experts = probabilities.size
    hard = _normal_points(rows, 0)
    codes = np.empty((rows, experts), dtype=np.int16)
    agreeing = np.sqrt(SAME_ERROR)
    for n in range(experts):
        ability = np.sqrt(ERROR_CORRELATION) * hard + np.sqrt(1 - ERROR_CORRELATION) * _normal_points(rows, 2 * n + 1)
        right = ability < _threshold(ability, float(probabilities[n]))
        # The common wrong answer is number 1; whoever errs alone has a number of its own.
        codes[:, n] = np.where(right, RIGHT, np.where(_points(rows, 2 * n + 2) < agreeing, 1, min(n + 2, experts)))
    return codes


def _threshold(values: FloatArray, share: float) -> float:
    """The value below which the given share of the values lies."""
    return float(np.quantile(values, min(max(share, 0.0), 1.0)))


def _points(rows: int, dimension: int) -> FloatArray:
    """(rows,) evenly spread points of (0, 1), in another order for every dimension: a Weyl sequence."""
    step = np.sqrt(_PRIMES[dimension % len(_PRIMES)]) * (1 + dimension // len(_PRIMES))
    return np.asarray((0.5 + np.arange(rows) * step) % 1.0)


def _normal_points(rows: int, dimension: int) -> FloatArray:
    """(rows,) evenly spread points of a logistic distribution with variance 1, which is close to a normal one."""
    return np.asarray(log_odds_of(np.clip(_points(rows, dimension), 1e-6, 1 - 1e-6), 1e-6) * np.sqrt(3) / np.pi)


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)
