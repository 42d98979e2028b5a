"""The idle baseline: what the device draws when its models are loaded and nobody asks. PURE.

The median of at least ten idle seconds, kept apart per condition (power mode and loaded models). The minimum
would undershoot; a single average would be pulled up by the seconds in which a GPU still holds its boost
clocks.
"""

from __future__ import annotations

from collections import deque
from statistics import median

Condition = tuple[str | None, frozenset[str]]
"""Power mode (None if unknown) and the names of the loaded models."""

_MIN_SLICE_S = 0.5
"""Shorter idle slices rest on too few samples to vote in a median."""


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
        self._idle_w: dict[Condition, float] = {}

    @property
    def idle_w(self) -> float | None:
        """Idle power in W under the present condition; None until it was measured."""
        return self._idle_w.get(self._condition)

    def set_condition(self, condition: Condition) -> None:
        """The power mode or the set of loaded models changed. Idle time so far does not count for the new
        one."""
        if condition != self._condition:
            self._condition = condition
            self._quiet_since_s = None

    def was_busy(self) -> None:
        """A request was active: idling begins anew."""
        self._quiet_since_s = None

    def was_idle(self, start_s: float, end_s: float, joules: float) -> None:
        """No request was active from `start_s` to `end_s`, during which the device used `joules`, fully
        covered."""
        if self._quiet_since_s is None:
            self._quiet_since_s = start_s
        _, models = self._condition
        if not models or start_s - self._quiet_since_s < self._settle_s or end_s - start_s < _MIN_SLICE_S:
            return
        slices = self._slices.setdefault(self._condition, deque())
        slices.append((end_s - start_s, joules / (end_s - start_s)))
        while sum(length_s for length_s, _ in slices) - slices[0][0] >= self._memory_s:
            slices.popleft()
        if sum(length_s for length_s, _ in slices) >= self._min_idle_s:
            self._idle_w[self._condition] = median(power_w for _, power_w in slices)
