"""How many hedges there may be: second experts that try beside late ones. PURE."""

from __future__ import annotations

HEDGES_AT_ONCE = 2.0
"""Hedges that may be saved up: a quiet hour is no licence for a burst."""


class HedgeRation:
    """Keeps hedges to a share of the requests, so that a fleet that is late because it is busy is not made busier.

    share: 0 to 1; 0 allows none.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = 1.0 if share else 0.0

    def request_came(self) -> None:
        """Save up for hedges: every request brings its share of one."""
        self._saved = min(HEDGES_AT_ONCE, self._saved + self._share)

    @property
    def has_one(self) -> bool:
        """Whether one hedge can be taken."""
        return self._saved >= 1.0 - 1e-9

    def take(self) -> None:
        """Use up one hedge."""
        self._saved -= 1.0
