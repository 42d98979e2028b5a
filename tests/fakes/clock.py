"""Time that a test moves."""

from __future__ import annotations


class ManualClock:
    """A monotonic clock that stands still until it is told to advance."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> float:
        self.now_s += seconds
        return self.now_s
