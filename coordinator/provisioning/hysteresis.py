"""From who should be awake to who changes state now: ski rental with predictions, and no change too soon. PURE.

A host that nobody wants rents its idle watts until buying sleep pays: after part of its break-even time where it is
predicted to stay unwanted for longer than that, else after a multiple (Purohit, Svitkina and Kumar 2018). It never
costs more than `1 + 1 / TRUST` times what hindsight would, however wrong the prediction is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness

TRUST = 0.5
"""Part of the break-even time that is waited where the prediction says sleep; its inverse where it says stay."""
DAY_S = 86_400.0


class Change(StrEnum):
    """A change of state that the coordinator can ask for."""

    WAKE = "wake"
    SUSPEND = "suspend"
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Transition:
    """One change of state, with why it pays. host: key of the host. expert: key of the expert that is loaded or not."""

    change: Change
    host: str
    expert: str | None
    reason: str
    saves_w: float | None = None
    """Watts that are not drawn afterwards."""
    costs_j: float | None = None
    """Joules of going and coming back."""


@dataclass(frozen=True)
class Activity:
    """What a host has been doing, in seconds of the clock that `now_s` is read from."""

    busy: int = 0
    """Requests that its experts have, waiting ones included."""
    idle_since_s: float = -math.inf
    changed_s: tuple[float, ...] = ()
    """When it changed state, the oldest first."""
    unloaded_s: float = -math.inf
    """When another coordinator last had one of its models unloaded."""
    is_changing: bool = False
    """A change has been asked for and has not ended."""

    def changes_within(self, now_s: float, span_s: float = DAY_S) -> int:
        """Changes of state in the last `span_s` seconds."""
        return sum(1 for at_s in self.changed_s if now_s - span_s < at_s <= now_s)

    @property
    def last_s(self) -> float:
        """When it last changed state; -inf if it has not."""
        return max(self.unloaded_s, self.changed_s[-1] if self.changed_s else -math.inf)


IDLE = Activity()


def break_even_s(host: HostFigures, experts: Collection[ExpertFigures]) -> float:
    """Seconds of sleep with which a host makes up for going to sleep and coming back with these experts in memory.

    It is at least as long as going and coming take, and inf where that is not measured.
    """
    saves_w, costs_j = sleep_saves(host, experts)
    if saves_w is None or costs_j is None or saves_w <= 0.0:
        return math.inf
    takes_s = (host.suspend_s or 0.0) + (host.wake_s or 0.0) + max((one.load_s or 0.0 for one in experts), default=0.0)
    return max(costs_j / saves_w, takes_s)


def sleep_saves(host: HostFigures, experts: Collection[ExpertFigures]) -> tuple[float | None, float | None]:
    """Watts that a host's sleep saves, and joules of going and coming back; None where unmeasured."""
    if not host.can_sleep or host.awake_w is None or host.asleep_w is None:
        return None, None
    if host.wake_j is None or host.suspend_j is None:
        return None, None
    saves_w = host.awake_w - host.asleep_w + sum(one.ready_w or 0.0 for one in experts)
    return saves_w, host.wake_j + host.suspend_j + sum(one.load_j or 0.0 for one in experts)


def unload_break_even_s(expert: ExpertFigures) -> float:
    """Seconds in which an expert out of memory makes up for its reload; inf where that is not measured."""
    if not expert.ready_w or expert.ready_w <= 0.0 or expert.load_j is None:
        return math.inf
    return max((expert.load_j + (expert.unload_j or 0.0)) / expert.ready_w, expert.load_s or 0.0)


@dataclass(frozen=True)
class Rules:
    """How often a host may change state, and what an operator has said."""

    max_changes_per_day: int = 24
    keep_asleep: frozenset[str] = frozenset()
    """Hosts that an operator has sent to sleep: they go at once when their jobs have ended."""
    keep_awake: frozenset[str] = frozenset()
    """Hosts that are pinned: they are woken at once."""
    unreachable: frozenset[str] = frozenset()
    """Hosts whose wake failed: they are not woken again until they have been seen."""


def transitions(
    fleet: Fleet,
    wanted: Collection[str],
    activity: Mapping[str, Activity],
    now_s: float,
    *,
    wanted_again_s: Callable[[str], float],
    rules: Rules,
) -> tuple[Transition, ...]:
    """The changes of state to begin now. wanted: keys of the experts to have in memory.

    wanted_again_s: the seconds after which an expert that is not wanted is predicted to be wanted again. Whoever comes
    is seen before anybody goes: hosts go to sleep only when all wanted experts are in memory, as far as they can be.
    """
    wanted = frozenset(wanted)
    coming: list[Transition] = []
    going: list[Transition] = []
    for host in fleet.hosts:
        own = fleet.on(host.key)
        doing = activity.get(host.key, IDLE)
        if doing.is_changing or not own:
            continue
        asleep = all(one.readiness is Readiness.ASLEEP for one in own)
        wants = [one for one in own if one.key in wanted]
        if asleep:
            if wants or host.key in rules.keep_awake:
                coming.extend(_wake(host, own, doing, now_s, rules))
            continue
        coming.extend(_loads(host, wants, doing, now_s, rules))
        if host.key in rules.keep_awake:
            continue
        if not wants or host.key in rules.keep_asleep:
            going.extend(_sleep(host, own, doing, now_s, wanted_again_s, rules))
        else:
            going.extend(_unloads(host, own, wanted, doing, now_s, wanted_again_s, rules))
    here = {one.key for one in fleet.experts if one.readiness is Readiness.READY}
    reachable = {one.key for one in fleet.experts if one.host not in rules.unreachable}
    # Where none of the wanted ones is there, as after a wake that failed, whoever is awake is needed.
    if wanted & reachable <= here and (not wanted or wanted & here):
        return (*coming, *going)
    return (*coming, *(one for one in going if one.host in rules.keep_asleep))


def _wake(
    host: HostFigures, own: tuple[ExpertFigures, ...], doing: Activity, now_s: float, rules: Rules
) -> list[Transition]:
    if host.key in rules.keep_asleep or host.key in rules.unreachable:
        return []
    pinned = host.key in rules.keep_awake
    pays_s = break_even_s(host, own)
    # Where it is not known what sleep saves, nobody sent it to sleep for that, and nothing speaks against its return.
    if not pinned and not _may_change(doing, now_s, 0.0 if math.isinf(pays_s) else pays_s, rules, leaves=0):
        return []
    reason = "it is pinned" if pinned else "the traffic that is coming wants it"
    return [Transition(Change.WAKE, host.key, None, reason)]


def _loads(
    host: HostFigures, wants: list[ExpertFigures], doing: Activity, now_s: float, rules: Rules
) -> list[Transition]:
    return [
        Transition(Change.LOAD, host.key, one.key, "the traffic that is coming wants it")
        for one in wants
        if one.readiness is Readiness.COLD
        and (host.key in rules.keep_awake or _may_change(doing, now_s, unload_break_even_s(one), rules, leaves=0))
    ]


def _sleep(
    host: HostFigures,
    own: tuple[ExpertFigures, ...],
    doing: Activity,
    now_s: float,
    wanted_again_s: Callable[[str], float],
    rules: Rules,
) -> list[Transition]:
    """A host's suspension if it pays now; else the unloading of its models where that may be done and pays."""
    saves_w, costs_j = sleep_saves(host, own)
    if host.key in rules.keep_asleep and host.may_suspend:
        return [Transition(Change.SUSPEND, host.key, None, "an operator has asked for it", saves_w, costs_j)]
    if not host.can_sleep:
        return _unloads(host, own, (), doing, now_s, wanted_again_s, rules)
    pays_s = break_even_s(host, own)
    again_s = min((wanted_again_s(one.key) for one in own), default=math.inf)
    if doing.busy or not _may_change(doing, now_s, pays_s, rules, leaves=1):
        return []
    if now_s - doing.idle_since_s < _patience_s(pays_s, again_s):
        return []
    reason = f"nobody is predicted to want it for {_words(again_s)}, and {_words(pays_s)} of sleep pay for its return"
    return [Transition(Change.SUSPEND, host.key, None, reason, saves_w, costs_j)]


def _unloads(
    host: HostFigures,
    own: tuple[ExpertFigures, ...],
    wanted: Collection[str],
    doing: Activity,
    now_s: float,
    wanted_again_s: Callable[[str], float],
    rules: Rules,
) -> list[Transition]:
    if not host.may_unload or doing.busy:
        return []
    found = []
    for one in own:
        if one.key in wanted or one.readiness is not Readiness.READY:
            continue
        pays_s, again_s = unload_break_even_s(one), wanted_again_s(one.key)
        if math.isinf(pays_s) or not _may_change(doing, now_s, pays_s, rules, leaves=1):
            continue
        if now_s - doing.idle_since_s >= _patience_s(pays_s, again_s):
            reason = f"nobody is predicted to want it for {_words(again_s)}; a reload pays after {_words(pays_s)}"
            costs_j = (one.load_j or 0.0) + (one.unload_j or 0.0)
            found.append(Transition(Change.UNLOAD, host.key, one.key, reason, one.ready_w, costs_j))
    return found


def _patience_s(pays_s: float, again_s: float) -> float:
    """Seconds that a host idles before it goes to sleep."""
    return TRUST * pays_s if again_s > pays_s else pays_s / TRUST


def _may_change(doing: Activity, now_s: float, pays_s: float, rules: Rules, *, leaves: int) -> bool:
    """Whether a change is neither too soon after the last nor one too many, with `leaves` more kept for coming back."""
    if math.isinf(pays_s) or now_s - doing.last_s < pays_s:
        return False
    most = rules.max_changes_per_day
    if doing.changes_within(now_s) + 1 + leaves > most:
        return False
    # A quarter of a day's changes may come at once, the others at the pace of a day, so that evenings have some left.
    recent = doing.changes_within(now_s, DAY_S / 4)
    return leaves == 0 or recent + 1 + leaves <= max(2, most / 2)


def _words(seconds: float) -> str:
    """Seconds in words."""
    if math.isinf(seconds):
        return "a week"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
