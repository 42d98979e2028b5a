"""Jittered exponential back-off. PURE: the random source is given."""

from __future__ import annotations

from random import Random


class Backoff:
    """Delays that double from `first_s` up to `most_s`, each drawn uniformly from its upper half.

    The jitter keeps a fleet from coming back all at once after the coordinator restarts.
    """

    def __init__(self, *, first_s: float, most_s: float, random: Random) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random = random
        self._failures = 0

    def next_delay_s(self) -> float:
        """The delay before the next try; each call counts as one more failure."""
        ceiling_s = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return ceiling_s * self._random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Start over from `first_s` at the next failure."""
        self._failures = 0
