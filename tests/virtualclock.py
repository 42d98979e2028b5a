"""An event loop whose time is virtual: where nothing is ready it jumps to the next timer instead of waiting for it.

`@on_virtual_clock` runs an async test on such a loop; an hour of back-off then takes no time, and elapsed times are
exact. Work in executor threads is waited for in real time. So is I/O, but only for `io_grace_s` before each jump: it
is enough for sockets within this process, whose bytes arrive as soon as they are sent, and not for other processes.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LOOPBACK_GRACE_S = 0.003
"""For tests with sockets between tasks of one loop."""
# A loop with no timer and nothing ready can only be woken from outside; if nobody does, the test hangs for good.
STUCK_S = 10.0


class StuckError(Exception):
    """Nothing is ready, no timer is set and nobody outside wakes the loop: the test waits for what cannot happen."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A selector loop that owns its clock. `time()` starts at 0 and moves only from timer to timer."""

    # Of asyncio's own base class.
    _scheduled: list[asyncio.TimerHandle]
    _clock_resolution: float

    def __init__(self, *, io_grace_s: float = 0.0) -> None:
        self._virtual_s = 0.0
        self._in_threads = 0
        self._io_grace_s = io_grace_s
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._virtual_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._left_thread)
        return future

    def idle(self, selector: selectors.BaseSelector, timeout_s: float | None) -> list[Any]:
        """The loop has nothing to run and would wait up to `timeout_s` for I/O; None is without end."""
        if timeout_s is None or self._in_threads:
            events = selector.select(STUCK_S)
            if not events and not self._in_threads:
                raise StuckError("nothing is ready and no timer is set")
            return events
        events = selector.select(self._io_grace_s)
        if not events:
            # The timer's own moment: the sum would miss it by a rounding error, and who asks "is it time?" would loop.
            next_s = self._scheduled[0].when() if self._scheduled else self._virtual_s
            passed_s = self._virtual_s + timeout_s
            self._virtual_s = next_s if abs(next_s - passed_s) < self._clock_resolution else passed_s
        return events

    def _left_thread(self, _: asyncio.Future[Any]) -> None:
        self._in_threads -= 1


class _JumpingSelector(selectors.BaseSelector):
    """Hands every wait to the loop; the rest to the platform's selector."""

    def __init__(self, loop: VirtualClockLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[Any]:
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self._loop.idle(self._real, timeout)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def on_virtual_clock(
    test: Callable[P, Coroutine[Any, Any, None]] | None = None, *, io_grace_s: float = 0.0
) -> Callable[..., Any]:
    """Run an async test on a fresh `VirtualClockLoop`. Plain fixtures work; async ones would be on another loop."""
    if test is None:
        return functools.partial(on_virtual_clock, io_grace_s=io_grace_s)

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(io_grace_s=io_grace_s)) as runner:
            runner.run(test(*args, **kwargs))

    return run
