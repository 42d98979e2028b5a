"""Requests that no expert has room for: who waits, in which order, and when to come again. PURE.

They wait here and not with an agent, for the first expert that falls free, whichever it is. Keys take turns, so that
one app's thousand requests do not stand before another's one; the requests of one key keep their order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moe2.coordinator.fleet.table import Expert

MAX_AGENT_QUEUE_S = 2.0
"""A request that is predicted to wait longer than this in an expert's own queue waits here. There it could only start
when that expert falls free; here it starts when the first one does, which is never later but for a round trip, and the
others' turn is kept. A short queue there bridges that round trip."""
MAX_RETRY_S = 120.0
"""The longest time that a refused request is told to wait."""


@dataclass(frozen=True)
class Entered:
    """A request has got a place."""

    displaced: str | None = None
    """The request that lost its place to it, because its key had most of them."""


class WaitingRoom:
    """A bounded queue that is fair among keys.

    most: places. Where all are taken, the newest request of the key with the most of them gives way to one of a key
    that has fewer: filling the room keeps nobody else out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_key: OrderedDict[str | None, OrderedDict[str, str]] = OrderedDict()
        """Models by request, by key; the key whose turn it is comes first."""
        self._keys: dict[str, str | None] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._keys

    def enter(self, request_id: str, *, model: str, key_id: str | None) -> Entered | None:
        """Give a request a place; None if there is none for it. model: as the client wrote it."""
        displaced = None
        if len(self) >= self._most:
            longest = max(self._by_key, key=lambda key: len(self._by_key[key]), default=None)
            # With equal shares the newcomer is who has to come again.
            if not self._by_key or len(self._by_key[longest]) <= len(self._by_key.get(key_id, ())) + 1:
                return None
            displaced = next(reversed(self._by_key[longest]))
            self.leave(displaced)
        self._by_key.setdefault(key_id, OrderedDict())[request_id] = model
        self._keys[request_id] = key_id
        return Entered(displaced)

    def leave(self, request_id: str, *, served: bool = False) -> None:
        """Give a request's place back. served: it got an expert, so that now it is the other keys' turn."""
        if request_id not in self._keys:
            return
        key_id = self._keys.pop(request_id)
        waiting = self._by_key[key_id]
        del waiting[request_id]
        if not waiting:
            del self._by_key[key_id]
        elif served:
            self._by_key.move_to_end(key_id)

    def in_turn(self) -> Iterator[str]:
        """Ids of all that wait, the next one first: one request of each key, then a second one of each."""
        rows = [tuple(waiting) for waiting in self._by_key.values()]
        for n in range(max(map(len, rows), default=0)):
            yield from (row[n] for row in rows if n < len(row))

    def n_waiting_for(self, model: str) -> int:
        """How many requests wait for the same model."""
        return sum(other == model for waiting in self._by_key.values() for other in waiting.values())


def retry_after_s(n_ahead: int, experts: Sequence[Expert]) -> float | None:
    """Seconds until a request can expect room, with so many before it; None where no speed is known.

    experts: those that could serve it. Slots fall free one by one: every `service_s / slots` on each expert, so that
    the fleet frees the sum of these rates.
    """
    measured = [expert.report.latency for expert in experts if expert.report.latency is not None]
    freed_per_s = sum(found.slots / found.service_s for found in measured if found.service_s > 0)
    if not freed_per_s:
        return None
    return min(MAX_RETRY_S, (n_ahead + 1) / freed_per_s)


def whole_seconds(seconds: float) -> int:
    """The value of a Retry-After header, RFC 9110 section 10.2.3: at least 1."""
    return max(1, math.ceil(seconds))
