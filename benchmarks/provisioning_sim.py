"""A day of a fleet in virtual time: requests arrive, hosts sleep, wake, load and answer, and every joule is counted."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np

from benchmarks.provisioning_fleet import DAY_S, HOSTS, MIDNIGHT_UNIX_S, Arrival, Kind
from moe2.coordinator.provisioning.figures import Readiness
from moe2.coordinator.provisioning.problem import LATE_COSTS

PATIENCE_S = 4.0
TICK_S = 60.0


class Doing(IntEnum):
    """What a host is doing."""

    ASLEEP = 0
    SUSPENDING = 1
    WAKING = 2
    READY = 3


@dataclass
class Host:
    """One host of the simulation. Times are seconds of Unix time."""

    place: int
    kind: Kind
    doing: Doing = Doing.READY
    slots: list[float] = field(default_factory=list)
    """When each slot falls free."""
    since_s: float = MIDNIGHT_UNIX_S
    """When the present state began, for the account."""
    ready_at_s: float = MIDNIGHT_UNIX_S
    """When a host that wakes, or is to wake, will be ready."""
    idle_since_s: float = MIDNIGHT_UNIX_S
    wakes_after: bool = False
    """A host on its way to sleep that is to wake at once."""
    busy_until_s: float = 0.0
    changes_s: list[float] = field(default_factory=list)
    joules: float = 0.0

    def __post_init__(self) -> None:
        self.slots = [0.0] * self.kind.slots

    @property
    def readiness(self) -> Readiness:
        """The state as the slow level sees it."""
        if self.doing is Doing.READY:
            return Readiness.READY
        return Readiness.LOADING if self.doing is Doing.WAKING else Readiness.ASLEEP


class Policy(Protocol):
    """Who is awake. It may call `wake` and `suspend` of the day."""

    name: str

    def arrived(self, day: Day, asked: Arrival, now_s: float) -> Host:
        """The host that answers a request that has just come."""

    def tick(self, day: Day, now_s: float) -> None:
        """Called once a minute, and when a host has become idle for as long as the policy asked for."""


@dataclass(frozen=True)
class Result:
    """What a day has cost."""

    name: str
    n: int
    j_per_answer: float
    answers_j_per_answer: float
    late_share: float
    score: float
    transitions_per_host_day: int
    """Of the host with the most."""
    watts: list[float]
    """Mean watts of each minute."""
    awake: list[int]
    """Hosts that were not asleep, at the end of each minute."""
    takers: list[int]
    """Place of the host that answered each request."""


class Day:
    """One day under a policy."""

    def __init__(self, asked: Sequence[Arrival]) -> None:
        self.asked = asked
        self.hosts = [Host(place, kind) for place, kind in enumerate(HOSTS)]
        self.events: list[tuple[float, int, str, int]] = []
        self._number = 0
        self.answers_j = 0.0
        self.n_late = 0
        self.takers: list[int] = []
        self.score = 0.0
        self.minutes_j = np.zeros(int(DAY_S / 60) + 60)

    def at(self, when_s: float, what: str, place: int = 0) -> None:
        """Notes an event to come."""
        self._number += 1
        heapq.heappush(self.events, (when_s, self._number, what, place))

    def run(self, policy: Policy) -> Result:
        """Lives the day to its end and until the last answer."""
        for place, one in enumerate(self.asked):
            self.at(one.at_unix_s, "asked", place)
        for minute in range(int(DAY_S / TICK_S)):
            self.at(MIDNIGHT_UNIX_S + minute * TICK_S, "tick")
        awake: list[int] = []
        ends_s = MIDNIGHT_UNIX_S + DAY_S
        while self.events:
            now_s, _, what, place = heapq.heappop(self.events)
            if what == "asked":
                self._answer(policy.arrived(self, self.asked[place], now_s), self.asked[place], now_s)
            elif what == "tick":
                policy.tick(self, now_s)
                awake.append(sum(host.doing is not Doing.ASLEEP for host in self.hosts))
            else:
                self._moved(self.hosts[place], what, now_s)
        for host in self.hosts:
            self._account(host, max(ends_s, host.since_s))
        n = max(1, len(self.asked))
        joules = sum(host.joules for host in self.hosts) + self.answers_j
        return Result(
            name=policy.name,
            n=len(self.asked),
            j_per_answer=joules / n,
            answers_j_per_answer=self.answers_j / n,
            late_share=self.n_late / n,
            score=self.score / n,
            transitions_per_host_day=max(len(host.changes_s) for host in self.hosts),
            watts=[joule / 60.0 for joule in self.minutes_j[: int(DAY_S / 60)].tolist()],
            awake=awake,
            takers=self.takers,
        )

    # --- What a policy may do -----------------------------------------------------------------------------------------

    def wake(self, host: Host, now_s: float) -> None:
        """Wakes a sleeping host, or has one that is on its way to sleep come back."""
        if host.doing is Doing.SUSPENDING and not host.wakes_after:
            host.wakes_after = True
            host.ready_at_s = max(host.ready_at_s, now_s) + host.kind.wake_s + host.kind.load_s
        elif host.doing is Doing.ASLEEP:
            self._account(host, now_s)
            host.doing = Doing.WAKING
            host.changes_s.append(now_s)
            host.ready_at_s = now_s + host.kind.wake_s + host.kind.load_s
            self._spend(host, host.kind.wake_j + host.kind.load_j, now_s, host.ready_at_s)
            self.at(host.ready_at_s, "ready", host.place)

    def suspend(self, host: Host, now_s: float) -> None:
        """Suspends a host that is ready and has no jobs."""
        if host.doing is not Doing.READY or host.busy_until_s > now_s:
            return
        self._account(host, now_s)
        host.doing = Doing.SUSPENDING
        host.changes_s.append(now_s)
        host.ready_at_s = now_s + host.kind.suspend_s
        self._spend(host, host.kind.suspend_j, now_s, host.ready_at_s)
        self.at(host.ready_at_s, "asleep", host.place)

    def first_token_s(self, host: Host, asked: Arrival, now_s: float) -> float:
        """Seconds to the first token on a host, its waking included."""
        starts_s = max(now_s, min(host.slots))
        if host.doing is Doing.ASLEEP:
            starts_s = max(starts_s, now_s + host.kind.wake_s + host.kind.load_s)
        elif host.doing is Doing.SUSPENDING:
            back_s = 0.0 if host.wakes_after else host.kind.wake_s + host.kind.load_s
            starts_s = max(starts_s, host.ready_at_s + back_s)
        elif host.doing is Doing.WAKING:
            starts_s = max(starts_s, host.ready_at_s)
        return starts_s - now_s + 0.02 + asked.prompt_tokens / host.kind.prefill_tokens_per_s

    def value(self, host: Host, asked: Arrival, now_s: float) -> float:
        """The score to expect of a host, less what a late first token takes from it."""
        score = host.kind.scores.get(asked.category, host.kind.scores[""])
        return score - LATE_COSTS * (self.first_token_s(host, asked, now_s) > PATIENCE_S)

    # --- What happens -------------------------------------------------------------------------------------------------

    def _answer(self, host: Host, asked: Arrival, now_s: float) -> None:
        first_s = self.first_token_s(host, asked, now_s)
        if host.doing is not Doing.READY:
            self.wake(host, now_s)
        ends_s = now_s + first_s + (asked.answer_tokens - 1) / host.kind.decode_tokens_per_s
        slot = host.slots.index(min(host.slots))
        host.slots[slot] = ends_s
        joules = asked.prompt_tokens * host.kind.prefill_j + asked.answer_tokens * host.kind.decode_j
        self.answers_j += joules
        self._on_chart(joules, now_s + first_s, ends_s)
        self.takers.append(host.place)
        self.n_late += first_s > PATIENCE_S
        self.score += host.kind.scores.get(asked.category, host.kind.scores[""])
        # While it answers, its idle watts are in the answers' joules.
        if host.doing is Doing.READY:
            self._account(host, now_s)
        host.busy_until_s = max(host.busy_until_s, ends_s)
        host.idle_since_s = host.busy_until_s

    def _moved(self, host: Host, what: str, now_s: float) -> None:
        host.since_s = now_s
        if what == "ready":
            host.doing = Doing.READY
            host.idle_since_s = max(host.idle_since_s, now_s)
        else:
            host.doing = Doing.ASLEEP
            if host.wakes_after:
                host.wakes_after = False
                self.wake(host, now_s)

    def _account(self, host: Host, now_s: float) -> None:
        """Books the watts of waiting since the last call."""
        if host.doing is Doing.ASLEEP:
            self._spend(host, host.kind.asleep_w * (now_s - host.since_s), host.since_s, now_s)
        elif host.doing is Doing.READY:
            begins_s = max(host.since_s, min(host.busy_until_s, now_s))
            self._spend(host, host.kind.ready_w * (now_s - begins_s), begins_s, now_s)
        host.since_s = max(host.since_s, now_s)

    def _spend(self, host: Host, joules: float, begins_s: float, ends_s: float) -> None:
        host.joules += joules
        self._on_chart(joules, begins_s, ends_s)

    def _on_chart(self, joules: float, begins_s: float, ends_s: float) -> None:
        """Spreads joules over the minutes that they fall in."""
        first = int((begins_s - MIDNIGHT_UNIX_S) // 60)
        last = int((ends_s - MIDNIGHT_UNIX_S) // 60)
        if ends_s <= begins_s or last == first:
            self.minutes_j[min(max(first, 0), len(self.minutes_j) - 1)] += joules
            return
        for minute in range(max(first, 0), min(last, len(self.minutes_j) - 1) + 1):
            low = max(begins_s, MIDNIGHT_UNIX_S + minute * 60)
            high = min(ends_s, MIDNIGHT_UNIX_S + (minute + 1) * 60)
            self.minutes_j[minute] += joules * max(0.0, high - low) / (ends_s - begins_s)


def best_ready(day: Day, asked: Arrival, now_s: float) -> Host | None:
    """The host in memory with the largest value for a request, the sooner one of equals; None where nobody is."""
    ready = [host for host in day.hosts if host.doing is Doing.READY]
    if not ready:
        return None
    return max(ready, key=lambda host: (day.value(host, asked, now_s), -host.place))
