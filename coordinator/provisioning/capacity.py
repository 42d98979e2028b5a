"""How much traffic an expert takes before people wait: Erlang's formula for several slots and one queue. PURE.

Requests come at random and slots serve them one by one (M/M/k; Erlang 1917). Measured seconds of service, which hold
what a batch costs each of its requests, stand for the law of service.
"""

from __future__ import annotations

import math

LATE_SHARE = 0.05
"""Share of requests that may wait longer than they should: what p95 means."""


def waits(slots: int, offered: float) -> float:
    """The share of requests that find all slots taken, with `offered` erlangs on `slots`; 1 where the queue grows."""
    if offered >= slots:
        return 1.0
    if offered <= 0.0:
        return 0.0
    blocked = 1.0
    for slot in range(1, slots + 1):
        # Erlang B by its recursion, which overflows for no number of slots.
        blocked = offered * blocked / (slot + offered * blocked)
    return blocked / (1.0 - offered / slots * (1.0 - blocked))


def waits_longer(slots: int, offered: float, service_s: float, patience_s: float) -> float:
    """The share of requests that wait longer than `patience_s` for a slot, which each holds for `service_s`."""
    return waits(slots, offered) * math.exp(-max(0.0, slots - offered) * max(0.0, patience_s) / service_s)


def most_offered(slots: int, service_s: float, patience_s: float, *, share: float = LATE_SHARE) -> float:
    """The most erlangs at which no more than `share` of requests wait longer than `patience_s`."""
    if patience_s < 0.0 or slots < 1 or not service_s > 0.0:
        return 0.0
    low, high = 0.0, float(slots)
    for _ in range(40):
        middle = (low + high) / 2
        if waits_longer(slots, middle, service_s, patience_s) <= share:
            low = middle
        else:
            high = middle
    return low
