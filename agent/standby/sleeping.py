"""Suspends this host when it is told to, and notices each time that it has slept, whoever sent it to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import structlog

from moe2.agent.standby.logind import SuspendError

log = structlog.get_logger()

JUMP_S = 0.5
"""The host's count of suspended seconds grows by more than this where it slept; less is rounding."""
LOOK_EVERY_S = 1.0
CHECK_EVERY_S = 600.0
"""How often to ask whether the host could be suspended: somebody may log in, or install the polkit rule."""
ASLEEP_WITHIN_S = 60.0
"""How long a host takes to fall asleep at most, once it was told to; programs may delay it for some seconds."""
_WATCH_EVERY_S = 0.05


class HostControl(Protocol):
    """What can suspend the host (`moe2.agent.standby.logind.Logind`)."""

    async def fault(self) -> str | None:
        """Returns why the host cannot be suspended by this user now; None if it can."""

    async def suspend(self) -> None:
        """Asks for the suspension; it begins a moment after this returns. Raises SuspendError if it is refused."""

    def suspended_s(self) -> float:
        """Returns the seconds since the boot that the host was suspended."""


class HostSleep:
    """Runs until cancelled. All of it belongs to the event loop's thread.

    may_suspend: whether anybody may ask for it; else nobody asks logind anything.
    leave: says goodbye to the coordinator and returns when that is said, or cannot be.
    on_fault: called when it is known whether the host can be suspended. on_falling: called when it is asked to sleep.
    on_awake: called when it has slept: the seconds, and the command that wanted it, if one did. on_failed: called with
    the command and the reason when it has not slept.
    """

    def __init__(
        self,
        control: HostControl,
        *,
        may_suspend: bool,
        leave: Callable[[], Awaitable[None]],
        on_fault: Callable[[str | None], None],
        on_falling: Callable[[], None],
        on_awake: Callable[[float, str | None], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self._control = control
        self._may_suspend = may_suspend
        self._leave = leave
        self._on_fault = on_fault
        self._on_falling = on_falling
        self._on_awake = on_awake
        self._on_failed = on_failed
        self._asked = asyncio.Event()
        self._command_id: str | None = None
        self._known_s = control.suspended_s()

    def suspend(self, command_id: str) -> None:
        """Suspend the host for this command."""
        self._command_id = command_id
        self._asked.set()

    async def run(self) -> None:
        """Watch and obey until cancelled."""
        loop = asyncio.get_running_loop()
        check_at_s = loop.time()
        while True:
            if self._may_suspend and loop.time() >= check_at_s:
                self._on_fault(await self._control.fault())
                check_at_s = loop.time() + CHECK_EVERY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._asked.wait()
            self._asked.clear()
            command_id, self._command_id = self._command_id, None
            if command_id is not None:
                await self._obey(command_id)
            elif (slept_s := self._slept_s()) is not None:
                log.info("host_slept", slept_s=round(slept_s, 1))
                self._on_awake(slept_s, None)

    async def _obey(self, command_id: str) -> None:
        log.info("host_suspending", command_id=command_id)
        self._on_falling()
        await self._leave()
        try:
            await self._control.suspend()
        except SuspendError as error:
            log.warning("host_not_suspended", reason=str(error))
            self._on_failed(command_id, str(error))
            return
        slept_s = await self._sleep()
        if slept_s is None:
            reason = f"The host was still awake {ASLEEP_WITHIN_S:.0f} s after logind had agreed to suspend it."
            log.warning("host_not_suspended", reason=reason)
            self._on_failed(command_id, reason)
            return
        log.info("host_woken", slept_s=round(slept_s, 1))
        self._on_awake(slept_s, command_id)

    async def _sleep(self) -> float | None:
        """Waits until the host has slept. This program's clock stands still meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ASLEEP_WITHIN_S):
                # Nobody tells: the clocks are all that shows it.
                while (slept_s := self._slept_s()) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_WATCH_EVERY_S)
                return slept_s
        return None

    def _slept_s(self) -> float | None:
        """Returns how long the host has slept since the last look; None if it has not."""
        now_s = self._control.suspended_s()
        slept_s, self._known_s = now_s - self._known_s, now_s
        return slept_s if slept_s > JUMP_S else None
