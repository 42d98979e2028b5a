"""A token bucket: how often something may happen. PURE: the time comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TokenBucket:
    """Lets `per_minute` pass in the long run; a minute's worth of them, but at least one, may come at once.

    So within any t seconds at most `capacity + per_minute * t / 60` pass. per_minute: greater than 0.
    """

    per_minute: float
    now_s: float
    _tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self._tokens = self.capacity

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute)

    def take(self, now_s: float) -> float:
        """Take one token. Returns 0, or the seconds until there is one; a refused attempt costs nothing."""
        rate = self.per_minute / 60
        self._tokens = min(self.capacity, self._tokens + rate * max(0.0, now_s - self.now_s))
        self.now_s = max(self.now_s, now_s)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / rate
