"""A callback at a moment that can be moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` on the running loop at the moment it is set to, in seconds of the loop's clock.

    The moment stands here, beside the handle: for one that is now or past uvloop's `call_at` returns a plain `Handle`,
    which does not know its time.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._handle: asyncio.Handle | None = None
        self.at_s: float | None = None
        """When it will ring; None while it is not set."""

    def set(self, at_s: float | None) -> None:
        """Ring at `at_s` instead of whenever it was to ring before; None is never."""
        if at_s == self.at_s:
            return
        if self._handle is not None:
            self._handle.cancel()
        self.at_s = at_s
        self._handle = None if at_s is None else asyncio.get_running_loop().call_at(at_s, self._rang)

    def end(self) -> None:
        """Never rings again, and lets go of whom it would have called."""
        self.set(None)
        self._ring = _nobody

    def _rang(self) -> None:
        self._handle = self.at_s = None
        self._ring()


def _nobody() -> None:
    """Is called by an alarm that has ended."""
