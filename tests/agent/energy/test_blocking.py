"""Calls that may never return."""

from __future__ import annotations

import asyncio
import threading

import pytest

from moe2.agent.energy.blocking import in_daemon_thread, within


async def test_result_comes_back() -> None:
    """What the call returns."""
    assert await in_daemon_thread(lambda: 6 * 7) == 42


async def test_exception_comes_back() -> None:
    """What the call raises."""
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 / 0)


def test_hung_call_does_not_keep_the_loop_from_closing() -> None:
    """Cancelled while the call hangs: the wait ends, the loop closes, the late answer is nobody's."""
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait()
        left.set()

    async def wait_and_give_up() -> None:
        waiting = asyncio.create_task(in_daemon_thread(hang))
        await asyncio.to_thread(entered.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(wait_and_give_up())
    assert not left.is_set()
    release.set()
    assert left.wait(10)


def test_a_call_in_time_is_answered() -> None:
    """With its result, or its exception."""
    assert within(lambda: 6 * 7, 60.0) == 42
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 / 0, 60.0)


def test_a_call_that_hangs_is_left_to_itself() -> None:
    """Who waits is told."""
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(release.wait, 0.01)
    release.set()
