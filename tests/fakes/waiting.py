"""Waiting for what a process says of itself, asking again and again as an operator would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
ASK_EVERY_S = 0.02


async def until(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """The first answer that `holds`."""
    async with asyncio.timeout(60):
        while not holds(answer := await ask()):
            await asyncio.sleep(ASK_EVERY_S)
        return answer
