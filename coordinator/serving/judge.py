"""What the coordinator thinks of experts by how their jobs went: whose breaker opens, and what hangs or kills. PURE.

A request may be what kills engines (decision 0014). Every request that was in the batch when an engine died is a
suspect. If one of them is convicted, the death is explained; if all of them are answered in the end, it was the
engine's own fault. If one ends in any other way, nobody knows, and the death is held against nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moe2.common.errors import JobErrorCode
from moe2.coordinator.choosing.selector import can_serve
from moe2.coordinator.fleet.breaker import Breakers
from moe2.coordinator.fleet.table import Expert, agent_of
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import MIN_LATE_S, Attempt
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.progress import Progress
from moe2.coordinator.serving.suspicion import is_suspect

_BUSY = "it works for others, and a request that an engine died with runs alone"
_ALONE = "a request that an engine died with runs alone there"
_CLAIMED = "a request that an engine died with runs alone there next"


@dataclass
class _Death:
    """The death of an expert's engine."""

    expert_key: str
    at_s: float
    suspects: set[str] = field(default_factory=set)
    """Ids of the requests in the engine's batch that have not ended yet."""


class Suspects:
    """All suspects in progress, in the order in which they became it. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._lives: dict[str, Progress] = {}
        self._deaths: list[_Death] = []

    def __len__(self) -> int:
        return len(self._lives)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._lives

    def note(self, life: Progress) -> None:
        """Remember the request until its end, if it is a suspect."""
        if life.is_suspect:
            self._lives.setdefault(life.request.request_id, life)

    def reserved_from(self, life: Progress, experts: Iterable[Expert], in_flight: Mapping[str, int]) -> dict[str, str]:
        """Experts that are kept from this request for the sake of the suspects, each with the reason."""
        usable = tuple(experts)
        return reserved_experts(
            life,
            tuple(self._lives.values()),
            lambda model: (expert for expert in usable if can_serve(model, expert)),
            in_flight,
        )

    def died(self, life: Progress, attempt: Attempt, now_s: float) -> None:
        """Take in that an engine died with this attempt in its batch. Jobs submitted before a death share it."""
        request_id, key = life.request.request_id, attempt.expert.key
        for death in self._deaths:
            if death.expert_key == key and attempt.submitted_s <= death.at_s:
                death.suspects.add(request_id)
                return
        self._deaths.append(_Death(key, now_s, {request_id}))

    def ended(self, life: Progress) -> list[str]:
        """Take in that a request has ended.

        Returns the keys of the experts whose engines are now known to have died by their own fault.
        """
        request_id, guilty = life.request.request_id, []
        if self._lives.pop(request_id, None) is None:
            return []
        for death in [death for death in self._deaths if request_id in death.suspects]:
            death.suspects.discard(request_id)
            is_acquitted = isinstance(life.outcome, Completed)
            if is_acquitted and not death.suspects:
                guilty.append(death.expert_key)
            if not is_acquitted or not death.suspects:
                self._deaths.remove(death)
        return guilty


def reserved_experts(
    life: Progress,
    suspects: Sequence[Progress],
    experts_for: Callable[[str], Iterable[Expert]],
    in_flight: Mapping[str, int],
) -> dict[str, str]:
    """Experts that `life` must not be given now for the suspects' sake, each with the reason.

    suspects: all requests that are suspects, in the order in which they became it; `life` may be one of them.
    experts_for: those that serve a model. in_flight: jobs by expert.

    An engine where a suspect runs alone is nobody else's. While one waits and no engine is idle, the least busy one
    takes nothing new: its work can only shrink, so that every suspect's turn comes.
    """
    if is_suspect(life.attempts):
        return {key: _BUSY for key, n_jobs in in_flight.items() if n_jobs}
    reserved = {attempt.expert.key: _ALONE for other in suspects for attempt in other.attempts if attempt.is_isolated}
    waiting = next((other for other in suspects if other.wait is not None), None)
    if waiting is not None:
        left = {expert.key for expert in experts_for(waiting.request.model)} - reserved.keys() - waiting.tried
        least_busy = min(sorted(left), key=lambda key: in_flight.get(key, 0), default=None)
        if least_busy is not None and in_flight.get(least_busy, 0):
            reserved[least_busy] = _CLAIMED
    return reserved


class ExpertJudge:
    """Judges experts by the attempts of all requests. All times are monotonic seconds.

    in_progress: returns the requests that have not ended.
    """

    def __init__(self, in_progress: Callable[[], Iterable[Progress]]) -> None:
        self.breakers = Breakers()
        self.suspects = Suspects()
        self._in_progress = in_progress
        self._answered_s: dict[str, float] = {}
        """When each expert last answered, by its key."""

    def late(self, life: Progress, job_id: str, now_s: float, *, hangs: bool) -> bool:
        """An attempt is late. hangs: it has given no sign of life for far too long.

        Returns whether its expert is taken to hang: one that works on other requests does not, as this one only waits
        in its queue for longer than was predicted.
        """
        attempt = _attempt(life, job_id)
        works = hangs and self._works(attempt.expert.key, now_s)
        if not works or attempt.has_begun:
            # That others' answers are long is no fault of the expert's.
            self._late(attempt, now_s, hangs=hangs and not works)
        self.suspects.note(life)
        return hangs and not works

    def released(self, life: Progress, job_id: str, now_s: float) -> None:
        """An attempt has ended: take in what its end says of its expert."""
        self.suspects.note(life)
        attempt = _attempt(life, job_id)
        key = attempt.expert.key
        match attempt.state:
            case AttemptState.ANSWERED:
                self._answered_s[key] = now_s
                if [former for former in life.attempts if former.died_with and former.expert.key == key]:
                    # The answer acquits its request. For the engine, which died with it before, it is no merit.
                    self.breakers.ended(key, job_id)
                else:
                    self.breakers.succeeded(key, job_id, now_s)
            case AttemptState.LOST if attempt.code != JobErrorCode.AGENT_LOST:
                # The expert was told to stop, and did not even say that it had.
                self._late(attempt, now_s, hangs=not self._works(key, now_s))
            case AttemptState.FAILED if attempt.code == JobErrorCode.ENGINE_CRASHED:
                # Whether it was the engine's fault is known when all that it worked on have ended.
                self.breakers.ended(key, job_id)
                if attempt.died_with:
                    self.suspects.died(life, attempt, now_s)
            case AttemptState.FAILED if attempt.was_turned_away:
                self.breakers.refused(key, job_id, now_s, restarts=attempt.expert.report.restarts)
            case AttemptState.FAILED if attempt.is_unexplained:
                # Where nobody can answer the request, it is the request: see `ended`.
                self.breakers.ended(key, job_id)
            case AttemptState.FAILED | AttemptState.LOST | AttemptState.BROKEN_OFF:
                code = attempt.code or "unknown"
                self.breakers.failed(key, job_id, code, now_s, submitted_s=attempt.submitted_s)
            case _:
                self.breakers.ended(key, job_id)

    def ended(self, life: Progress, now_s: float) -> None:
        """A request has ended: hold against experts what was their own fault, as its end may show.

        That is an engine's death, and what failed on one expert for unknown reasons and not on another.
        """
        for key in self.suspects.ended(life):
            request_id = life.request.request_id
            self.breakers.failed(key, request_id, JobErrorCode.ENGINE_CRASHED, now_s, submitted_s=now_s)
        if isinstance(life.outcome, Completed):
            for attempt in [attempt for attempt in life.attempts if attempt.is_unexplained]:
                at_s, key = attempt.submitted_s, attempt.expert.key
                self.breakers.failed(key, attempt.job_id, JobErrorCode.INTERNAL, now_s, submitted_s=at_s)

    def forget(self, agent_id: str) -> None:
        """An agent has been evicted and will not come back."""
        self.breakers.forget(agent_id)
        for key in [key for key in self._answered_s if agent_of(key) == agent_id]:
            del self._answered_s[key]

    def _late(self, attempt: Attempt, now_s: float, *, hangs: bool) -> None:
        expert = attempt.expert
        self.breakers.late(expert.key, attempt.job_id, now_s, hangs=hangs, restarts=expert.report.restarts)

    def _works(self, key: str, now_s: float) -> bool:
        """True if the expert has said something lately."""
        signs = [
            attempt.last_sign_s
            for life in self._in_progress()
            for attempt in life.attempts
            if attempt.expert.key == key
        ]
        return any(at_s is not None and now_s - at_s < MIN_LATE_S for at_s in (*signs, self._answered_s.get(key)))


def _attempt(life: Progress, job_id: str) -> Attempt:
    """The attempt of one of the request's own jobs."""
    found = life.attempt_of(job_id)
    assert found is not None  # noqa: S101 - whoever asks has a job of this request
    return found
