"""Circuit breakers: an expert that keeps failing loses its traffic and earns it back one request at a time. PURE.

Without them an expert that fails at once looks better than any that works, as it is always free. Closed: it takes
requests. Open: it takes none, for a while that doubles with each failed return. Half-open: one real request at a time
probes it; that one may still fail over, so its client does not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.coordinator.fleet.table import Expert, agent_of

MIN_FAILURES = 3
"""The fewest failures that open a breaker; so many in a row do, however much time lies between them."""
ERROR_RATE = 0.5
"""The share of failures from which on an expert is not relied on."""
HALF_LIFE_S = 30.0
"""The time after which an outcome counts half, so that what was long ago does not matter."""
FIRST_OPEN_S = 5.0
MAX_OPEN_S = 300.0
REMOVED_S = 10.0
"""The time within which an expert that was taken from its host is missing in the reports, too."""
EXPLAINED_S = 2.0
"""The time within which an agent reports why its expert refuses work: a report follows each change after 0.1 s."""
_HARMLESS = REQUEST_FAULTS | {JobErrorCode.QUEUE_FULL, JobErrorCode.DRAINING, JobErrorCode.DEADLINE_EXCEEDED}
_SHARED = frozenset({JobErrorCode.AGENT_LOST, JobErrorCode.ENGINE_CRASHED, JobErrorCode.OUT_OF_MEMORY})
"""Error codes of events that fail all jobs of an engine together, and so count once."""


class BreakerState(StrEnum):
    """The states of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass
class _Breaker:
    failures: float = 0.0
    outcomes: float = 0.0
    streak: int = 0
    """The number of failures since the expert last answered."""
    faded_at_s: float = 0.0
    failed_at_s: float | None = None
    open_until_s: float | None = None
    """When the breaker turns half-open; None while it is closed."""
    trips: int = 0
    closed_at_s: float | None = None
    """When the answer of a probe last closed the breaker."""
    probe: str | None = None
    """The id of the job that probes the expert."""
    hung_restarts: int | None = None
    """The number of engine restarts when the breaker opened for an expert that hangs; None where it did not."""

    def fade(self, now_s: float) -> None:
        """Reduces the weight of former outcomes by the time that has passed."""
        weight = 0.5 ** (max(0.0, now_s - self.faded_at_s) / HALF_LIFE_S)
        self.failures, self.outcomes, self.faded_at_s = self.failures * weight, self.outcomes * weight, now_s

    def state(self, now_s: float) -> BreakerState:
        """Returns the state at a moment."""
        if self.open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self.open_until_s else BreakerState.HALF_OPEN


class Breakers:
    """The circuit breakers of all experts, by the expert's key. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._breakers: dict[str, _Breaker] = {}
        self._tripped: dict[str, _Breaker] = {}
        """Those that are not closed: each choice asks for them, and thousands may have answered."""
        self._disowned_s: dict[str, float] = {}
        """When agents last said of experts that they do not serve them, which their next reports confirm or belie."""
        self._unready: dict[str, tuple[float, int]] = {}
        """When experts that were reported as ready first said that they are not, and the restarts that were known."""

    def submitted(self, key: str, job_id: str, now_s: float) -> None:
        """Notes that the expert was given a job, which is its probe where the breaker is half-open."""
        breaker = self._tripped.get(key)
        if breaker and breaker.probe is None and breaker.state(now_s) is BreakerState.HALF_OPEN:
            breaker.probe = job_id

    def succeeded(self, key: str, job_id: str, now_s: float) -> None:
        """Notes that the expert answered. A probe's answer closes the breaker; an older job's does not."""
        breaker = self._breaker(key, now_s)
        breaker.fade(now_s)
        if breaker.open_until_s is None:
            breaker.outcomes += 1
            breaker.streak = 0
        elif breaker.probe == job_id:
            del self._tripped[key]
            breaker.open_until_s, breaker.probe, breaker.closed_at_s = None, None, now_s
            breaker.hung_restarts = None
            breaker.failures, breaker.outcomes, breaker.streak = 0.0, 1.0, 0

    def failed(self, key: str, job_id: str, code: str, now_s: float, *, submitted_s: float) -> None:
        """Notes that a job failed on the expert. A failure that is not the expert's fault only ends a probe."""
        if code in _HARMLESS:
            self.ended(key, job_id)
            return
        if code == JobErrorCode.UNKNOWN_EXPERT:
            self._disowned_s[key] = now_s
        breaker = self._breaker(key, now_s)
        if breaker.probe == job_id:
            self._open(key, breaker, now_s)
            return
        known = code in _SHARED and breaker.failed_at_s is not None and submitted_s <= breaker.failed_at_s
        if breaker.open_until_s is None and not known:
            self._count_failure(key, breaker, now_s)

    def refused(self, key: str, job_id: str, now_s: float, *, restarts: int) -> None:
        """Notes that an expert that was reported as ready refused a job because it is not.

        The engine has just died, as a rule, by the fault of whoever. So a refusal is a failure only where no report has
        told of that for `EXPLAINED_S`. restarts: the number of the engine's restarts, as known when it got the job.
        """
        since_s, _ = self._unready.setdefault(key, (now_s, restarts))
        if now_s - since_s < EXPLAINED_S:
            self.ended(key, job_id)
        else:
            del self._unready[key]
            self.failed(key, job_id, JobErrorCode.NOT_READY, now_s, submitted_s=now_s)

    def late(self, key: str, job_id: str, now_s: float, *, hangs: bool, restarts: int = 0) -> None:
        """Notes that a job is late with its first token.

        hangs: the job is so late that the expert is taken to do no work at all, alive or not. restarts: the number of
        the engine's restarts, as known when it got the job.
        """
        breaker = self._breaker(key, now_s)
        if breaker.probe == job_id or (hangs and breaker.open_until_s is None):
            self._open(key, breaker, now_s)
            # Whatever else the new engine may turn out to be, it does not hang yet.
            breaker.hung_restarts = restarts if hangs else None
        elif breaker.open_until_s is None:
            self._count_failure(key, breaker, now_s)

    def ended(self, key: str, job_id: str) -> None:
        """Notes that a job ended without saying anything about its expert, for example cancelled by its client."""
        breaker = self._breakers.get(key)
        if breaker and breaker.probe == job_id:
            breaker.probe = None

    @property
    def wants_news(self) -> bool:
        """Whether reports may clear an expert: one that hung by a restart, one that was removed by its absence."""
        hung = (breaker.hung_restarts is not None for breaker in self._tripped.values())
        return bool(self._disowned_s or self._unready) or any(hung)

    def seen(self, experts: Sequence[Expert], now_s: float) -> None:
        """Takes in the experts that serve now. A breaker that opened for a hang closes after the engine's restart.

        An expert that was taken from its host, and said so to jobs on their way, has not failed: served anew, it begins
        anew. One that is reported all the same is held to what it said. So is one that refuses work as if it were not
        ready, unless it is missing here, or its engine was restarted.
        """
        restarts = {expert.key: expert.report.restarts for expert in experts}
        self._unready = {
            key: (at_s, known)
            for key, (at_s, known) in self._unready.items()
            if now_s - at_s < REMOVED_S and restarts.get(key) == known
        }
        for key in self._disowned_s.keys() - restarts.keys():
            self._drop(key)
            del self._disowned_s[key]
        self._disowned_s = {key: at_s for key, at_s in self._disowned_s.items() if now_s - at_s < REMOVED_S}
        for key, breaker in tuple(self._tripped.items()):
            if key in restarts and breaker.hung_restarts not in (None, restarts[key]):
                self._breakers[key] = _Breaker()
                del self._tripped[key]

    def barred(self, now_s: float) -> dict[str, str]:
        """Returns the experts that must not be given a request now, each with the reason."""
        reasons = {}
        for key, breaker in self._tripped.items():
            match breaker.state(now_s):
                case BreakerState.OPEN:
                    reasons[key] = "its breaker is open, because its last requests failed"
                case BreakerState.HALF_OPEN if breaker.probe is not None:
                    reasons[key] = "its breaker is half-open, and another request tries it already"
        return reasons

    def states(self, now_s: float) -> dict[str, BreakerState]:
        """Returns the state of every expert's breaker that ever failed or answered."""
        return {key: breaker.state(now_s) for key, breaker in self._breakers.items()}

    def opens_again_in_s(self, key: str, now_s: float) -> float:
        """Returns the seconds until an open breaker lets a probe through; 0 where it does already."""
        breaker = self._breakers.get(key)
        return 0.0 if breaker is None or breaker.open_until_s is None else max(0.0, breaker.open_until_s - now_s)

    def next_change_s(self, now_s: float) -> float | None:
        """Returns when the first open breaker turns half-open; None where none is open."""
        times = (breaker.open_until_s for breaker in self._tripped.values())
        return min((at_s for at_s in times if at_s is not None and at_s > now_s), default=None)

    def forget(self, agent_id: str) -> None:
        """Removes the breakers of an agent that has been evicted."""
        for key in [key for key in self._breakers if agent_of(key) == agent_id]:
            self._drop(key)

    def _breaker(self, key: str, now_s: float) -> _Breaker:
        found = self._breakers.get(key)
        if found is None:
            found = self._breakers[key] = _Breaker(faded_at_s=now_s)
        return found

    def _drop(self, key: str) -> None:
        self._breakers.pop(key, None)
        self._tripped.pop(key, None)

    def _count_failure(self, key: str, breaker: _Breaker, now_s: float) -> None:
        breaker.fade(now_s)
        breaker.failed_at_s = now_s
        breaker.failures += 1
        breaker.outcomes += 1
        breaker.streak += 1
        often = breaker.failures >= MIN_FAILURES and breaker.failures >= ERROR_RATE * breaker.outcomes
        if often or breaker.streak >= MIN_FAILURES:
            self._open(key, breaker, now_s)

    def _open(self, key: str, breaker: _Breaker, now_s: float) -> None:
        self._tripped[key] = breaker
        closed_at_s = breaker.closed_at_s
        # One that has worked for long since it last failed begins anew.
        if breaker.open_until_s is None and (closed_at_s is None or now_s - closed_at_s > MAX_OPEN_S):
            breaker.trips = 0
        breaker.trips += 1
        breaker.probe, breaker.failed_at_s, breaker.hung_restarts = None, now_s, None
        breaker.open_until_s = now_s + min(MAX_OPEN_S, FIRST_OPEN_S * 2 ** min(30, breaker.trips - 1))
