"""Whether this host is there: which models it has in memory, its sleep, its goodbye and its return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import msgspec
import structlog

from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.jobs.events import Event, SuspendChecked, SuspendEnded
from moe2.agent.jobs.expert import Expert
from moe2.agent.link.links import Links
from moe2.agent.settings import AgentSection
from moe2.agent.standby.addresses import answer_to_wake, wake_addresses
from moe2.agent.standby.keeper import Allowed, StandbyKeeper
from moe2.agent.standby.sleeping import HostControl, HostSleep
from moe2.agent.standby.transitions import Key, Transition
from moe2.common.link.messages import ASLEEP, CommandAnswer, WakeNeighbour
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.standby import Standby

log = structlog.get_logger()

GOODBYE_S = 5.0
"""How long a goodbye may take before the host sleeps without it."""


class Presence:
    """Follows the experts' states, suspends the host, and tells the coordinator.

    experts: of the core. monitor: the host's energy; another one once the sensors are known. dispatch: tells the core.
    changed: asks for a report. All of it belongs to the event loop's thread.
    """

    def __init__(
        self,
        settings: AgentSection,
        experts: Mapping[str, Expert],
        monitor: HostMonitor,
        *,
        control: HostControl,
        dispatch: Callable[[Event], None],
        changed: Callable[[], None],
    ) -> None:
        self._experts = experts
        self._monitor = monitor
        self._dispatch = dispatch
        self._changed = changed
        self._link: Links | None = None
        self._unsaid: list[CommandAnswer] = []
        self._followed: list[tuple[ExpertState, bool]] | None = None
        self._keeper = StandbyKeeper(
            settings.state_dir,
            Allowed(unload=settings.allow_unload, suspend=settings.allow_suspend, asleep_w=settings.asleep_w),
            file_of=lambda name: experts[name].file_sha256 if name in experts else None,
        )
        self._sleep = HostSleep(
            control,
            may_suspend=settings.allow_suspend,
            leave=self._leave,
            on_fault=self._suspend_checked,
            on_falling=lambda: self._keeper.host_began(Transition.SUSPEND, self._monitor.account),
            on_awake=self._woke,
            on_failed=self._stayed_awake,
        )

    async def look(self, monitor: HostMonitor) -> None:
        """Begins with this monitor, with what an earlier run has measured, and with the host's addresses."""
        self._monitor = monitor
        self._followed = None
        self._keeper.restore()
        self._keeper.wake_addresses = await asyncio.to_thread(wake_addresses)
        self.models_changed()

    async def run(self, link: Links) -> None:
        """Watches for sleep, and suspends the host when it is told to, until cancelled."""
        self._link = link
        await self._sleep.run()

    # --- Reports ------------------------------------------------------------------------------------------------------

    def with_costs(self, experts: Iterable[ExpertReport]) -> tuple[ExpertReport, ...]:
        """Returns the experts with what loading and unloading each of them takes."""
        return self._keeper.with_costs(experts)

    def report(self) -> Standby:
        """Returns how the host waits, as it is known now."""
        return self._keeper.report(self._monitor.account, self._monitor.power_mode)

    async def settle(self) -> None:
        """Takes in the joules of transitions as they become known."""
        asleep = self._monitor.power_asleep()
        if asleep is not None:
            self._keeper.measured_asleep(asleep)
        if self._keeper.settle(self._monitor.account) or asleep is not None:
            self._changed()
            await self.store()

    async def store(self) -> None:
        """Keeps what is known for the next start."""
        stored = self._keeper.snapshot(self._monitor.account, self._monitor.power_mode)
        await asyncio.to_thread(self._keeper.write, stored)

    # --- Models -------------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """The experts' states may have changed. It is called for every word of an engine, and mostly they have not."""
        states = [(one.state, one.stopping) for one in self._experts.values()]
        if states == self._followed and not self._keeper.is_changing:
            return
        self._followed = states
        away = (ExpertState.COLD, ExpertState.FAILED)
        self._monitor.boards_used(any(state not in away or stopping for state, stopping in states))
        self._keeper.follow(*self._residency(), self._monitor.account)

    def models_changed(self) -> None:
        """Another set of models is in memory, on which idle power depends. One that ends counts until it is gone."""
        changing, ready = self._residency()
        ending = {model for transition, model in changing if transition is Transition.UNLOAD and model}
        self._monitor.models_loaded(ready | ending)
        self.follow()

    def _residency(self) -> tuple[frozenset[Key], frozenset[str]]:
        """Returns which models are being loaded or unloaded, and which are in memory."""
        experts = self._experts.items()
        loading: set[Key] = {(Transition.LOAD, name) for name, one in experts if one.state is ExpertState.LOADING}
        unloading: set[Key] = {(Transition.UNLOAD, name) for name, one in experts if one.stopping}
        ready = frozenset(name for name, one in experts if one.state is ExpertState.READY)
        return frozenset(loading | unloading), ready

    # --- Commands and sleep -------------------------------------------------------------------------------------------

    def suspend(self, command_id: str) -> None:
        """Suspend the host for this command."""
        self._sleep.suspend(command_id)

    def wake(self, command: WakeNeighbour) -> None:
        """Send a magic packet to a neighbour."""
        self.answer(answer_to_wake(command))

    def answer(self, answer: CommandAnswer) -> None:
        """Answer a command now, or when the coordinator is there again."""
        log.info("command_answered", **msgspec.structs.asdict(answer))
        if self._link is not None and self._link.is_open:
            self._link.send(answer)
        else:
            self._unsaid.append(answer)

    def link_opened(self, link: Links) -> None:
        """The coordinator is there: the host has come back, and what was unsaid is said."""
        self._keeper.host_ended(Transition.WAKE, self._monitor.account)
        unsaid, self._unsaid = self._unsaid, []
        for answer in unsaid:
            link.send(answer)

    async def _leave(self) -> None:
        await self.store()
        if self._link is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._link.leave(ASLEEP)

    def _suspend_checked(self, fault: str | None) -> None:
        self._keeper.suspend_fault = fault
        self._dispatch(SuspendChecked(fault))

    def _woke(self, slept_s: float, command_id: str | None) -> None:
        self._keeper.slept(slept_s)
        self._monitor.awoke(slept_s)
        self._keeper.host_ended(Transition.SUSPEND, self._monitor.account)
        self._keeper.host_began(Transition.WAKE, self._monitor.account)
        self._dispatch(SuspendEnded(command_id))
        self._come_back()

    def _stayed_awake(self, command_id: str, reason: str) -> None:
        self._keeper.host_ended(Transition.SUSPEND, self._monitor.account, succeeded=False)
        self._dispatch(SuspendEnded(command_id, reason))
        self._come_back()

    def _come_back(self) -> None:
        if self._link is not None:
            self._link.come_back()
