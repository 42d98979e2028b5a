"""The set values: what a panel of experts is worth, averaged over calibration prompts.

Each is monotone and submodular in the panel and has one shape: every expert has a *state* per prompt, the
states of a panel's members are combined by an associative operation, and the value is the mean over prompts
of a concave function of the combined state. Solvers use only that shape.

| value | state of expert n on prompt m | combined by | value of a panel |
|---|---|---|---|
| coverage | 1 - p_nm | product | 1 - mean(state) |
| best of S | p_nm | maximum | mean(state) |

Source: design.md, section 2 (set value F). Calibration arrays do not depend on a request: build a value once
per fleet and category and reuse it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe2.common.errors import Moe2Error

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
IntArray: TypeAlias = NDArray[np.intp]


class CalibrationError(Moe2Error):
    """Calibration figures that cannot be planned with: wrong shape, NaN, or out of range."""


def calibrated(name: str, figures: ArrayLike, upper: float) -> FloatArray:
    """`figures` as a read-only float64 array of shape (M, N) within [0, upper], or CalibrationError."""
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


class SetValue(ABC):
    """A monotone value of panels over M calibration prompts and N experts.

    states: (N, M) state of each expert alone on each prompt, read-only, C-contiguous.
    identity: state of the empty panel on any prompt. union: the ufunc that combines the states of disjoint
    panels. nowhere_worse: (N, N) bool; [n, k] says that expert k is worth at least as much as n on every
    prompt.
    """

    kind: ClassVar[str]
    crosses_as_product: ClassVar[bool] = False
    """`cross` is one matrix product, many times faster than elementwise steps."""
    states: FloatArray
    identity: float
    union: np.ufunc
    nowhere_worse: BoolArray

    def _keep(self, states: FloatArray, identity: float, union: np.ufunc, *, more_is_better: bool) -> None:
        """Set the fields from states (N, M)."""
        self.states = np.ascontiguousarray(states)
        self.identity = identity
        self.union = union
        worth = self.states if more_is_better else -self.states
        self.nowhere_worse = np.array([(worth >= row).all(axis=1) for row in worth])
        self.states.flags.writeable = False
        self.nowhere_worse.flags.writeable = False

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
        """Value of panels from their states (..., M); shape (...). That of no expert may be -inf."""

    def share(self, gap: float, value: float) -> float:
        """A difference of values as a share of `value`; inf where that is 0."""
        return gap / abs(value) if value else np.inf

    def combine(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """State of the union of two disjoint panels; shapes broadcast."""
        return np.asarray(self.union(left, right))

    def empty_state(self) -> FloatArray:
        """State of the panel without members, shape (M,)."""
        return np.full(self.prompts, self.identity)

    def state_of(self, members: IntArray | list[int]) -> FloatArray:
        """State of a panel given by the indices of its members, combined in that order; shape (M,)."""
        if len(members) == 0:
            return self.empty_state()
        return np.asarray(self.union.reduce(self.states[members], axis=0))

    def of(self, members: IntArray | list[int]) -> float:
        """Value of one panel given by the indices of its members."""
        return float(self.average(self.state_of(members)))

    def cross(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """Values of all unions of a panel in `left` (A, M) with a disjoint one in `right` (B, M); (A, B)."""
        values = np.empty((left.shape[0], right.shape[0]))
        for row, state in enumerate(left):
            values[row] = self.average(self.combine(state, right))
        return values


class Coverage(SetValue):
    """Chance that at least one member answers well, members taken as independent: E[1 - prod(1 - p_n)]."""

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
    """Expected quality of the best member, chosen per prompt by a perfect judge: E[max p_n]."""

    kind = "best_of"

    def __init__(self, probabilities: ArrayLike) -> None:
        """`probabilities` (M, N) in [0, 1]. Raises CalibrationError."""
        self._keep(calibrated("probabilities", probabilities, 1.0).T, 0.0, np.maximum, more_is_better=True)

    def average(self, state: FloatArray) -> FloatArray:
        return np.asarray(state.mean(axis=-1))
