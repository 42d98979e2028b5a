"""The live capability table: what every agent last reported. PURE: ages and evictions follow from the given time.

`epoch` grows whenever the set of experts that could be chosen, or what is known of them, changes; whoever keeps a
decision keyed by it need not look again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

import msgspec

from moe2.common.link.messages import PROTOCOL_VERSION, Hello, Report
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.standby import StandingEnergy
from moe2.common.status import AgentRow
from moe2.coordinator.fleet.choosable import Choosable, is_same_choice
from moe2.coordinator.fleet.suspensions import Suspensions

MAX_UNMEASURED_WAKE_S = 180.0
"""Measured wakes take 10 to 70 s; a host whose wake was never measured is given up after so many seconds."""
RTT_TOLERANCE = 0.25
RTT_TOLERANCE_S = 0.005
RTT_SAMPLES = 8
"""The least of so many round trips is the network's, as in NTP's clock filter (RFC 5905, section 10): the others hold
what answers and reports had to wait for in the two daemons. A busy coordinator measured each round trip anew, and had
to look at the whole fleet again 75 times a second."""


def agent_of(expert_key: str) -> str:
    """Returns the id of the agent that serves an expert."""
    return expert_key.partition("/")[0]


@dataclass(frozen=True)
class Expert:
    """An expert that could be chosen. `key` is unique in the fleet; `model` is what clients ask for."""

    key: str
    agent_id: str
    agent_name: str
    model: str
    report: ExpertReport
    """What its agent reports of it; among choosable experts, figures that no choice depends on may be older."""
    rtt_s: float | None = None
    """Round trip to the expert's host; None before it was measured."""
    protocol: int = PROTOCOL_VERSION
    """The version of the protocol that is spoken with the agent."""

    @property
    def identity(self) -> str:
        """What the model is: its file's checksum, whatever its name; its name until the checksum is known."""
        return self.report.file_sha256 or self.model


@dataclass(frozen=True)
class HostPower:
    """The power that a connected agent's host draws, by its latest report; None if no sensor can be read."""

    agent_id: str
    power_w: float | None
    simulated: bool = False
    """True if some of the power comes from a simulated host's profile."""


class FleetPower(msgspec.Struct, frozen=True, kw_only=True):
    """The power of all connected hosts now."""

    power_w: float | None
    """The sum over the hosts that know theirs; None if none does."""
    n_known: int
    n_unknown: int
    """The number of connected hosts that do not know theirs."""
    simulated: bool
    """True if some of the sum comes from a simulated host's profile."""


@dataclass
class _Agent:
    hello: Hello
    protocol: int
    connected: bool
    changed_s: float
    """When the agent last connected or disconnected."""
    report: Report | None = None
    report_s: float | None = None
    rtts_s: tuple[float, ...] = ()
    """The latest round trips of this session, at most `RTT_SAMPLES`."""
    known_models: frozenset[str] = frozenset()
    """The models that it last reported, in this session or in one before."""
    settled_rtt_s: float | None = None
    """The round trip that decisions use, which follows the least of the latest in steps and not with every tremble."""
    asleep: bool = False
    """It said goodbye because its host was going to sleep, and has not come back."""
    experts: tuple[Expert, ...] | None = None
    """Its experts by what choices depend on in its report; None where they have to be looked at again."""


class Sleeper(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an agent whose host sleeps, so that it can be found again after a restart."""

    hello: Hello
    protocol: int
    report: Report


class CapabilityTable:
    """The table of agents, one row each. Only the hub writes it."""

    def __init__(self, *, stale_s: float, evict_s: float) -> None:
        self._stale_s = stale_s
        self._evict_s = evict_s
        self._agents: dict[str, _Agent] = {}
        self._suspensions = Suspensions()
        self._wakeable: frozenset[str] = frozenset()
        self._ready: Choosable[Expert] = Choosable()
        self._coming: Choosable[Expert] = Choosable()
        self._stirred: set[str] = set()
        """Agents whose experts may have changed since `_refresh`."""
        self._due: list[tuple[float, str]] = []
        """A heap of when agents are to be looked at without a word from them: reports turn stale, suspensions end."""
        self._due_s: dict[str, float] = {}
        """When each agent is next due; other entries of `_due` are void."""
        self._expected: frozenset[str] = frozenset()
        self._expected_until_s = 0.0
        self._largest_contexts: dict[str, int] | None = None
        """What `largest_contexts` returns, as long as no agent has come, gone or got other models."""
        self.epoch = 0

    def set_ages(self, *, stale_s: float, evict_s: float) -> None:
        """Sets the ages at which reports turn stale and agents are forgotten, from now on."""
        if (stale_s, evict_s) != (self._stale_s, self._evict_s):
            self._stale_s, self._evict_s = stale_s, evict_s
            self._stirred.update(self._agents)
            self.epoch += 1

    def expect(self, agent_ids: Iterable[str], until_s: float) -> None:
        """Notes agents that are likely to come back within a while: the coordinator was away, and they were not."""
        self._expected, self._expected_until_s = frozenset(agent_ids), until_s

    def is_expecting(self, now_s: float) -> bool:
        """Whether an expected agent has not reported yet: which models it has is not known."""
        if now_s >= self._expected_until_s:
            return False
        reported = {agent_id for agent_id, agent in self._agents.items() if agent.report is not None}
        return not self._expected <= reported

    def agent_joined(self, hello: Hello, now_s: float, *, protocol: int = PROTOCOL_VERSION) -> None:
        """Notes a new session. What a former session reported is forgotten, as the agent reports at once."""
        former = self._agents.get(hello.agent_id)
        known_models = former.known_models if former else frozenset()
        self._agents[hello.agent_id] = _Agent(
            hello=hello, protocol=protocol, connected=True, changed_s=now_s, known_models=known_models
        )
        self._changed(hello.agent_id)

    def agent_left(self, agent_id: str, now_s: float, *, asleep: bool = False) -> None:
        """Notes that an agent's session has ended. asleep: it said that its host was going to sleep."""
        agent = self._agents.get(agent_id)
        if agent:
            agent.connected, agent.changed_s, agent.rtts_s = False, now_s, ()
            # Without a report nobody would know what sleeps there, or how to wake it.
            agent.asleep = asleep and agent.report is not None
            self._changed(agent_id)

    def is_asleep(self, agent_id: str) -> bool:
        """Whether an agent said that its host was going to sleep, and has not come back."""
        return agent_id in self._agents and self._agents[agent_id].asleep

    def restore_sleeper(self, sleeper: Sleeper, now_s: float) -> None:
        """Takes an agent for asleep that was when the coordinator ended; one that has connected since is left alone."""
        agent_id = sleeper.hello.agent_id
        if agent_id not in self._agents:
            agent = _Agent(hello=sleeper.hello, protocol=sleeper.protocol, connected=False, changed_s=now_s)
            agent.report, agent.asleep = sleeper.report, True
            self._agents[agent_id] = agent
            self._changed(agent_id)

    def sleepers(self, falling: Collection[str] = ()) -> tuple[Sleeper, ...]:
        """Returns the agents whose hosts sleep, sorted by id. falling: ids of those that are on their way to sleep."""
        return tuple(
            Sleeper(hello=agent.hello, protocol=agent.protocol, report=agent.report)
            for agent_id, agent in sorted(self._agents.items())
            if (agent.asleep or agent_id in falling) and agent.report is not None
        )

    def may_wake(self, agent_ids: frozenset[str]) -> None:
        """Sets which agents can be woken for a request once they sleep; the others are left alone."""
        if agent_ids != self._wakeable:
            self._wakeable = agent_ids
            self.epoch += 1

    def wakeable(self) -> tuple[Expert, ...]:
        """Returns the experts of sleeping hosts that can be woken for a request, sorted by key.

        They are as experts that are loaded on demand, with the measured seconds of waking and loading. Where a wake was
        never measured, as in a host's first sleep, the seconds after which it is given up stand for it.
        """
        found = []
        for agent_id in sorted(self._wakeable):
            agent = self._agents.get(agent_id)
            if agent is None or not agent.asleep or agent.report is None or agent.report.standby is None:
                continue
            wake = agent.report.standby.wake_cost
            for expert in agent.report.experts:
                load_s = expert.load_cost.duration_s if expert.load_cost else expert.load_s
                if load_s is None or expert.state is ExpertState.FAILED:
                    continue
                there_s = load_s + (wake.duration_s if wake else MAX_UNMEASURED_WAKE_S)
                cold = msgspec.structs.replace(expert, state=ExpertState.COLD, on_demand=True, load_s=there_s)
                found.append(_expert(agent, cold))
        return tuple(sorted(found, key=lambda expert: expert.key))

    def everyone(self) -> tuple[Expert, ...]:
        """Returns the experts of all connected and sleeping agents, whatever their state, sorted by key. It may be
        asked in any thread, as it keeps nothing."""
        there = (agent for agent in tuple(self._agents.values()) if agent.report and (agent.connected or agent.asleep))
        found = (_expert(agent, expert) for agent in there if agent.report for expert in agent.report.experts)
        return tuple(sorted(found, key=lambda expert: expert.key))

    def agent_removed(self, agent_id: str) -> None:
        """Forgets an agent at once."""
        self._suspensions.forget(agent_id)
        if self._agents.pop(agent_id, None):
            self._changed(agent_id)

    def agent_broke_rules(self, agent_id: str, reason: str, now_s: float) -> float:
        """Suspends an agent that sent something impossible, and returns until when it gets no requests."""
        until_s = self._suspensions.broke(agent_id, reason, now_s)
        self._changed(agent_id, models=False)
        return until_s

    def agent_reported(self, agent_id: str, report: Report, now_s: float) -> None:
        """Takes in an agent's report."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return
        was_stale = agent.report_s is None or now_s - agent.report_s > self._stale_s
        old, agent.report, agent.report_s = agent.report, report, now_s
        if old is None or old.experts is not report.experts:
            agent.known_models = frozenset(expert.model for expert in report.experts)
        # One that is only fresher leaves its experts choosable for longer, which the next look at everybody will find.
        if was_stale or old is None or _differs(old, report):
            self._changed(agent_id, models=old is None or _contexts(old) != _contexts(report))

    def rtt_measured(self, agent_id: str, rtt_s: float) -> None:
        """Takes in a measured round trip to an agent."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return
        agent.rtts_s = (*agent.rtts_s, rtt_s)[-RTT_SAMPLES:]
        least_s, settled_s = min(agent.rtts_s), agent.settled_rtt_s
        if settled_s is None or abs(least_s - settled_s) > RTT_TOLERANCE * settled_s + RTT_TOLERANCE_S:
            agent.settled_rtt_s = least_s
            self._changed(agent_id, models=False)

    def evict(self, now_s: float) -> list[str]:
        """Forgets agents that have been gone for long, and returns their ids."""
        gone = [
            agent_id
            for agent_id, agent in self._agents.items()
            if not agent.connected and not agent.asleep and now_s - agent.changed_s >= self._evict_s
        ]
        for agent_id in gone:
            del self._agents[agent_id]
            self._suspensions.forget(agent_id)
        return gone

    def choosable(self, now_s: float) -> tuple[Expert, ...]:
        """Returns the experts that can take a request now, ready or loaded on demand, sorted by key.

        Their agents are connected and fresh, do not drain, and are not suspended.
        """
        self._refresh(now_s)
        return self._ready.all()

    def loading(self, now_s: float) -> tuple[Expert, ...]:
        """Returns the experts that are being loaded and take no requests before they are ready, sorted by key."""
        self._refresh(now_s)
        return self._coming.all()

    def host_powers(self) -> tuple[HostPower, ...]:
        """Returns the power of every connected host, summed over its readable sensors (such as GPU and CPU)."""
        powers = []
        for agent_id, agent in self._agents.items():
            if agent.connected:
                sensors = agent.report.sensors if agent.report else ()
                reading = [sensor for sensor in sensors if sensor.power_w is not None]
                power_w = sum(sensor.power_w or 0.0 for sensor in reading) if reading else None
                powers.append(HostPower(agent_id, power_w, any(sensor.simulated for sensor in reading)))
        return tuple(powers)

    def fleet_power(self) -> FleetPower:
        """Returns the sum of the hosts' powers."""
        total_w, n_known, n_hosts, simulated = 0.0, 0, 0, False
        for agent in self._agents.values():
            if not agent.connected:
                continue
            n_hosts += 1
            is_known = False
            for sensor in agent.report.sensors if agent.report else ():
                if sensor.power_w is not None:
                    is_known, total_w, simulated = True, total_w + sensor.power_w, simulated or sensor.simulated
            n_known += is_known
        return FleetPower(
            power_w=total_w if n_known else None,
            n_known=n_known,
            n_unknown=n_hosts - n_known,
            simulated=simulated,
        )

    def standing_energy(self) -> tuple[tuple[Hello, StandingEnergy], ...]:
        """Returns the agents that count the joules of no request, each with its last counters."""
        return tuple(
            (agent.hello, agent.report.standby.energy)
            for agent in self._agents.values()
            if agent.report and agent.report.standby and agent.report.standby.energy
        )

    def models(self) -> tuple[str, ...]:
        """Returns the names of all models of connected agents, ready or not, and of sleeping ones, sorted."""
        return tuple(self.largest_contexts())

    def largest_contexts(self) -> Mapping[str, int]:
        """Returns the tokens of the largest context of each model of connected and sleeping agents, sorted by name.

        Every request asks for it: the same object is returned until an agent comes, goes or has other models.
        """
        if self._largest_contexts is None:
            self._largest_contexts = {
                model: max(report.context_tokens for report in reports)
                for model, reports in self.reports_by_model().items()
            }
        return self._largest_contexts

    def has_model(self, name: str) -> bool:
        """Whether `models` has this name. It may be asked in any thread, as it keeps nothing."""
        there = [agent for agent in tuple(self._agents.values()) if agent.connected or agent.asleep]
        return any(expert.model == name for agent in there if agent.report for expert in agent.report.experts)

    def reports_by_model(self) -> dict[str, tuple[ExpertReport, ...]]:
        """Returns what connected and sleeping agents last reported of each model, by its name, sorted."""
        found: dict[str, list[ExpertReport]] = {}
        for _, agent in sorted(self._agents.items()):
            if agent.report and (agent.connected or agent.asleep):
                for report in agent.report.experts:
                    found.setdefault(report.model, []).append(report)
        return {model: tuple(found[model]) for model in sorted(found)}

    def remembers(self, name: str) -> bool:
        """Whether `name` is a model, or an expert's key, that an agent has reported which is away or has just returned.

        Agents are remembered until they are evicted.
        """
        agent_id, _, model = name.partition("/")
        if (agent := self._agents.get(agent_id)) and model in agent.known_models:
            return True
        return any(name in agent.known_models for agent in self._agents.values())

    def embedding_models(self) -> dict[str, frozenset[int]]:
        """Returns the lengths that vectors can have, by the names of all models of connected agents that yield some.

        A model that has not been loaded yet is not known to.
        """
        found: dict[str, frozenset[int]] = {}
        for _, expert in self._connected_experts():
            if expert.vector_size is not None:
                sizes = frozenset((expert.vector_size, *expert.vector_sizes))
                found[expert.model] = found.get(expert.model, frozenset()) | sizes
        return dict(sorted(found.items()))

    def knows_expert(self, key: str) -> bool:
        """Whether `key` names an expert of a connected or sleeping agent, ready or not."""
        agent_id, _, model = key.partition("/")
        agent = self._agents.get(agent_id)
        if agent is None or not (agent.connected or agent.asleep) or agent.report is None:
            return False
        return any(expert.model == model for expert in agent.report.experts)

    def rows(self, now_s: float) -> tuple[AgentRow, ...]:
        """Returns everything known of each agent, for status and pages, sorted by the agent's name."""
        rows = (self._row(agent, now_s) for agent in self._agents.values())
        return tuple(sorted(rows, key=lambda row: (row.agent_name, row.agent_id)))

    def _changed(self, agent_id: str, *, models: bool = True) -> None:
        """Notes that an agent's experts have changed. models: maybe also which models it has, and their contexts."""
        if models:
            self._largest_contexts = None
        self.epoch += 1
        self._stirred.add(agent_id)
        if agent := self._agents.get(agent_id):
            agent.experts = None

    def _connected_experts(self) -> list[tuple[_Agent, ExpertReport]]:
        return [
            (agent, expert)
            # A copy, as bodies that ask for vectors are read in a thread.
            for agent in tuple(self._agents.values())
            if agent.connected and agent.report
            for expert in agent.report.experts
        ]

    def _refresh(self, now_s: float) -> None:
        """Brings the choosable experts up to date: those of agents that changed, or whose time has come."""
        while self._due and self._due[0][0] <= now_s:
            due_s, agent_id = heappop(self._due)
            if self._due_s.get(agent_id) == due_s:
                del self._due_s[agent_id]
                self._stirred.add(agent_id)
        if not self._stirred:
            return
        is_changed = False
        for agent_id in self._stirred:
            agent = self._agents.get(agent_id)
            ready, coming, until_s = ((), (), inf) if agent is None else self._standing(agent, now_s)
            is_changed |= self._ready.put(agent_id, ready)
            self._coming.put(agent_id, coming)
            if until_s < self._due_s.get(agent_id, inf):
                self._due_s[agent_id] = until_s
                heappush(self._due, (until_s, agent_id))
        self._stirred = set()
        self.epoch += is_changed

    def _standing(self, agent: _Agent, now_s: float) -> tuple[tuple[Expert, ...], tuple[Expert, ...], float]:
        """The agent's experts that take requests, those that are being loaded, and until when that may hold."""
        if not agent.connected or agent.report_s is None or agent.report is None or agent.report.draining:
            return (), (), inf
        suspended_until_s = self._suspensions.ends_s(agent.hello.agent_id, now_s)
        if suspended_until_s is not None:
            return (), (), suspended_until_s
        stale_at_s = agent.report_s + self._stale_s
        if stale_at_s <= now_s:
            return (), (), inf
        if agent.experts is None:
            agent.experts = tuple(_expert(agent, expert) for expert in agent.report.experts)
        ready = tuple(expert for expert in agent.experts if _takes_requests(expert.report))
        coming = tuple(
            expert
            for expert in agent.experts
            if expert.report.state is ExpertState.LOADING and not _takes_requests(expert.report)
        )
        return ready, coming, stale_at_s if ready or coming else inf

    def _row(self, agent: _Agent, now_s: float) -> AgentRow:
        report = agent.report
        broke = self._suspensions.warning(agent.hello.agent_id, now_s)
        return AgentRow(
            agent_id=agent.hello.agent_id,
            agent_name=agent.hello.agent_name,
            version=agent.hello.agent_version,
            connected=agent.connected,
            draining=bool(report and report.draining),
            report_age_s=None if agent.report_s is None else now_s - agent.report_s,
            rtt_s=agent.rtts_s[-1] if agent.rtts_s else None,
            host=report.host if report else None,
            experts=report.experts if report else (),
            sensors=report.sensors if report else (),
            warnings=((broke,) if broke else ()) + (report.warnings if report else ()),
            standby=report.standby if report else None,
            models=report.models if report else None,
            asleep=agent.asleep,
        )


def _expert(agent: _Agent, report: ExpertReport) -> Expert:
    """The expert of an agent as it reports it."""
    return Expert(
        key=f"{agent.hello.agent_id}/{report.model}",
        agent_id=agent.hello.agent_id,
        agent_name=agent.hello.agent_name,
        model=report.model,
        report=report,
        rtt_s=agent.settled_rtt_s,
        protocol=agent.protocol,
    )


def _differs(old: Report, new: Report) -> bool:
    """Whether two reports of an agent differ in what choices depend on."""
    if old.draining != new.draining:
        return True
    return old.experts is not new.experts and not is_same_choice(old.experts, new.experts)


def _contexts(report: Report) -> list[tuple[str, int]]:
    """The models of an agent, each with its tokens of context."""
    return [(expert.model, expert.context_tokens) for expert in report.experts]


def _takes_requests(expert: ExpertReport) -> bool:
    """Whether an expert takes requests: it is ready, or loaded for whoever asks."""
    if expert.state is ExpertState.READY:
        return True
    return expert.on_demand and expert.state in (ExpertState.COLD, ExpertState.LOADING)
