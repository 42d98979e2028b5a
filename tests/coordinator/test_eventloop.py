"""The coordinator's event loop."""

from __future__ import annotations

import asyncio

from moe2.coordinator.runtime import EventLoop


def test_its_clock_moves_within_one_turn() -> None:
    """Less than a millisecond is something, not 0."""

    async def look() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        return loop.time(), loop.time()

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        before_s, after_s = runner.run(look())
    assert after_s - before_s > 0


def test_its_timers_follow_its_clock() -> None:
    """`call_at` counts from the same `time()`: a timer is not due before its time."""

    async def look() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        due: asyncio.Future[float] = loop.create_future()
        when_s = loop.time() + 0.01
        loop.call_at(when_s, lambda: due.set_result(loop.time()))
        return when_s, await due

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        when_s, at_s = runner.run(look())
    # libuv's timers count whole milliseconds.
    assert at_s >= when_s - 1e-3
