"""First trials: a change of state that was never made is made once, to measure it, at the cost of no answer. PURE.

What sleeping saves and takes is known only of a host that has slept, and a host is sent to sleep only where that is
known. So an idle host that may sleep is suspended for two minutes, and an idle expert unloaded as long. Others have to
keep the service meanwhile, the hour has to be a quiet one, and a host is only suspended if a way to wake it is known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness
from moe2.coordinator.provisioning.hysteresis import DAY_S, IDLE, Activity, Change, Rules, Transition

TRIAL_AFTER_S = 300.0
"""Seconds without a request after which a host may be tried."""
TRIAL_S = 120.0
"""Seconds for which an expert stays out of memory, or a host asleep: idle watts and metered plugs need a minute."""
MAX_SLEEPS = 2
"""Suspensions of a host only to measure it: one, and one more where not all of the first could be measured."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Trials of one kind on one host, as kept over a restart. change: "unload" or "suspend". n: how many were begun.

    expert: the one that was unloaded the last time. is_open: the host is not yet back from the last one.
    """

    host: str
    change: Change
    expert: str | None = None
    n: int = 1
    is_open: bool = True


@dataclass
class _Begun:
    trial: Trial
    began_s: float


@dataclass(frozen=True)
class Circumstances:
    """What is so in this hour. spare: keys of the hosts that others can stand in for. is_quiet: few ask now."""

    spare: Collection[str] = ()
    is_quiet: bool = False


@dataclass
class Trials:
    """Remembers which trials were begun. Times are of a monotonic clock."""

    _begun: dict[tuple[str, Change], _Begun] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[Trial, ...]:
        """The trials under way, which are to outlive a restart of the coordinator."""
        return tuple(self._begun[key].trial for key in sorted(self._begun))

    def restore(self, kept: Collection[Trial], now_s: float) -> None:
        """Takes over what was kept. A trial that was under way is taken as begun now, and so ends in its time."""
        for trial in kept:
            self._begun.setdefault((trial.host, trial.change), _Begun(trial, now_s))

    @property
    def are_open(self) -> bool:
        """Whether a host or an expert is not yet back from a trial."""
        return any(one.trial.is_open for one in self._begun.values())

    def began(self, transition: Transition, now_s: float) -> None:
        """Notes a trial that `next` has proposed and that begins now."""
        key = (transition.host, transition.change)
        former = self._begun.get(key)
        n = former.trial.n + 1 if former else 1
        self._begun[key] = _Begun(
            Trial(host=transition.host, change=transition.change, expert=transition.expert, n=n), now_s
        )

    def ends(
        self, fleet: Fleet, activity: Mapping[str, Activity], rules: Rules, now_s: float
    ) -> tuple[Transition, ...]:
        """The changes that bring hosts back from their trials. A trial is over once its host is seen back."""
        found = []
        for begun in self._begun.values():
            trial = begun.trial
            # An agent that has just connected has not said yet what state its experts are in.
            if not trial.is_open or activity.get(trial.host, IDLE).is_changing or not fleet.on(trial.host):
                continue
            if not _is_away(trial, fleet.on(trial.host)):
                begun.trial = msgspec.structs.replace(trial, is_open=False)
            elif now_s - begun.began_s >= TRIAL_S and trial.host not in rules.keep_asleep | rules.unreachable:
                back = Change.LOAD if trial.change is Change.UNLOAD else Change.WAKE
                expert = trial.expert if back is Change.LOAD else None
                found.append(Transition(back, trial.host, expert, "what was tried with it has been measured"))
        return tuple(found)

    def next(
        self,
        fleet: Fleet,
        activity: Mapping[str, Activity],
        rules: Rules,
        now_s: float,
        circumstances: Circumstances,
    ) -> Transition | None:
        """The next trial that may begin now; None where there is nothing to measure, or it could cost an answer."""
        if self.are_open or not circumstances.is_quiet:
            return None
        for host in fleet.hosts:
            doing = activity.get(host.key, IDLE)
            wished = rules.keep_awake | rules.keep_asleep | rules.unreachable
            if host.key in wished or host.key not in circumstances.spare:
                continue
            if doing.busy or doing.is_changing or now_s - doing.idle_since_s < TRIAL_AFTER_S:
                continue
            if doing.changes_within(now_s) + 2 > rules.max_changes_per_day:
                continue
            found = self._unload(host, fleet.on(host.key), now_s) or self._sleep(host, fleet.on(host.key), now_s)
            if found is not None:
                return found
        return None

    def _unload(self, host: HostFigures, own: tuple[ExpertFigures, ...], now_s: float) -> Transition | None:
        if not host.may_unload or not self._is_new_day(host.key, Change.UNLOAD, now_s):
            return None
        for one in own:
            if one.readiness is Readiness.READY and is_unmeasured(host, one):
                reason = "what it draws and what a reload takes is unmeasured: for two minutes, to measure it"
                return Transition(Change.UNLOAD, host.key, one.key, reason)
        return None

    def _sleep(self, host: HostFigures, own: tuple[ExpertFigures, ...], now_s: float) -> Transition | None:
        former = self._begun.get((host.key, Change.SUSPEND))
        if former is not None and former.trial.n >= MAX_SLEEPS:
            return None
        if not _may_try_sleep(host) or not self._is_new_day(host.key, Change.SUSPEND, now_s):
            return None
        if not own or any(one.readiness not in (Readiness.READY, Readiness.COLD) for one in own):
            return None
        reason = "what its sleep saves and its return takes is unmeasured: for two minutes, to measure it"
        return Transition(Change.SUSPEND, host.key, None, reason)

    def _is_new_day(self, host: str, change: Change, now_s: float) -> bool:
        former = self._begun.get((host, change))
        return now_s - (former.began_s if former else -math.inf) >= DAY_S


def is_unmeasured(host: HostFigures, expert: ExpertFigures) -> bool:
    """Whether unloading an expert can tell what is not known of it: not on a host whose watts nobody measures."""
    return host.awake_w is not None and (expert.ready_w is None or expert.load_j is None)


def _may_try_sleep(host: HostFigures) -> bool:
    """Whether a suspension can tell what is not known of the host, and the host comes back as far as can be known."""
    if not host.may_suspend or not host.wake_is_known or host.awake_w is None:
        return False
    if host.asleep_w is None and not host.has_plug:
        # Nobody could tell what it draws asleep: neither a plug, nor the operator in `asleep_w`.
        return False
    return not host.can_sleep


def _is_away(trial: Trial, own: tuple[ExpertFigures, ...]) -> bool:
    """Whether what the trial has changed is still so."""
    if trial.change is Change.SUSPEND:
        return bool(own) and all(one.readiness is Readiness.ASLEEP for one in own)
    return any(one.key == trial.expert and one.readiness is Readiness.COLD for one in own)
