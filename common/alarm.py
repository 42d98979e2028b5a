"""Callbacks at moments that can be moved: one, or one for each of many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

MAX_VOID = 64
"""Moments that may be void besides as many as are not."""


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

    def _rang(self) -> None:
        self._handle = self.at_s = None
        self._ring()


class Alarms:
    """Calls `ring` with the name of each of many at the moment that it is set to for it, as `Alarm` does for one.

    The loop has one timer for all of them, set to the first moment: to set and cancel one for each takes the loop
    longer than the moment is worth where most end before theirs.
    """

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._at_s: dict[str, float] = {}
        self._moments: list[tuple[float, str]] = []
        """A heap of moments with their names. Those that `_at_s` does not know are void."""
        self._first = Alarm(self._rang)

    def at_s(self, name: str) -> float | None:
        """When it will ring for `name`; None while it is not set."""
        return self._at_s.get(name)

    def set(self, name: str, at_s: float) -> None:
        """Ring for `name` at `at_s` instead of whenever it was to ring before."""
        if self._at_s.get(name) == at_s:
            return
        self._at_s[name] = at_s
        heappush(self._moments, (at_s, name))
        if len(self._moments) > 2 * len(self._at_s) + MAX_VOID:
            self._moments = [(at_s, name) for name, at_s in self._at_s.items()]
            heapify(self._moments)
        if self._first.at_s is None or at_s < self._first.at_s:
            self._first.set(at_s)

    def hurry(self, name: str, at_s: float) -> None:
        """Ring for `name` at `at_s` if it was to ring later; where it was not to ring at all it stays so."""
        later_s = self._at_s.get(name)
        if later_s is not None and at_s < later_s:
            self.set(name, at_s)

    def end(self, name: str) -> None:
        """Ring for `name` no more."""
        self._at_s.pop(name, None)

    def _rang(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._moments:
            at_s, name = self._moments[0]
            if self._at_s.get(name) == at_s:
                if at_s > now_s:
                    self._first.set(at_s)
                    return
                del self._at_s[name]
                # Each by itself: what is raised for one is none of the others' business.
                loop.call_soon(self._ring, name)
            heappop(self._moments)
