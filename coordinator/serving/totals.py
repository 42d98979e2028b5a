"""How requests have ended since the coordinator began. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.coordinator.serving import effects
from moe2.coordinator.serving.life import Lifecycle


@dataclass
class Totals:
    """Requests that have ended, by outcome."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    hedges_won: int = 0
    hedges_lost: int = 0
    resumed: int = 0
    queue_refused: int = 0
    """Requests for which there was no place in the queue."""
    internal_errors: int = 0
    """Requests that ended because the coordinator could not handle what happened to them."""

    def concluded(self, outcome: effects.Outcome, *, instead_of: effects.Outcome | None = None) -> None:
        """Count a request's one outcome. instead_of: the one that it was counted with before it turned out wrong."""
        self._count(outcome, 1)
        if instead_of is not None:
            self._count(instead_of, -1)

    def _count(self, outcome: effects.Outcome, n: int) -> None:
        match outcome:
            case effects.Completed():
                self.finished += n
            case effects.Failed():
                self.failed += n
            case effects.Cancelled():
                self.cancelled += n

    def retired(self, life: Lifecycle) -> None:
        """Count what second experts have done for a request."""
        if life.hedge:
            won = bool(life.authors) and life.authors[0] is life.hedge
            self.hedges_won += won
            self.hedges_lost += not won
        self.resumed += len(life.authors) > 1
