"""How full the batch will be while a request runs, from how full it is when the request arrives. PURE.

A request that finds an idle expert is soon joined by others; one that finds it full sees some of them leave. Under a
steady load the mean over a request's life is therefore nearer to the load's own mean than what it found, and about
linear in it: lived = m0 + m1 * found (regression towards the mean).
"""

from __future__ import annotations

_FORGETTING = 0.98
"""Weight that a request keeps at each later one: looks back on about 50."""
_PRIOR_WEIGHT = 2.0
"""Requests that the assumption of no change at all (m0 = 0, m1 = 1) counts for."""


class OccupancyForecast:
    """Learns with `observe`; `coefficients` is (m0, m1), with 0 <= m1 <= 1."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._found = 0.0
        self._lived = 0.0
        self._found_squared = 0.0
        self._product = 0.0

    def observe(self, found: float, lived: float) -> None:
        """A request that found a batch of `found` (itself included) and lived in one of `lived` on average."""
        self._weight = _FORGETTING * self._weight + 1
        self._found = _FORGETTING * self._found + found
        self._lived = _FORGETTING * self._lived + lived
        self._found_squared = _FORGETTING * self._found_squared + found * found
        self._product = _FORGETTING * self._product + found * lived

    @property
    def coefficients(self) -> tuple[float, float]:
        """(m0, m1) of the line m0 + m1 · occupancy found, by which the occupancy to come is expected."""
        if not self._weight:
            return 0.0, 1.0
        mean_found, mean_lived = self._found / self._weight, self._lived / self._weight
        scatter = self._found_squared - self._weight * mean_found**2
        common = self._product - self._weight * mean_found * mean_lived
        # The prior's requests lie one apart on average.
        m1 = min(1.0, max(0.0, (common + _PRIOR_WEIGHT) / (scatter + _PRIOR_WEIGHT)))
        change = (mean_lived - mean_found) * self._weight / (self._weight + _PRIOR_WEIGHT)
        return change + (1 - m1) * mean_found, m1
