"""The measured figures of hosts and experts that the slow level decides by, as agents report them. PURE.

None is unmeasured, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import cast

import numpy as np

from moe2.common.cost import EnergyProfile, LatencyProfile, RequestShape
from moe2.common.errors import Moe2Error
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.standby import Standby, TransitionCost
from moe2.common.status import AgentRow
from moe2.coordinator.planning.values import FloatArray, IntArray

Scores = Callable[[str], Mapping[str, float]]
"""The expected scores of an expert by category, given its key."""


class Readiness(StrEnum):
    """How near an expert is to answering."""

    READY = "ready"
    LOADING = "loading"
    """It is on its way: its model is being loaded, or its host is waking up."""
    COLD = "cold"
    """Its process has ended, and its host is awake."""
    ASLEEP = "asleep"
    """Its host is suspended."""


_READINESS = {
    ExpertState.READY: Readiness.READY,
    ExpertState.LOADING: Readiness.LOADING,
    ExpertState.RESTARTING: Readiness.LOADING,
    ExpertState.COLD: Readiness.COLD,
}


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
        arriving = RequestShape(prompt_tokens=cast(int, prompt_tokens), decoded_tokens=cast(int, answer_tokens))
        shape = self.latency.lived(arriving)
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


class UnknownHostError(Moe2Error):
    """No agent has this name or id, or several have."""


def fleet_of(rows: tuple[AgentRow, ...], scores: Scores, *, wakes_by_command: bool = False) -> Fleet:
    """The fleet of all agents that are connected or asleep. Experts that have failed are not part of it.

    wakes_by_command: hosts can be woken by other means than magic packets to the addresses that they report.
    """
    hosts: list[HostFigures] = []
    experts: list[ExpertFigures] = []
    for row in sorted(rows, key=lambda row: row.agent_id):
        if not (row.connected or row.asleep) or (row.draining and not row.asleep):
            continue
        usable = [one for one in row.experts if one.state is not ExpertState.FAILED]
        standby = row.standby or Standby()
        idle_w = _idle_w(standby)
        hosts.append(_host(row, standby, idle_w, usable, wakes_by_command=wakes_by_command))
        # Its watts may hold all its models, so that it is not known what one of them adds.
        adds_unknown = not hosts[-1].can_sleep and idle_w.get(()) is None
        models = tuple(sorted(one.model for one in row.experts))
        for one in sorted(usable, key=lambda one: one.model):
            ready_w = None if adds_unknown else _ready_w(idle_w, one.model, models)
            experts.append(_expert(row, one, scores, ready_w))
    return Fleet(tuple(hosts), tuple(experts))


def _idle_w(standby: Standby) -> dict[tuple[str, ...], float]:
    """Watts of the host awake while nothing runs, by the models that are in memory, sorted."""
    return {tuple(sorted(idle.models)): idle.power_w for idle in reversed(standby.idle) if not idle.asleep}


def _host(
    row: AgentRow,
    standby: Standby,
    idle_w: Mapping[tuple[str, ...], float],
    experts: list[ExpertReport],
    *,
    wakes_by_command: bool,
) -> HostFigures:
    asleep = next((one.power_w for one in standby.idle if one.asleep), None)
    wake, suspend = standby.wake_cost, standby.suspend_cost
    return HostFigures(
        key=row.agent_id,
        name=row.agent_name,
        awake_w=_awake_w(idle_w, experts),
        asleep_w=asleep,
        wake_s=wake.duration_s if wake else None,
        wake_j=_joules(wake),
        suspend_s=suspend.duration_s if suspend else None,
        suspend_j=_joules(suspend),
        memory_bytes=row.host.memory_bytes if row.host else None,
        may_suspend=standby.allow_suspend
        and standby.suspend_fault is None
        and (wakes_by_command or bool(standby.wake_addresses)),
        may_unload=standby.allow_unload,
        wake_is_known=wakes_by_command or any(one.armed and one.network for one in standby.wake_addresses),
        has_plug=any(one.name.startswith("wall:") and one.state == "present" for one in row.sensors),
    )


def _awake_w(idle_w: Mapping[tuple[str, ...], float], experts: list[ExpertReport]) -> float | None:
    """Watts of the host awake without a model in memory, or with all its models where it has never been without."""
    bare = idle_w.get(())
    return bare if bare is not None else idle_w.get(tuple(sorted(one.model for one in experts)))


def _expert(row: AgentRow, report: ExpertReport, scores: Scores, ready_w: float | None) -> ExpertFigures:
    key = f"{row.agent_id}/{report.model}"
    load = report.load_cost
    return ExpertFigures(
        key=key,
        host=row.agent_id,
        model=report.model,
        readiness=Readiness.ASLEEP if row.asleep else _READINESS[report.state],
        slots=report.slots,
        latency=report.latency,
        energy=report.energy,
        scores=scores(key),
        ready_w=ready_w,
        load_s=load.duration_s if load else report.load_s,
        load_j=_joules(load),
        unload_j=_joules(report.unload_cost),
        memory_bytes=report.file_bytes,
    )


def _ready_w(idle_w: Mapping[tuple[str, ...], float], model: str, models: tuple[str, ...]) -> float | None:
    """Watts that a model in memory adds to its host: measured alone, or as the difference of two sets of models.

    0 where the host's watts without any model are not known: they then hold all its models.
    """
    bare, alone, together = idle_w.get(()), idle_w.get((model,)), idle_w.get(models)
    if bare is None:
        return 0.0 if together is not None else None
    if alone is not None:
        return max(0.0, alone - bare)
    without = idle_w.get(tuple(other for other in models if other != model))
    if together is not None and without is not None:
        return max(0.0, together - without)
    return None


def _joules(cost: TransitionCost | None) -> float | None:
    return cost.energy_j if cost else None


def row_called(rows: Sequence[AgentRow], host: str) -> AgentRow:
    """The row of the host with this name, or whose id begins so. Raises `UnknownHostError` where it is not one host."""
    exact = [row for row in rows if host in (row.agent_name, row.agent_id)]
    found = exact or [row for row in rows if row.agent_id.startswith(host)]
    if len(found) != 1:
        known = ", ".join(sorted(row.agent_name for row in rows)) or "none"
        what = "No host is" if not found else f"{len(found)} hosts are"
        raise UnknownHostError(f"{what} called {host!r}.", remedy=f"Known are: {known}.")
    return found[0]


def busy_of(rows: Sequence[AgentRow]) -> dict[str, int]:
    """The requests of each connected host's experts, waiting ones included, by the id of its agent."""
    return {row.agent_id: sum(one.active + one.queued for one in row.experts) for row in rows if row.connected}


def require_suspendable(row: AgentRow, *, wakes_by_command: bool) -> None:
    """Raise Moe2Error, with what to do, where the host may or can not be suspended, or nobody could wake it again."""
    if not (row.connected or row.asleep):
        raise Moe2Error(
            f"{row.agent_name} is lost: its agent is not connected.",
            remedy=f"Look whether {row.agent_name} is on; `moe2-coordinator fleet wake {row.agent_name}` calls it.",
        )
    if row.standby is None or not row.standby.allow_suspend:
        raise Moe2Error(
            f"{row.agent_name} may not be suspended.",
            remedy=f"Set allow_suspend = true in the agent's configuration on {row.agent_name}.",
        )
    if row.standby.suspend_fault:
        raise Moe2Error(f"{row.agent_name} cannot be suspended: {row.standby.suspend_fault}.")
    require_wakeable(row, wakes_by_command=wakes_by_command)


def require_wakeable(row: AgentRow, *, wakes_by_command: bool) -> None:
    """Raise Moe2Error, with what to do, where nobody could wake the host."""
    if not (wakes_by_command or (row.standby and row.standby.wake_addresses)):
        raise Moe2Error(
            f"Nobody could wake {row.agent_name}: it has no network card that magic packets reach.",
            remedy="Set provisioning.wake_command to a command that wakes it.",
        )


def wakeable_of(rows: Sequence[AgentRow], *, by_command: bool) -> frozenset[str]:
    """The ids of the agents whose hosts can be woken: by magic packets to addresses that they have reported, or by a
    command of the operator's."""
    known = ((row.agent_id, row.standby) for row in rows)
    return frozenset(key for key, standby in known if standby is not None and (standby.wake_addresses or by_command))
