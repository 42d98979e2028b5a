"""Time, chance and the trace of one simulated run. Everything that happens goes through `World.at`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from random import Random
from typing import Any


class World:
    """One seed, one course of events, on the running (virtual) loop.

    trace: SHA-256 over every fact told, with its time: two runs with the same hash were the same run.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[None] = self.loop.create_future()
        """Gets the first exception that anything raised."""
        self.check: Callable[[], None] = lambda: None
        """Called after every event."""
        self.n_events = 0
        self._hash = hashlib.sha256()

    @property
    def now_s(self) -> float:
        return self.loop.time()

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    def tell(self, *facts: object) -> None:
        """Put facts on the trace."""
        self._hash.update(f"{self.now_s:.9f} {facts}\n".encode())

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def at(self, at_s: float, act: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        return self.loop.call_at(at_s, self._happen, act, args)

    def later(self, delay_s: float, act: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        return self.at(self.now_s + delay_s, act, *args)

    async def pass_time(self, seconds: float) -> None:
        """Let the world go on for so long. Raises what went wrong in it."""
        waiting = asyncio.ensure_future(asyncio.sleep(seconds))
        await asyncio.wait((waiting, self.broken), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.broken.done():
            self.broken.result()

    def _happen(self, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.broken.done():
            return
        self.n_events += 1
        try:
            act(*args)
            self.check()
        except Exception as error:
            self.broken.set_exception(error)
