"""The requests that may be what kills engines, and what their ends say of the engines. PURE. Decision 0014.

Every request that was in the batch when an engine died is a suspect. If one of them is convicted, the death is
explained; if all of them are answered in the end, it was the engine's own fault. If one ends in any other way, nobody
knows, and the death is held against nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moe2.coordinator.choosing.selector import can_serve
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving.attempt import Attempt
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
