"""What the service counts beside its requests: how they ended, hedges saved up, jobs told to stop. PURE."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from moe2.coordinator.serving import effects
from moe2.coordinator.serving.life import Lifecycle

HEDGES_AT_ONCE = 2.0
"""Hedges that may be saved up: a quiet hour is no licence for a burst."""
MAX_ORPHANS = 4096
"""Orphans of all agents that are remembered. One that is forgotten is only told to stop again."""


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
    unmeasured: int = 0
    """Requests whose joules are not all known."""

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

    def retired(self, life: Lifecycle, joules: float | None) -> None:
        """Count what second experts have done for a request, and whether its joules are known."""
        self.unmeasured += joules is None
        if life.hedge:
            won = bool(life.authors) and life.authors[0] is life.hedge
            self.hedges_won += won
            self.hedges_lost += not won
        self.resumed += len(life.authors) > 1


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


class Orphans:
    """Remembers which agents have been told to stop which jobs.

    A job is an orphan where its request is over without a word from its agent: a cancellation that was not confirmed in
    time, or a coordinator that has been restarted.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def heard(self, agent_id: str, job_id: str) -> bool:
        """Take in that an agent works on a job that nobody knows; True if it has to be told to stop."""
        if (agent_id, job_id) in self._told:
            return False
        self._told[agent_id, job_id] = None
        if len(self._told) > MAX_ORPHANS:
            self._told.popitem(last=False)
        return True

    def ended(self, agent_id: str, job_id: str) -> None:
        """Forget a job that its agent works on no more."""
        self._told.pop((agent_id, job_id), None)

    def forget(self, agent_id: str) -> None:
        """Forget what an agent was told: its link is gone, and it may not have heard it."""
        for told in [told for told in self._told if told[0] == agent_id]:
            del self._told[told]
