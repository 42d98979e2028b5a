"""The state of the slow level: what was asked for, what is under way, what came of it, what an operator wants. PURE.

What hosts are in is never remembered but read from what agents report, so that a coordinator that starts in the middle
of a change finds it again. A change that does not end in its time is told, and a host that was not woken is not counted
on until its agent is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import LoadModel, Suspend, UnloadModel
from moe2.coordinator.fleet.table import MAX_UNMEASURED_WAKE_S
from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness
from moe2.coordinator.provisioning.hysteresis import DAY_S, IDLE, Activity, Change, Rules, Transition, transitions
from moe2.coordinator.provisioning.trials import Circumstances, Trials, is_unmeasured

MAX_CHANGES_KEPT = 64
CHANGE_S = 3600.0
"""Running jobs are waited for, whatever they take, as long as this."""
MIN_TIMEOUT_S = 60.0
TIMES_MEASURED = 3.0
"""A change may take this many times what it was measured to take before it counts as failed."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has said of hosts, by the agents' ids."""

    pinned: tuple[str, ...] = ()
    kept_asleep: tuple[str, ...] = ()

    def with_pin(self, host: str) -> Wishes:
        """The wishes with a host that stays awake."""
        return Wishes(pinned=_with(self.pinned, host), kept_asleep=_without(self.kept_asleep, host))

    def with_sleep(self, host: str) -> Wishes:
        """The wishes with a host that sleeps until it is woken."""
        return Wishes(pinned=_without(self.pinned, host), kept_asleep=_with(self.kept_asleep, host))

    def without(self, host: str) -> Wishes:
        """The wishes with a host that the slow level decides on."""
        return Wishes(pinned=_without(self.pinned, host), kept_asleep=_without(self.kept_asleep, host))


class Away(msgspec.Struct, frozen=True, kw_only=True):
    """What the slow level itself has put out of the way and not seen back: a host asleep, or an expert unloaded."""

    host: str
    expert: str | None = None
    """Key of the expert; None where the whole host sleeps."""


@dataclass(frozen=True)
class Order:
    """A change of state to ask for, with the id under which its answer comes back."""

    order_id: str
    transition: Transition


def command_of(order: Order) -> Suspend | LoadModel | UnloadModel | None:
    """What to tell the host's agent; None for a wake, as it sleeps."""
    one = order.transition
    model = (one.expert or "").partition("/")[2]
    match one.change:
        case Change.WAKE:
            return None
        case Change.SUSPEND:
            return Suspend(command_id=order.order_id)
        case Change.LOAD:
            return LoadModel(command_id=order.order_id, model=model)
        case Change.UNLOAD:
            return UnloadModel(command_id=order.order_id, model=model)


@dataclass(frozen=True)
class _Pending:
    order: Order
    since_s: float
    until_s: float


@dataclass
class _Host:
    idle_since_s: float
    busy: int = 0
    changed_s: list[float] = field(default_factory=list)
    unloaded_s: float = -math.inf
    """When somebody else last had one of its experts unloaded."""
    is_asleep: bool | None = None
    """As it was last seen; None where it was not seen yet."""
    in_memory: frozenset[str] = frozenset()
    """Keys of the experts that were last seen ready."""
    pending: _Pending | None = None

    def note_change(self, now_s: float) -> None:
        """Counts a change of its state."""
        self.changed_s = [*(at_s for at_s in self.changed_s if at_s > now_s - DAY_S), now_s][-MAX_CHANGES_KEPT:]


class Steering:
    """The slow level's memory. Times are of a monotonic clock.

    run: a word that no earlier run of the coordinator had, so that late answers to its orders are not taken for others.
    """

    def __init__(self, *, max_changes_per_day: int, wishes: Wishes, run: str = "slow") -> None:
        self._run = run
        self.max_changes_per_day = max_changes_per_day
        self.wishes = wishes
        self.pinned_by_settings: frozenset[str] = frozenset()
        self._hosts: dict[str, _Host] = {}
        self._fleet = Fleet((), ())
        self._unreachable: dict[str, str] = {}
        """Hosts that could not be woken, with their names."""
        self._failed: dict[str, HealthWarning] = {}
        self.trials = Trials()
        self._away: set[Away] = set()
        self._number = 0

    @property
    def unreachable(self) -> frozenset[str]:
        """Hosts that could not be woken, and have not been seen since."""
        return frozenset(self._unreachable)

    @property
    def not_woken(self) -> dict[str, str]:
        """The names of the unreachable hosts by their keys, which outlive a restart."""
        return dict(self._unreachable)

    def restore_not_woken(self, names: Mapping[str, str]) -> None:
        """Takes over from an earlier run which hosts could not be woken."""
        for key, name in names.items():
            self._not_woken(key, name, "it was told to before the coordinator was restarted")

    @property
    def away(self) -> tuple[Away, ...]:
        """What is out of the way because of the traffic, and no operator's wish; it outlives a restart."""
        return tuple(sorted(self._away, key=lambda one: (one.host, one.expert or "")))

    def restore_away(self, away: Collection[Away]) -> None:
        """Takes over from an earlier run what it had put out of the way."""
        self._away.update(away)

    @property
    def changes(self) -> dict[str, tuple[float, ...]]:
        """When each host has changed its state in the last day; it outlives a restart."""
        return {key: tuple(known.changed_s) for key, known in self._hosts.items() if known.changed_s}

    def restore_changes(self, changes: Mapping[str, Collection[float]], now_s: float) -> None:
        """Takes over when hosts have changed. A time to come, as after a clock was set back, counts as now."""
        for key, changed_s in changes.items():
            known = self._hosts.setdefault(key, _Host(idle_since_s=now_s))
            known.changed_s = sorted(min(at_s, now_s) for at_s in changed_s if at_s > now_s - DAY_S)

    @property
    def has_pending(self) -> bool:
        """Whether any change has been asked for and has not ended."""
        return any(known.pending for known in self._hosts.values())

    @property
    def falling(self) -> frozenset[str]:
        """Hosts that have been told to go to sleep, and are not seen to sleep yet."""
        pending = ((key, known.pending) for key, known in self._hosts.items())
        return frozenset(key for key, one in pending if one and one.order.transition.change is Change.SUSPEND)

    def lost(self, host: str, *, asleep: bool) -> None:
        """An agent's session has ended: what was asked of it is over. asleep: it has gone to sleep, as it was told."""
        known = self._hosts.get(host)
        if known is None or known.pending is None or known.pending.order.transition.change is Change.WAKE:
            return
        if not (asleep and known.pending.order.transition.change is Change.SUSPEND):
            known.pending = None

    def waking(self, host: str) -> bool:
        """Whether a host has been told to wake, and its time for that is not over."""
        known = self._hosts.get(host)
        return bool(known and known.pending and known.pending.order.transition.change is Change.WAKE)

    def seen(self, fleet: Fleet, busy: Mapping[str, int], now_s: float, *, others_act: bool = False) -> None:
        """Takes in what agents report now. busy: requests of each host's experts.

        others_act: another coordinator puts hosts to sleep and unloads models, which this one may have to bring back.
        """
        self._fleet = fleet
        for host in fleet.hosts:
            own = fleet.on(host.key)
            known = self._hosts.setdefault(host.key, _Host(idle_since_s=now_s))
            known.busy = busy.get(host.key, 0)
            if known.busy:
                known.idle_since_s = now_s
            is_awake = not own or any(one.readiness is not Readiness.ASLEEP for one in own)
            if own:
                self._see_changes(host, own, known, now_s, others_act=others_act)
            if is_awake:
                self._unreachable.pop(host.key, None)
                if (failed := self._failed.get(host.key)) is not None and failed.code == "wake_failed":
                    del self._failed[host.key]
            if known.pending and _has_ended(known.pending.order.transition, own):
                known.pending = None
                known.idle_since_s = max(known.idle_since_s, now_s) if is_awake else known.idle_since_s
                self._failed.pop(host.key, None)
        self._away = {one for one in self._away if self._is_changing(one.host) or not _is_back(one, fleet)}
        for key in set(self._hosts) - {host.key for host in fleet.hosts}:
            # Its agent is lost: whatever was asked of it is over, but how often it changed is not forgotten.
            pending = self._hosts[key].pending
            if pending is not None and now_s >= pending.until_s:
                self._hosts[key].pending = None

    def _see_changes(
        self, host: HostFigures, own: tuple[ExpertFigures, ...], known: _Host, now_s: float, *, others_act: bool
    ) -> None:
        """Takes in what has changed on a host without an order from here: another coordinator's, or somebody's hand."""
        is_asleep = all(one.readiness is Readiness.ASLEEP for one in own)
        in_memory = frozenset(one.key for one in own if one.readiness is Readiness.READY)
        cold = (one for one in own if one.readiness is Readiness.COLD and one.key in known.in_memory)
        pending = known.pending.order.transition if known.pending else None
        has_flipped = known.is_asleep is not None and known.is_asleep != is_asleep
        if has_flipped and (pending is None or pending.change is not (Change.SUSPEND if is_asleep else Change.WAKE)):
            known.note_change(now_s)
            if is_asleep and others_act:
                self._gone_elsewhere(Transition(Change.SUSPEND, host.key, None, ""), host.can_sleep, now_s)
        for one in cold if others_act else ():
            known.unloaded_s = now_s
            is_measured = not is_unmeasured(host, one)
            self._gone_elsewhere(Transition(Change.UNLOAD, host.key, one.key, ""), is_measured, now_s)
        known.is_asleep, known.in_memory = is_asleep, in_memory

    def _gone_elsewhere(self, one: Transition, is_measured: bool, now_s: float) -> None:
        """Another coordinator has put something out of the way; what was not measured, it did to measure it."""
        if one.host in self.wishes.kept_asleep:
            return
        self._away.add(Away(host=one.host, expert=one.expert))
        if not is_measured:
            self.trials.began(one, now_s)

    def overdue(self, now_s: float) -> tuple[Transition, ...]:
        """Gives up the changes that have not ended in their time, and returns them."""
        late = []
        for key, known in self._hosts.items():
            if known.pending and now_s >= known.pending.until_s:
                took_s = known.pending.until_s - known.pending.since_s
                self._fail(key, known.pending.order.transition, f"not within {took_s:.0f} s")
                late.append(known.pending.order.transition)
                known.pending = None
        return tuple(late)

    def answered(self, order_id: str, *, done: bool, code: str | None, message: str | None) -> Transition | None:
        """Takes in an agent's answer to an order; returns the change that will not be, or None.

        What was done is seen in the agent's reports. One that is only busy is not told, and may be asked again.
        """
        for key, known in self._hosts.items():
            pending = known.pending
            if pending is None or pending.order.order_id != order_id:
                continue
            if done:
                return None
            known.pending = None
            if code != "busy":
                self._fail(key, pending.order.transition, message or code or "it gave no reason")
            return pending.order.transition
        return None

    def next_orders(
        self, wanted: Collection[str], now_s: float, *, wanted_again_s: Callable[[str], float]
    ) -> tuple[Order, ...]:
        """The changes to ask for now, which from here on count as under way."""
        found = transitions(
            self._fleet, wanted, self.activity(), now_s, wanted_again_s=wanted_again_s, rules=self.rules()
        )
        for one in found:
            if one.change in (Change.SUSPEND, Change.UNLOAD) and one.host not in self.wishes.kept_asleep:
                self._away.add(Away(host=one.host, expert=one.expert))
        return tuple(self._begin(one, now_s) for one in found)

    def return_orders(self, now_s: float) -> tuple[Order, ...]:
        """The changes that bring back what was put out of the way, once nothing more is to be put there.

        What an operator has sent to sleep stays, and a host that could not be woken is left until it is seen.
        """
        activity, rules, found = self.activity(), self.rules(), []
        for one in self.away:
            if one.host in rules.keep_asleep | rules.unreachable or not self._fleet.has(one.host):
                continue
            if activity.get(one.host, IDLE).is_changing or not _is_gone(one, self._fleet):
                continue
            back = Change.WAKE if one.expert is None else Change.LOAD
            found.append(Transition(back, one.host, one.expert, "mode act is over, in which it was put to sleep"))
        return tuple(self._begin(one, now_s) for one in found)

    def wished_orders(self, now_s: float) -> tuple[Order, ...]:
        """The changes that an operator's wishes ask for, whatever the traffic is."""
        wished = {*self.wishes.kept_asleep, *self.wishes.pinned}
        if not wished:
            return ()
        found = transitions(
            self._fleet,
            [expert.key for expert in self._fleet.experts if expert.readiness is Readiness.READY],
            self.activity(),
            now_s,
            wanted_again_s=lambda _: math.inf,
            rules=self.rules(),
        )
        return tuple(self._begin(one, now_s) for one in found if one.host in wished)

    def trial_orders(self, now_s: float, circumstances: Circumstances) -> tuple[Order, ...]:
        """The change that measures what nobody knows yet, if one may be made now."""
        tried = self.would_try(now_s, circumstances)
        if tried is None or self.has_pending:
            return ()
        self.trials.began(tried, now_s)
        return (self._begin(tried, now_s),)

    def would_try(self, now_s: float, circumstances: Circumstances) -> Transition | None:
        """The trial that could begin now, for those who only look."""
        return self.trials.next(self._fleet, self.activity(), self.rules(), now_s, circumstances)

    def trial_ends(self, now_s: float) -> tuple[Order, ...]:
        """The changes that bring hosts back from their trials, also where no new ones are begun any more."""
        found = self.trials.ends(self._fleet, self.activity(), self.rules(), now_s)
        return tuple(self._begin(one, now_s) for one in found)

    def wake(self, host: str, now_s: float, reason: str) -> Order | None:
        """The order to wake a sleeping host; None where it is not asleep, or is already told."""
        own = self._fleet.on(host)
        if not own or any(one.readiness is not Readiness.ASLEEP for one in own) or self.waking(host):
            return None
        self._unreachable.pop(host, None)
        return self._begin(Transition(Change.WAKE, host, None, reason), now_s)

    def _is_changing(self, host: str) -> bool:
        known = self._hosts.get(host)
        return known is not None and known.pending is not None

    def activity(self) -> dict[str, Activity]:
        """What each host has been doing."""
        return {
            key: Activity(
                busy=known.busy,
                idle_since_s=known.idle_since_s,
                changed_s=tuple(known.changed_s),
                unloaded_s=known.unloaded_s,
                is_changing=known.pending is not None,
            )
            for key, known in self._hosts.items()
        }

    def rules(self) -> Rules:
        """The bounds of what may change."""
        return Rules(
            max_changes_per_day=self.max_changes_per_day,
            keep_asleep=frozenset(self.wishes.kept_asleep),
            keep_awake=self.pinned_by_settings | frozenset(self.wishes.pinned),
            unreachable=self.unreachable,
        )

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What an operator should know of changes that failed."""
        return tuple(self._failed[key] for key in sorted(self._failed))

    def _begin(self, transition: Transition, now_s: float) -> Order:
        self._number += 1
        order = Order(f"{self._run}-{self._number}", transition)
        host = self._fleet.host(transition.host)
        known = self._hosts.setdefault(transition.host, _Host(idle_since_s=now_s))
        known.note_change(now_s)
        known.pending = _Pending(order, now_s, now_s + _timeout_s(transition, host, self._fleet.on(host.key)))
        return order

    def _fail(self, key: str, transition: Transition, why: str) -> None:
        name = self._fleet.host(key).name if self._fleet.has(key) else key
        if transition.change is Change.WAKE:
            self._not_woken(key, name, why)
            return
        what = {Change.SUSPEND: "go to sleep", Change.LOAD: "load its model", Change.UNLOAD: "unload its model"}
        self._failed[key] = HealthWarning(
            code="standby_failed",
            severity=Severity.NOTICE,
            message=f"{name} did not {what[transition.change]}: {why}.",
            remedy=f"On {name}: `moe2-agent status` and the agent's log.",
        )

    def _not_woken(self, key: str, name: str, why: str) -> None:
        self._unreachable[key] = name
        self._failed[key] = HealthWarning(
            code="wake_failed",
            severity=Severity.DEGRADED,
            message=f"{name} was not woken: {why}. It is not counted on until its agent is seen.",
            remedy=f"Switch {name} on. Then look whether its network card wakes it (`ethtool`), and whether magic "
            "packets reach its network; provisioning.wake_command can do it by other means.",
        )


def _has_ended(transition: Transition, own: tuple[ExpertFigures, ...]) -> bool:
    """Whether a change has come to its end, by what is reported of the host's experts."""
    states = {one.key: one.readiness for one in own}
    match transition.change:
        case Change.WAKE:
            return any(state is not Readiness.ASLEEP for state in states.values())
        case Change.SUSPEND:
            return bool(states) and all(state is Readiness.ASLEEP for state in states.values())
        case Change.LOAD:
            return states.get(transition.expert or "") is Readiness.READY
        case Change.UNLOAD:
            return states.get(transition.expert or "") is Readiness.COLD


def _is_gone(away: Away, fleet: Fleet) -> bool:
    """Whether a host sleeps, or an expert is out of memory, by what is reported of it now."""
    own = fleet.on(away.host)
    if away.expert is None:
        return bool(own) and all(one.readiness is Readiness.ASLEEP for one in own)
    return any(one.key == away.expert and one.readiness is Readiness.COLD for one in own)


def _is_back(away: Away, fleet: Fleet) -> bool:
    """Whether what was put out of the way is seen in memory again; one that has not left yet is not back."""
    own = fleet.on(away.host)
    if away.expert is None:
        return any(one.readiness is not Readiness.ASLEEP for one in own)
    return any(one.key == away.expert and one.readiness in (Readiness.READY, Readiness.LOADING) for one in own)


def _timeout_s(transition: Transition, host: HostFigures, own: tuple[ExpertFigures, ...]) -> float:
    """Seconds that a change may take."""
    match transition.change:
        case Change.WAKE:
            return MAX_UNMEASURED_WAKE_S if host.wake_s is None else max(MIN_TIMEOUT_S, TIMES_MEASURED * host.wake_s)
        case Change.LOAD:
            load_s = max((one.load_s or 0.0 for one in own), default=0.0)
            return max(MIN_TIMEOUT_S * 10, TIMES_MEASURED * load_s)
        case Change.SUSPEND | Change.UNLOAD:
            return CHANGE_S


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(sorted({*names, name}))


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
