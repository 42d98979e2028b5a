"""How fast a file may go out so that it fills no queue on its way: small messages behind a full queue come late.

A connection that sends as fast as TCP lets it fills the slowest buffer on its path, tens of milliseconds of it, and
whatever else passes there waits in it, each time it passes. So the rate is kept where round trips stay near their
least: measured by the kernel (tcp(7), TCP_INFO), held by its pacing (socket(7), SO_MAX_PACING_RATE).
"""

from __future__ import annotations

import socket
import struct
from asyncio import BaseTransport
from dataclasses import dataclass

MAX_QUEUED_S = 0.004
"""How much longer than the least a round trip may take before the rate is lowered."""
MIN_STEP_S = 0.02
"""The least time between two looks at a connection."""
LOWER, RAISE = 0.85, 1.03
PATIENCE_S = 1.0
"""A queue that has not emptied for so long although less is sent is none of this connection's."""
MIN_SHARE = 0.4
"""The rate is not lowered below this share of the best that was delivered: some round trips vary by themselves."""
MIN_RATE_BYTES_PER_S = 64 << 10
_SO_MAX_PACING_RATE = 47
_TCP_INFO_BYTES = 152
_RTT_AT, _ACKED_AT, _MIN_RTT_AT = 68, 120, 148


@dataclass(frozen=True)
class LineFacts:
    """What the kernel knows of a connection. rtt_s, least_rtt_s: round trips of late and at best. acked: bytes."""

    rtt_s: float
    least_rtt_s: float
    acked_bytes: int


@dataclass
class Courtesy:
    """The rate of one connection. PURE. rate: bytes per second; None as long as nothing has shown a limit."""

    rate: float | None = None
    _at_s: float | None = None
    _acked_bytes: int = 0
    _best: float = 0.0
    _full_since_s: float | None = None
    _of_others_s: float = 0.0
    """What round trips take longer than at best for other reasons than this connection: others' queues, a radio."""

    def next_rate(self, facts: LineFacts, now_s: float) -> int | None:
        """The rate from now on, in bytes per second; None for no limit."""
        if self._at_s is None:
            self._at_s, self._acked_bytes = now_s, facts.acked_bytes
        elif now_s - self._at_s >= MIN_STEP_S:
            delivered = (facts.acked_bytes - self._acked_bytes) / (now_s - self._at_s)
            self._at_s, self._acked_bytes = now_s, facts.acked_bytes
            self._best = max(0.99 * self._best, delivered)
            if self._fills(facts.rtt_s - facts.least_rtt_s, now_s):
                self.rate = max(MIN_RATE_BYTES_PER_S, MIN_SHARE * self._best, LOWER * delivered)
            elif self.rate is not None:
                self.rate *= RAISE
        return None if self.rate is None else round(self.rate)

    def _fills(self, longer_s: float, now_s: float) -> bool:
        """Whether this connection fills a queue, as round trips take so much longer than at best."""
        self._of_others_s = min(self._of_others_s, max(0.0, longer_s))
        if longer_s - self._of_others_s <= MAX_QUEUED_S:
            self._full_since_s = None
            return False
        if self._full_since_s is None:
            self._full_since_s = now_s
        elif now_s - self._full_since_s >= PATIENCE_S:
            self._full_since_s, self._of_others_s = None, longer_s
            return False
        return True


class PacedLine:
    """A connection whose rate follows `Courtesy`. It does nothing where the kernel tells nothing of it."""

    def __init__(self, transport: BaseTransport | None) -> None:
        self._socket = None if transport is None else transport.get_extra_info("socket")
        self._courtesy = Courtesy()
        self._set: int | None = None

    def look(self, now_s: float) -> None:
        """Looks at the connection, and sets its rate."""
        if self._socket is None:
            return
        try:
            told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            rate = self._courtesy.next_rate(facts_of(told), now_s)
            if rate is not None and rate != self._set:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, min(rate, 0xFFFFFFFE))
                self._set = rate
        except (OSError, struct.error, AttributeError):
            # Not TCP, or a system that does not tell: it goes as fast as it goes.
            self._socket = None


def facts_of(tcp_info: bytes) -> LineFacts:
    """Reads the kernel's `struct tcp_info`. Raises struct.error where it is shorter than this needs."""
    (rtt_us,) = struct.unpack_from("=I", tcp_info, _RTT_AT)
    (acked_bytes,) = struct.unpack_from("=Q", tcp_info, _ACKED_AT)
    (least_us,) = struct.unpack_from("=I", tcp_info, _MIN_RTT_AT)
    return LineFacts(rtt_us / 1e6, least_us / 1e6, acked_bytes)
