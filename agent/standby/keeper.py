"""Follows how this host waits, keeps it on disk, and says it in reports."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

import structlog
from msgspec.structs import replace

from moe2.agent.energy.account import HostAccount
from moe2.agent.energy.comparison import AsleepPower
from moe2.agent.standby.store import StoredIdle, StoredStandby, load_standby, store_standby
from moe2.agent.standby.transitions import Key, Transition, TransitionLog
from moe2.common.energy import Quality, Scope
from moe2.common.errors import Moe2Error
from moe2.common.link.reports import ExpertReport
from moe2.common.standby import MAX_IDLE_STATES, Cause, IdlePower, Standby, WakeAddress

log = structlog.get_logger()

MAX_WAKE_S = 300.0
"""A host that has not found the coordinator by then is awake all the same; the coordinator is what is missing."""


@dataclass(frozen=True)
class Allowed:
    """What the configuration says about waiting. asleep_w: what the operator has measured at the wall, if anything."""

    unload: bool = False
    suspend: bool = False
    asleep_w: float | None = None


class StandbyKeeper:
    """The host's changes of state and idle powers, as they are told; all of it belongs to the event loop's thread.

    file_of: SHA-256 of the file that a model is served from now, None where it is not known: what was measured of
    another file under the same name does not count. clock, wall: monotonic seconds and Unix time.
    """

    def __init__(
        self,
        state_dir: Path,
        allowed: Allowed,
        *,
        file_of: Callable[[str], str | None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
    ) -> None:
        self._state_dir = state_dir
        self._allowed = allowed
        self._file_of = file_of
        self._files: dict[str, str] = {}
        """The files that models were served from when they were last looked at."""
        self._clock = clock
        self._wall = wall
        self._epoch = uuid.uuid4().hex
        self._log = TransitionLog()
        self._stored: dict[tuple[str | None, tuple[str, ...]], StoredIdle] = {}
        self._asleep_s: float | None = None
        self._measured_asleep: tuple[float, AsleepPower] | None = None
        self.suspend_fault: str | None = None
        self.wake_addresses: tuple[WakeAddress, ...] = ()

    @property
    def is_changing(self) -> bool:
        """Whether a model or the host changes its state now."""
        return bool(self._log.running)

    def restore(self) -> None:
        """Takes in what an earlier run of the agent has measured; goes on without it where it cannot be read."""
        try:
            stored = load_standby(self._state_dir, self._wall())
        except Moe2Error as error:
            log.warning("standby_not_restored", reason=str(error))
            return
        self._log.restore(stored.transitions)
        self._stored = {(one.power_mode, one.idle.models): one for one in stored.idle}

    def follow(self, changing: frozenset[Key], ready: frozenset[str], account: HostAccount) -> None:
        """Takes in which models are being loaded or unloaded now, and which are in memory."""
        now_s = self._clock()
        self._look_at_files(ready, account)
        activity = account.activity
        busy = bool(activity.prefilling or activity.decoding)
        if busy:
            self._log.disturbed()
        own = frozenset(key for key in self._log.running if key[0] in (Transition.LOAD, Transition.UNLOAD))
        for key in own - changing:
            transition, model = key
            if transition is Transition.LOAD and model not in ready:
                self._log.given_up(key)
            else:
                self._log.ended(key, now_s, self._wall(), self._file_of(model) if model else None)
        for key in sorted(changing - own, key=str):
            self._log.began(key, now_s, is_alone=not busy)
        self._tell_cause(account, now_s)

    def host_began(self, transition: Transition, account: HostAccount) -> None:
        """The host begins to go to sleep, or to wake up."""
        self._log.began((transition, None), self._clock())
        self._tell_cause(account, self._clock())

    def host_ended(self, transition: Transition, account: HostAccount, *, succeeded: bool = True) -> None:
        """The host sleeps, is back with the coordinator, or (not `succeeded`) has stayed as it was."""
        if succeeded:
            self._log.ended((transition, None), self._clock(), self._wall())
        else:
            self._log.given_up((transition, None))
        self._tell_cause(account, self._clock())

    def slept(self, asleep_s: float) -> None:
        """The host was suspended for so long, and is awake again."""
        self._asleep_s = asleep_s

    def measured_asleep(self, asleep: AsleepPower) -> None:
        """Takes in what a plug measured while the host slept; it is worth more than what the operator has written."""
        self._measured_asleep = (self._clock(), asleep)

    def settle(self, account: HostAccount) -> bool:
        """Takes in the joules of transitions as they become known; True if there is something new to report."""
        now_s = self._clock()
        if self._log.give_up_older((Transition.WAKE, None), now_s - MAX_WAKE_S):
            self._tell_cause(account, now_s)
        return self._log.settle(account.between, now_s)

    def with_costs(self, experts: Iterable[ExpertReport]) -> tuple[ExpertReport, ...]:
        """Returns the experts with what loading and unloading each of them takes."""
        now = self._wall()
        return tuple(
            replace(
                expert,
                load_cost=self._log.cost((Transition.LOAD, expert.model), now, expert.file_sha256),
                unload_cost=self._log.cost((Transition.UNLOAD, expert.model), now, expert.file_sha256),
            )
            for expert in experts
        )

    def report(self, account: HostAccount, power_mode: str | None) -> Standby:
        """Returns how the host waits, as it is known now."""
        self._look_at_files(tuple(self._files), account)
        now = self._wall()
        return Standby(
            allow_unload=self._allowed.unload,
            allow_suspend=self._allowed.suspend,
            suspend_fault=self.suspend_fault if self._allowed.suspend else None,
            idle=self._idle(account, power_mode),
            suspend_cost=self._log.cost((Transition.SUSPEND, None), now),
            wake_cost=self._log.cost((Transition.WAKE, None), now),
            asleep_s=self._asleep_s,
            wake_addresses=self.wake_addresses,
            energy=account.standing(self._epoch),
        )

    def snapshot(self, account: HostAccount, power_mode: str | None) -> StoredStandby:
        """Returns what is to be kept for the next start."""
        now = self._wall()
        for idle in account.idle_powers(power_mode, self._clock()):
            at_unix_s = now - (idle.age_s or 0.0)
            files = {name: file for name in idle.models if (file := self._file_of(name)) is not None}
            kept = StoredIdle(power_mode=power_mode, idle=replace(idle, age_s=None), at_unix_s=at_unix_s, files=files)
            self._stored[(power_mode, idle.models)] = kept
        # The newest first: a host whose models are changed often has many states.
        kept_idle = sorted(self._stored.values(), key=lambda one: -one.at_unix_s)[: 4 * MAX_IDLE_STATES]
        return StoredStandby(idle=tuple(kept_idle), transitions=self._log.measured)

    def write(self, stored: StoredStandby) -> None:
        """Writes a snapshot to disk; it may be called in a thread. Where it cannot be written, the log says so."""
        try:
            store_standby(self._state_dir, stored)
        except OSError as error:
            log.warning("standby_not_stored", reason=str(error))

    def _idle(self, account: HostAccount, power_mode: str | None) -> tuple[IdlePower, ...]:
        now = self._wall()
        known = {
            models: replace(stored.idle, age_s=max(0.0, now - stored.at_unix_s))
            for (mode, models), stored in self._stored.items()
            if mode == power_mode and self._is_of_present_files(stored)
        }
        known.update({idle.models: idle for idle in account.idle_powers(power_mode, self._clock())})
        newest = sorted(known.values(), key=lambda idle: idle.age_s or 0.0)[: MAX_IDLE_STATES - 1]
        powers = sorted(newest, key=lambda idle: idle.models)
        if self._measured_asleep is not None:
            measured_s, asleep = self._measured_asleep
            powers.append(
                IdlePower(
                    power_w=asleep.power_w,
                    asleep=True,
                    spread_w=asleep.doubt_w,
                    measured_s=asleep.slept_s,
                    age_s=max(0.0, self._clock() - measured_s),
                    quality=Quality.MEASURED_COUNTER,
                    scope=Scope.WALL,
                )
            )
        elif self._allowed.asleep_w is not None:
            powers.append(IdlePower(power_w=self._allowed.asleep_w, asleep=True, quality=Quality.ESTIMATED))
        return tuple(powers)

    def _look_at_files(self, names: Iterable[str], account: HostAccount) -> None:
        """Forgets what was measured of waiting with a file that has been replaced by another one of its name."""
        for name in names:
            file = self._file_of(name)
            if file is not None and self._files.get(name, file) != file:
                account.model_changed(name)
                self._stored = {key: one for key, one in self._stored.items() if self._is_of_present_files(one)}
            if file is not None:
                self._files[name] = file

    def _is_of_present_files(self, stored: StoredIdle) -> bool:
        return all(self._file_of(name) in (None, file) for name, file in stored.files.items())

    def _tell_cause(self, account: HostAccount, now_s: float) -> None:
        kinds = {transition for transition, _ in self._log.running}
        if kinds & {Transition.SUSPEND, Transition.WAKE}:
            cause = Cause.WAKING
        else:
            cause = Cause.LOADING if kinds else Cause.IDLE
        account.cause_is(cause, now_s)
