"""How requests have ended since the coordinator began. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.coordinator import dispatch


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

    def concluded(self, outcome: dispatch.Outcome) -> None:
        """Count a request's one outcome."""
        match outcome:
            case dispatch.Completed():
                self.finished += 1
            case dispatch.Failed():
                self.failed += 1
            case dispatch.Cancelled():
                self.cancelled += 1

    def retired(self, life: dispatch.Lifecycle) -> None:
        """Count what second experts have done for a request."""
        if life.hedge:
            won = bool(life.authors) and life.authors[0] is life.hedge
            self.hedges_won += won
            self.hedges_lost += not won
        self.resumed += len(life.authors) > 1
