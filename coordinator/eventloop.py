"""The coordinator's event loop: uvloop with a clock fine enough to measure with."""

from __future__ import annotations

import time

import uvloop


class EventLoop(uvloop.Loop):
    """uvloop's own `time()` has a resolution of 1 ms and stands still between two turns of the loop, so a round trip or
    an overhead below that would be measured as 0 s or 1 ms."""

    def time(self) -> float:
        return time.monotonic()
