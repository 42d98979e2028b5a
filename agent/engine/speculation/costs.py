"""PURE: what a step of the model takes in seconds, by the number of tokens in its batch, learned from steps.

What a batch of some size takes is what was measured at load, times three factors: how fast the model is now, how much
dearer larger batches are than they were then (a full cache makes each token of a batch dearer), and what this size
alone takes beside others. One measured step tells of all three together; a Kalman filter splits it among them by how
uncertain each still is, and knows how uncertain the ratio of two sizes is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import log

import numpy as np
import numpy.typing as npt

SIZES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 13, 16, 17, 24, 32, 48, 64)
"""Batch sizes that are learned; what lies between is interpolated. llama.cpp takes rows of many quantizations in fours
and what is left one by one: 9 tokens were decoded in the time of 11, not in one between those of 8 and of 12."""
_NOISE = 0.06
"""Standard deviation of one step's seconds, as all of these in natural logarithms."""
_MAX_SURPRISE = 0.25
"""A step that is further off was held up by something else, and counts no more than this."""
_SPEED, _SPEED_DRIFT = 0.2, 0.01
"""How uncertain the model's speed is at first, and how much it changes with a step."""
_SLOPE = 0.2
"""How uncertain it is by how much a batch of 8 tokens is dearer than one of a single token, where that was measured."""
_OWN = 0.04
"""How uncertain it is what a size takes beside others, where that was measured."""
_UNMEASURED = 2.0
"""Times as uncertain are both where nothing was measured."""
_MEMORY = 0.999
"""Part of what was learned of sizes that is left after a step in which it was not seen: what was measured in a bad
moment is tried again some day."""

_Vector = npt.NDArray[np.float64]


def _between(measured_s: Mapping[int, float], size: int) -> float:
    """Seconds of a size from measured ones, of which there is at least that of 1: on the line between its neighbours,
    or beyond the last one."""
    if size in measured_s:
        return measured_s[size]
    lower = max(known for known in measured_s if known < size)
    upper = min((known for known in measured_s if known > size), default=None)
    if upper is None:
        per_token_s = (measured_s[lower] - measured_s[1]) / (lower - 1) if lower > 1 else measured_s[1]
        return measured_s[lower] + max(per_token_s, 0.0) * (size - lower)
    part = (size - lower) / (upper - lower)
    return measured_s[lower] + part * (measured_s[upper] - measured_s[lower])


def _factors_of(size: int) -> _Vector:
    """How much each factor counts for a batch of so many tokens: speed, slope, and each learned size's own."""
    row = np.zeros(2 + len(SIZES))
    row[:2] = 1.0, log(size) / log(8)
    lower = bisect_right(SIZES, size) - 1
    row[2 + lower] = 1.0
    if SIZES[lower] != size:
        part = (size - SIZES[lower]) / (SIZES[lower + 1] - SIZES[lower])
        row[2 + lower], row[3 + lower] = 1 - part, part
    return row


_FACTORS = np.array([_factors_of(size) for size in range(1, SIZES[-1] + 1)])
"""Shape (largest size, factors)."""


class StepCosts:
    """Seconds of a step by the number of tokens in it."""

    def __init__(self, *, step_s: float, token_s: float, measured_s: Mapping[int, float] | None = None) -> None:
        """step_s: of a batch of one token. token_s: of each further one, as in a large batch. measured_s: of a batch by
        its tokens, where that was measured beside a batch of one; other sizes are taken from these."""
        sizes = range(1, SIZES[-1] + 1)
        first_s = [step_s + token_s * (size - 1) for size in sizes]
        known = measured_s or {}
        if one_s := known.get(1):
            # What counts is how much longer each took than one: all were measured in the same moment.
            first_s = [step_s * _between(known, size) / one_s for size in sizes]
        self._first = np.log(np.maximum(first_s, 1e-12))
        """Logarithms of seconds, as the next two."""
        self._learned = np.zeros(2 + len(SIZES))
        doubt = _SLOPE if len(known) > 1 else _UNMEASURED * _SLOPE
        own = [_OWN if size in known else _UNMEASURED * _OWN for size in SIZES]
        at_first = np.square([_SPEED, doubt, *own])
        self._spread = np.diag(at_first)
        """Covariance of what was learned."""
        self._memory = np.array([1.0] + [_MEMORY] * (1 + len(SIZES)))
        drift = at_first * (1 - self._memory**2)
        drift[0] = _SPEED_DRIFT**2
        self._drift = np.diag(drift)
        self._table: list[float] = []
        self._doubts: dict[int, _Vector] = {}
        self._tabulate()

    def of(self, tokens: int) -> float:
        """Seconds of a step with so many tokens, of which there is at least one."""
        return _beyond(self._table, tokens)

    def cautious(self, plain: int) -> Callable[[int], float]:
        """The same, but what a batch takes beyond one of `plain` tokens is taken for as much more as is uncertain of
        it, by one standard deviation."""
        plain = min(plain, SIZES[-1])
        table = [0.0, *(np.array(self._table[1:]) * np.exp(self._doubt(plain)))]
        return lambda tokens: _beyond(table, tokens)

    def doubt(self, tokens: int, plain: int) -> float:
        """How uncertain the ratio of what both batches take is: the standard deviation of its natural logarithm."""
        return float(self._doubt(min(plain, SIZES[-1]))[min(tokens, SIZES[-1]) - 1])

    def learn(self, tokens: int, seconds: float) -> None:
        """A step with so many tokens took so long."""
        if seconds <= 0 or tokens < 1 or tokens > SIZES[-1]:
            return
        row = _FACTORS[tokens - 1]
        self._learned *= self._memory
        self._spread *= np.outer(self._memory, self._memory)
        self._spread += self._drift
        surprise = log(seconds) - float(self._first[tokens - 1] + row @ self._learned)
        surprise = min(max(surprise, -_MAX_SURPRISE), _MAX_SURPRISE)
        shared = self._spread @ row
        gain = shared / (float(row @ shared) + _NOISE**2)
        self._learned += gain * surprise
        self._spread -= np.outer(gain, shared)
        self._tabulate()

    def _tabulate(self) -> None:
        """Seconds of steps with 0, 1, 2, … tokens, up to the largest size that is learned."""
        # Not forced to rise: with some quantizations llama.cpp takes 8 tokens faster than 6.
        self._table = [0.0, *np.exp(self._first + _FACTORS @ self._learned).tolist()]
        self._doubts.clear()

    def _doubt(self, plain: int) -> _Vector:
        """The doubts of all sizes beside that of so many tokens."""
        if plain not in self._doubts:
            beside = _FACTORS - _FACTORS[plain - 1]
            spread = np.einsum("ij,ij->i", beside @ self._spread, beside)
            self._doubts[plain] = np.sqrt(np.maximum(spread, 0.0))
        return self._doubts[plain]


def _beyond(table: list[float], tokens: int) -> float:
    """What a table of seconds by tokens says, or the line through its ends beyond them."""
    if tokens < len(table):
        return table[tokens]
    return table[-1] + (table[-1] - table[1]) / (SIZES[-1] - 1) * (tokens - SIZES[-1])
