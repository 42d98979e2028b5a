"""The idle baseline: what the device draws when nobody asks, with its models loaded or without. PURE.

The median of at least ten idle seconds, kept apart per condition (power mode and loaded models). The minimum
would undershoot; a single average would be pulled up by the seconds in which a GPU still holds its boost
clocks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median, quantiles

Condition = tuple[str | None, frozenset[str]]
"""Power mode (None if unknown) and the names of the loaded models."""

_MIN_SLICE_S = 0.5
"""Shorter idle slices rest on too few samples to vote in a median."""


_MIN_SLICES_FOR_SPREAD = 4


@dataclass(frozen=True, slots=True)
class IdleFigure:
    """The idle power of a device under one condition, in W, with what it rests on.

    spread_w: half the distance between the quartiles; None of too few slices. until_s: the end of the last slice.
    """

    power_w: float
    spread_w: float | None
    measured_s: float
    until_s: float


class IdleBaseline:
    """Idle power per condition, refreshed whenever the device idles.

    min_idle_s: idle time needed before there is a figure.
    settle_s: time after the last request that does not count yet; an RTX 4090 draws 68 W instead of 52 W for
    two seconds after load (trace 4090_TR of Yang et al., arXiv 2312.02741).
    memory_s: idle time that the median looks back on.
    """

    def __init__(self, *, min_idle_s: float = 10.0, settle_s: float = 3.0, memory_s: float = 60.0) -> None:
        self._min_idle_s = min_idle_s
        self._settle_s = settle_s
        self._memory_s = memory_s
        self._condition: Condition = (None, frozenset())
        self._slices: dict[Condition, deque[tuple[float, float]]] = {}
        self._quiet_since_s: float | None = None
        self._figures: dict[Condition, IdleFigure] = {}

    @property
    def idle_w(self) -> float | None:
        """Idle power in W under the present condition; None until it was measured."""
        figure = self._figures.get(self._condition)
        return figure.power_w if figure else None

    @property
    def figures(self) -> dict[Condition, IdleFigure]:
        """What was measured, by condition."""
        return dict(self._figures)

    def set_condition(self, condition: Condition) -> None:
        """Take in that the power mode or the loaded models changed. Idle time so far does not count for the new one."""
        if condition != self._condition:
            self._condition = condition
            self._quiet_since_s = None

    def forget(self, model: str) -> None:
        """Forget all conditions in which this model was loaded: its name stands for another one now."""
        self._slices = {key: one for key, one in self._slices.items() if model not in key[1]}
        self._figures = {key: one for key, one in self._figures.items() if model not in key[1]}
        if model in self._condition[1]:
            self._quiet_since_s = None

    def was_busy(self) -> None:
        """Take in that a request was active: idling begins anew."""
        self._quiet_since_s = None

    def was_idle(self, start_s: float, end_s: float, joules: float) -> None:
        """Take in idle time from `start_s` to `end_s`, fully covered, in which the device used `joules`."""
        if self._quiet_since_s is None:
            self._quiet_since_s = start_s
        if start_s - self._quiet_since_s < self._settle_s or end_s - start_s < _MIN_SLICE_S:
            return
        slices = self._slices.setdefault(self._condition, deque())
        slices.append((end_s - start_s, joules / (end_s - start_s)))
        while sum(length_s for length_s, _ in slices) - slices[0][0] >= self._memory_s:
            slices.popleft()
        measured_s = sum(length_s for length_s, _ in slices)
        if measured_s < self._min_idle_s:
            return
        powers_w = [power_w for _, power_w in slices]
        spread_w = None
        if len(powers_w) >= _MIN_SLICES_FOR_SPREAD:
            low_w, _, high_w = quantiles(powers_w, n=4)
            spread_w = (high_w - low_w) / 2
        self._figures[self._condition] = IdleFigure(median(powers_w), spread_w, measured_s, end_s)
