"""The measured figures of hosts and experts that the slow level decides by. PURE; None is unmeasured, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import cast

import numpy as np

from moe2.common.cost import EnergyProfile, LatencyProfile, RequestShape
from moe2.coordinator.planning.values import FloatArray, IntArray


class Readiness(StrEnum):
    """How near an expert is to answering."""

    READY = "ready"
    LOADING = "loading"
    """It is on its way: its model is being loaded, or its host is waking up."""
    COLD = "cold"
    """Its process has ended, and its host is awake."""
    ASLEEP = "asleep"
    """Its host is suspended."""


@dataclass(frozen=True)
class HostFigures:
    """One host: what it draws in each state, and what it takes to change states."""

    key: str
    """The id of its agent."""
    name: str
    awake_w: float | None
    """Watts while it is awake without a model in memory."""
    asleep_w: float | None
    """Watts while it is suspended."""
    wake_s: float | None = None
    wake_j: float | None = None
    suspend_s: float | None = None
    suspend_j: float | None = None
    memory_bytes: int | None = None
    """Memory that models have to share."""
    may_suspend: bool = False
    """Its agent may be told to suspend it, and there is a way to wake it."""
    may_unload: bool = False
    wake_is_known: bool = False
    """Its network card is known to be allowed to wake it, or the operator has a command that does."""
    has_plug: bool = False
    """A metered plug in front of it tells what it draws asleep."""

    @property
    def can_sleep(self) -> bool:
        """True where it may be suspended and all figures are known that tell whether that pays."""
        known = (self.awake_w, self.asleep_w, self.wake_s, self.wake_j, self.suspend_s, self.suspend_j)
        return self.may_suspend and None not in known

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Names of the figures that would have to be measured before it may sleep."""
        names = ("awake_w", "asleep_w", "wake_s", "wake_j", "suspend_s", "suspend_j")
        return tuple(name for name in names if getattr(self, name) is None)


@dataclass(frozen=True, eq=False)
class AnswerCosts:
    """What each of M requests takes on one expert, (M,) each."""

    first_token_s: FloatArray
    """Mean seconds to the first token with an empty queue."""
    service_s: FloatArray
    """Mean seconds that a request holds a slot."""
    answer_j: FloatArray
    """Mean joules, idle share included."""


@dataclass(frozen=True)
class ExpertFigures:
    """One expert: how well and how fast it answers, and what it draws and takes to be there."""

    key: str
    host: str
    model: str
    readiness: Readiness
    slots: int
    latency: LatencyProfile | None
    energy: EnergyProfile | None
    scores: Mapping[str, float] = field(default_factory=dict)
    """Expected score by category, 0..1; the empty name stands for all others."""
    ready_w: float | None = None
    """Watts that its model in memory adds to its host's."""
    load_s: float | None = None
    load_j: float | None = None
    unload_j: float | None = None
    memory_bytes: int | None = None

    def score(self, category: str) -> float:
        """The expected score on a category."""
        return self.scores.get(category, self.scores.get("", 0.0))

    def costs(self, prompt_tokens: IntArray, answer_tokens: IntArray) -> AnswerCosts | None:
        """What requests of these lengths (M,) take at the occupancy that this expert's requests usually live in.

        None where its speed or its energy is unmeasured.
        """
        if self.latency is None or self.energy is None:
            return None
        occupancy = self.latency.occupancy
        shape = RequestShape(
            prompt_tokens=cast(int, prompt_tokens),
            decoded_tokens=cast(int, answer_tokens),
            occupancy=min(max(1.0, occupancy[0] + occupancy[1]), float(max(1, self.slots))),
        )
        # The laws take arrays as well as numbers.
        first_s = np.asarray(self.latency.prefill_s(shape)) + np.zeros(len(prompt_tokens))
        step_s = np.asarray(self.latency.inter_token_s(shape))
        return AnswerCosts(
            first_token_s=first_s,
            service_s=first_s + np.maximum(0, answer_tokens - 1) * step_s,
            answer_j=np.asarray(self.energy.mean_j(shape)) + np.zeros(len(prompt_tokens)),
        )


@dataclass(frozen=True)
class Fleet:
    """All hosts and experts, sorted by key."""

    hosts: tuple[HostFigures, ...]
    experts: tuple[ExpertFigures, ...]

    def host(self, key: str) -> HostFigures:
        """The host with this key. Raises KeyError where there is none."""
        return self._hosts_by_key[key]

    def has(self, host: str) -> bool:
        """Whether there is a host with this key."""
        return host in self._hosts_by_key

    def on(self, host: str) -> tuple[ExpertFigures, ...]:
        """The experts of a host."""
        return self._experts_by_host.get(host, ())

    @cached_property
    def _hosts_by_key(self) -> dict[str, HostFigures]:
        return {host.key: host for host in self.hosts}

    @cached_property
    def _experts_by_host(self) -> dict[str, tuple[ExpertFigures, ...]]:
        found: dict[str, list[ExpertFigures]] = {}
        for expert in self.experts:
            found.setdefault(expert.host, []).append(expert)
        return {host: tuple(own) for host, own in found.items()}
