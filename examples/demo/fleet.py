"""The demo's processes: started together, watched, ended together."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from examples.demo.errors import DemoError, tail
from examples.demo.models import CHECKOUT
from examples.demo.setup import Daemon, Setup

STOP_S = 15.0
CONSEQUENCE_S = 1.0

T = TypeVar("T")


class Fleet:
    """`async with` starts the daemons and ends them, whatever happens in between."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._running: list[tuple[Daemon, asyncio.subprocess.Process]] = []

    async def __aenter__(self) -> Self:
        try:
            for daemon in (self._setup.coordinator, *self._setup.agents):
                self._running.append((daemon, await _start(daemon)))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def first_death(self) -> DemoError:
        """Waits until a daemon ends by itself, which none should."""
        waiting = {asyncio.create_task(process.wait()): daemon for daemon, process in self._running}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        task = done.pop()
        daemon = waiting[task]
        return DemoError(f"{daemon.name} ended with exit code {task.result()}.", log=tail(daemon.log))

    def reload_coordinator(self) -> None:
        """Let the coordinator read its configuration again, as `systemctl reload` does."""
        _, process = self._running[0]
        if process.returncode is None:
            process.send_signal(signal.SIGHUP)

    async def _stop(self) -> None:
        """Agents first, so that the coordinator does not report them as lost; all within a bound."""
        agents = [process for daemon, process in self._running if daemon is not self._setup.coordinator]
        others = [process for daemon, process in self._running if daemon is self._setup.coordinator]
        for processes in (agents, others):
            await _end(processes)


async def unless(trouble: Coroutine[Any, Any, Exception], work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; if `trouble` comes first, cancel it and raise what came.

    Work that fails just before is taken for a consequence of the trouble, if that shows within a moment.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(trouble)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done() and working.exception():
            await asyncio.wait((watching,), timeout=CONSEQUENCE_S)
        if watching.done():
            raise watching.result()
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait((working, watching))


async def _start(daemon: Daemon) -> asyncio.subprocess.Process:
    with daemon.log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"moe2.{daemon.program}", "run", "--config", daemon.config),
            cwd=CHECKOUT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the demo, which ends its daemons in order.
            start_new_session=True,
        )


async def _end(processes: Iterable[asyncio.subprocess.Process]) -> None:
    alive = [process for process in processes if process.returncode is None]
    for process in alive:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            for process in alive:
                await process.wait()
    except TimeoutError:
        for process in alive:
            if process.returncode is None:
                process.kill()
                await process.wait()
