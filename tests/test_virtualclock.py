"""The virtual clock itself: other tests rest on it."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests import virtualclock
from tests.virtualclock import LOOPBACK_GRACE_S, StuckError, VirtualClockLoop, on_virtual_clock


@on_virtual_clock
async def test_a_long_sleep_takes_its_time_on_the_clock_only() -> None:
    """A day passes on the loop's clock, not on the wall's."""
    loop, wall_s = asyncio.get_running_loop(), time.monotonic()
    await asyncio.sleep(86_400)
    assert loop.time() == pytest.approx(86_400)
    assert time.monotonic() - wall_s < 60


@on_virtual_clock
async def test_timers_fire_in_order_and_at_their_time() -> None:
    """Each callback sees the clock at the time that it asked for."""
    loop = asyncio.get_running_loop()
    seen: list[float] = []
    done = asyncio.Event()
    for at_s in (30.0, 10.0, 20.0):
        loop.call_at(at_s, lambda: seen.append(loop.time()))
    loop.call_at(40.0, done.set)
    await done.wait()
    assert seen == pytest.approx([10.0, 20.0, 30.0])


@on_virtual_clock
async def test_a_timeout_cuts_off_at_its_time() -> None:
    """`asyncio.timeout` works on the virtual clock."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.sleep(6)
    assert asyncio.get_running_loop().time() == pytest.approx(5)


@on_virtual_clock
async def test_threads_are_waited_for_before_time_jumps() -> None:
    """A result from a thread beats a timer, however near."""
    asyncio.get_running_loop().call_later(1e-6, lambda: None)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 1e-3) == 7


@on_virtual_clock(io_grace_s=LOOPBACK_GRACE_S)
async def test_loopback_bytes_arrive_before_a_timeout() -> None:
    """A request and its answer over a real socket take no virtual time."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), 1e-3) == b"hello\n"
        writer.close()
        await writer.wait_closed()
    assert asyncio.get_running_loop().time() == 0


def test_a_wait_that_cannot_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer, nothing ready: the loop says so instead of hanging."""
    monkeypatch.setattr(virtualclock, "STUCK_S", 0.01)
    loop = VirtualClockLoop()
    waiting = asyncio.Event().wait()
    task = loop.create_task(waiting)
    try:
        with pytest.raises(StuckError):
            loop.run_until_complete(task)
    finally:
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
