"""How far the coordinator goes for a request: the same for all of them. PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HEDGES_AT_ONCE = 2.0
"""Hedges that may be saved up: a quiet hour is no licence for a burst."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Terms:
    """queue_s: longest wait for room; 0: nobody waits. may_hedge: asked just before a second expert is set to work; a
    yes is used up."""

    queue_s: float = 0.0
    may_hedge: Callable[[], bool] = _never


class HedgeRation:
    """Keeps hedges to a share of the requests, so that a fleet that is late because it is busy is not made busier.

    share: 0 to 1; 0 allows none.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = 1.0 if share else 0.0

    def request_came(self) -> None:
        self._saved = min(HEDGES_AT_ONCE, self._saved + self._share)

    def take(self) -> bool:
        """Use up one hedge; False if there is none to be had."""
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True
