"""Blocking calls that may never return, off the event loop.

`asyncio.to_thread` is no place for them: its executor is joined when the loop is closed, so a driver that hangs would
keep the agent from exiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """Return the call's result, or raise its exception. Cancelling the wait leaves the call to itself."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = call()
        except Exception as error:
            _tell(loop, answer, partial(answer.set_exception, error))
        else:
            _tell(loop, answer, partial(answer.set_result, result))

    threading.Thread(target=work, name="blocking-call", daemon=True).start()
    return await answer


def _tell(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], set_answer: Callable[[], None]) -> None:
    def set_unless_abandoned() -> None:
        if not answer.done():
            set_answer()

    # The loop may be closed by now: then nobody waits any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(set_unless_abandoned)


def within(call: Callable[[], T], timeout_s: float) -> T:
    """Return the call's result, or raise its exception; TimeoutError, and the call is left to itself, if it is late."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="blocking-call", daemon=True).start()
    return answer.result(timeout_s)
