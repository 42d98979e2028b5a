"""Set values: what a panel of experts is worth, averaged over calibration prompts.

Each set value is monotone in the panel and has one shape: every expert has a *state* per prompt, and the states of a
panel's members are combined by an associative operation. All but `Listed` are submodular, as their value is the mean
over prompts of a concave function of the combined state. Solvers use only that shape; of `Listed` all panels are tried.

| value | state of expert n on prompt m | combined by | value of a panel |
|---|---|---|---|
| `Coverage` | 1 - p_nm | product | 1 - mean(state) |
| `BestOf` (best-of-set) | p_nm | maximum | mean(state) |
| `Listed` | 2^n | sum | a table of all panels |

Source: design.md, section 2 (set value F). Calibration arrays do not depend on a request: a value is built once per
fleet and category and reused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe2.common.errors import Moe2Error

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
IntArray: TypeAlias = NDArray[np.intp]

MAX_KINDS = 64
"""Most different states of experts that are compared once and for all."""
_COLUMNS = 8
"""Prompts that experts are compared on at a time."""


class CalibrationError(Moe2Error):
    """Calibration figures have a wrong shape, are NaN, or are out of range."""


def calibrated(name: str, figures: ArrayLike, upper: float) -> FloatArray:
    """`figures` as a read-only float64 array of shape (M, N) within [0, upper]. Raises CalibrationError."""
    array = np.array(figures, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise CalibrationError(
            f"{name} must have the shape (prompts, experts) with at least one of each, not {array.shape}."
        )
    bad = ~((array >= 0.0) & (array <= upper) & np.isfinite(array))
    if bad.any():
        prompt, expert = (int(index) for index in np.argwhere(bad)[0])
        raise CalibrationError(
            f"{name}[{prompt}, {expert}] is {array[prompt, expert]}; it must be a number in [0, {upper:g}].",
            remedy="Leave the expert out of the plan, with a reason, while its figures are unknown.",
        )
    array.flags.writeable = False
    return array


def rank_among_twins(twins: IntArray, cost: FloatArray) -> IntArray:
    """(n,) the place of each of n experts among those with the same states, the one with the least `cost` (n,) first.

    twins: (n,) as `SetValue.twins`.
    """
    order = np.lexsort([cost, twins])
    starts = np.flatnonzero(np.append(True, twins[order][1:] != twins[order][:-1]))
    rank = np.empty(len(twins), dtype=np.intp)
    rank[order] = np.arange(len(twins)) - np.repeat(starts, np.diff(np.append(starts, len(twins))))
    return rank


class SetValue(ABC):
    """A monotone value of panels over M calibration prompts and N experts."""

    kind: ClassVar[str]
    adds_nothing_twice: ClassVar[bool] = False
    """True where an expert adds nothing to a panel with one that is worth at least as much on every prompt."""
    crosses_as_product: ClassVar[bool] = False
    """True where `cross` is one matrix product, many times faster than elementwise steps."""
    states: FloatArray
    """(N, M) state of each expert alone on each prompt, read-only, C-contiguous."""
    identity: float
    """State of the empty panel on any prompt."""
    union: np.ufunc
    """Combines the states of disjoint panels."""
    _more_is_better: bool

    def _keep(self, states: FloatArray, identity: float, union: np.ufunc, *, more_is_better: bool) -> None:
        """Set the fields from states (N, M); for constructors of subclasses."""
        # Adding 0 makes -0.0 an ordinary 0, so that equal states are equal byte for byte.
        self.states = np.ascontiguousarray(states) + 0.0
        self.identity = identity
        self.union = union
        self._more_is_better = more_is_better
        self.states.flags.writeable = False

    @cached_property
    def twins(self) -> IntArray:
        """(N,) the first expert whose states are the same as each expert's own; read-only."""
        first: dict[bytes, int] = {}
        found = np.array([first.setdefault(row.tobytes(), n) for n, row in enumerate(self.states)], dtype=np.intp)
        found.flags.writeable = False
        return found

    @cached_property
    def _kinds(self) -> IntArray:
        """(G,) one expert for each of the G different states."""
        return np.unique(self.twins)

    @property
    def is_of_few_kinds(self) -> bool:
        """True where the experts' states are few, so that all of them are compared once and for all."""
        return len(self._kinds) <= MAX_KINDS

    @cached_property
    def _kinds_nowhere_worse(self) -> tuple[IntArray, BoolArray]:
        """(N,) each expert's kind, and (G, G) True at [n, k] where kind n is worth at least as much as kind k."""
        states = self.states[self._kinds]
        worth = states if self._more_is_better else -states
        return np.searchsorted(self._kinds, self.twins), np.array([(row >= worth).all(axis=1) for row in worth])

    def kinds_nowhere_worse(self, others: IntArray, experts: IntArray) -> BoolArray:
        """(E, O) the answers of `nowhere_worse` for each of the `experts` (E,) and each of the `others` (O,).

        It is cheap where `is_of_few_kinds`, and asked only there.
        """
        kind, better = self._kinds_nowhere_worse
        return np.asarray(better.T[kind[experts]][:, kind[others]])

    def nowhere_worse(self, others: IntArray, experts: IntArray) -> BoolArray:
        """(P,) True where `others` (P,) are worth at least as much as `experts` (P,) on every prompt, pair by pair."""
        if self.is_of_few_kinds:
            kind, better = self._kinds_nowhere_worse
            return np.asarray(better[kind[others], kind[experts]])
        found = self.twins[others] == self.twins[experts]
        left = np.flatnonzero(~found)
        for column in range(0, self.prompts, _COLUMNS):
            # Most pairs differ on the first few prompts, and are not looked at again.
            some = slice(column, column + _COLUMNS)
            high, low = self.states[others[left], some], self.states[experts[left], some]
            left = left[(high >= low if self._more_is_better else high <= low).all(axis=1)]
            if len(left) == 0:
                break
        found[left] = True
        return np.asarray(found)

    @cached_property
    def alone(self) -> FloatArray:
        """(N,) the value of each expert alone; read-only."""
        found = self.average(self.states)
        found.flags.writeable = False
        return found

    @cached_property
    def of_all(self) -> float:
        """The value of all experts together."""
        return self.of(np.arange(self.experts))

    @property
    def experts(self) -> int:
        """N, the number of experts."""
        return int(self.states.shape[0])

    @property
    def prompts(self) -> int:
        """M, the number of calibration prompts."""
        return int(self.states.shape[1])

    @abstractmethod
    def average(self, state: FloatArray) -> FloatArray:
        """(...) the value of panels from their states (..., M); that of the empty panel may be -inf."""

    def share(self, gap: float, value: float) -> float:
        """The difference `gap` of two values as a share of `value`; inf where `value` is 0."""
        return gap / abs(value) if value else np.inf

    def combine(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """The state of the union of two disjoint panels; shapes broadcast."""
        return np.asarray(self.union(left, right))

    def empty_state(self) -> FloatArray:
        """(M,) the state of the panel without members."""
        return np.full(self.prompts, self.identity)

    def state_of(self, members: IntArray | list[int]) -> FloatArray:
        """(M,) the state of a panel given by its members' indices, combined in that order."""
        if len(members) == 0:
            return self.empty_state()
        return np.asarray(self.union.reduce(self.states[members], axis=0))

    def of(self, members: IntArray | list[int]) -> float:
        """The value of one panel given by its members' indices."""
        return float(self.average(self.state_of(members)))

    def cross(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """(A, B) the values of all unions of a panel in `left` (A, M) with a disjoint one in `right` (B, M)."""
        values = np.empty((left.shape[0], right.shape[0]))
        for row, state in enumerate(left):
            values[row] = self.average(self.combine(state, right))
        return values


class Coverage(SetValue):
    """The chance that at least one member answers well, members taken as independent: E[1 - prod(1 - p_n)]."""

    kind = "coverage"
    crosses_as_product = True

    def __init__(self, probabilities: ArrayLike) -> None:
        """`probabilities` (M, N) in [0, 1]. Raises CalibrationError."""
        survival = 1.0 - calibrated("probabilities", probabilities, 1.0).T
        self._keep(survival, 1.0, np.multiply, more_is_better=False)

    def average(self, state: FloatArray) -> FloatArray:
        return np.asarray(1.0 - state.mean(axis=-1))

    def cross(self, left: FloatArray, right: FloatArray) -> FloatArray:
        # Survival of a union is the product of survivals, so all pairs at once are one matrix product.
        return np.asarray(1.0 - (left @ right.T) / self.prompts)


class BestOf(SetValue):
    """The expected quality of the best member, chosen per prompt by a perfect judge: E[max p_n]."""

    kind = "best_of"
    adds_nothing_twice = True

    def __init__(self, probabilities: ArrayLike) -> None:
        """`probabilities` (M, N) in [0, 1]. Raises CalibrationError."""
        self._keep(calibrated("probabilities", probabilities, 1.0).T, 0.0, np.maximum, more_is_better=True)

    def average(self, state: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduce(state, axis=-1) / self.prompts)


class Listed(SetValue):
    """The values of all panels of a few experts, as a table; experts beside them add nothing."""

    kind = "listed"

    def __init__(self, experts: int, places: Sequence[int], table: ArrayLike) -> None:
        """Build the value from a table (2^n,) of the panels of the experts at n `places`; bit i stands for `places[i]`.

        experts: N, the number of all experts. Each panel gets the value of its best part, so that more members never
        lower it. Raises CalibrationError.
        """
        worth = calibrated("values", np.asarray(table, dtype=np.float64)[None], 1.0)[0].copy()
        if len(worth) != 1 << len(places):
            raise CalibrationError(f"{len(worth)} values are not one for each panel of {len(places)} experts.")
        every = np.arange(len(worth))
        for bit in range(len(places)):
            joined = every[every >> bit & 1 == 1]
            # In ascending order of bits, so that in the end each panel has seen all its parts.
            worth[joined] = np.maximum(worth[joined], worth[joined ^ (1 << bit)])
        worth.flags.writeable = False
        self._worth = worth
        states = np.zeros((experts, 1))
        states[list(places), 0] = 2.0 ** np.arange(len(places))
        self._keep(states, 0.0, np.add, more_is_better=True)

    def nowhere_worse(self, others: IntArray, experts: IntArray) -> BoolArray:
        # A larger bit is no larger worth: nobody is known to replace another.
        return np.asarray(others == experts)

    def average(self, state: FloatArray) -> FloatArray:
        # The sum of panels that are not disjoint is no panel's, and may be too large; nobody uses its value.
        return np.asarray(self._worth[np.minimum(state[..., 0].astype(np.int64), len(self._worth) - 1)])
