"""Tickets: who may fetch which file, once and soon. PURE: secrets and the time come in as arguments."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

TICKET_S = 60.0
"""How long a ticket is good. A connection that began in time may last longer."""
MAX_TICKETS = 10_000


class TicketFault(StrEnum):
    """Why a ticket opens nothing."""

    UNKNOWN = "unknown"
    """Nobody has issued it, or it was used already."""
    EXPIRED = "expired"
    SOMEBODY_ELSES = "somebody_elses"


@dataclass(frozen=True)
class Admission:
    """What a ticket is for: a part of one host's order."""

    agent_id: str
    command_id: str
    part: int
    until_s: float


class Tickets:
    """The tickets that are out."""

    def __init__(self) -> None:
        self._out: dict[bytes, Admission] = {}
        """By the digest of each secret, so that how long a look-up takes says nothing of a secret."""

    def issue(self, secret: str, agent_id: str, command_id: str, part: int, now_s: float) -> None:
        """Take in that a ticket is handed out. Of one part of an order only the newest is good."""
        self.withdraw(agent_id, command_id)
        self._out = {key: one for key, one in self._out.items() if one.until_s > now_s}
        if len(self._out) >= MAX_TICKETS:
            del self._out[next(iter(self._out))]
        self._out[_digest(secret)] = Admission(agent_id, command_id, part, now_s + TICKET_S)

    def redeem(self, secret: str, agent_id: str, now_s: float) -> Admission | TicketFault:
        """Takes a ticket in, once. Another agent's attempt leaves it to its owner."""
        key = _digest(secret)
        found = self._out.get(key)
        if found is None:
            return TicketFault.UNKNOWN
        if found.agent_id != agent_id:
            return TicketFault.SOMEBODY_ELSES
        del self._out[key]
        return found if now_s < found.until_s else TicketFault.EXPIRED

    def is_out(self, agent_id: str, command_id: str) -> bool:
        """Whether an order has a ticket that was not used yet."""
        return any((one.agent_id, one.command_id) == (agent_id, command_id) for one in self._out.values())

    def withdraw(self, agent_id: str, command_id: str) -> None:
        """The tickets of an order are good no longer."""
        self._out = {
            key: one for key, one in self._out.items() if (one.agent_id, one.command_id) != (agent_id, command_id)
        }


def _digest(secret: str) -> bytes:
    # A header may hold any bytes; surrogates stand for those that are no text.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
