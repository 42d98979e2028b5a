"""Which host can give a file to another one: it has it, shares it, and is on the same network. PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from moe2.common.status import AgentRow

MAX_TAKERS = 2
"""Hosts that one neighbour gives files to at once; further ones wait, or come to the coordinator."""
Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Giver:
    """A neighbour that can give a file. fingerprint: of its certificate; None where it speaks no TLS."""

    agent_id: str
    name: str
    address: str
    port: int
    fingerprint: str | None


def giver_for(
    rows: Sequence[AgentRow], taker_id: str, sha256: str, *, busy: Sequence[str], shunned: Collection[str]
) -> Giver | None:
    """The neighbour that gives to the fewest others; None where there is none with room.

    sha256: of the whole model, whatever its name is there. busy: agents' ids, once for each host that they give to.
    shunned: agents that are not to be asked.
    """
    taker = next((row for row in rows if row.agent_id == taker_id), None)
    if taker is None or taker.models is None or not taker.models.networks:
        return None
    load = Counter(busy)
    found = []
    for row in rows:
        if row.agent_id == taker_id or row.agent_id in shunned or load[row.agent_id] >= MAX_TAKERS:
            continue
        if (giver := _giver(taker, row, sha256)) is not None:
            found.append(giver)
    return min(found, key=lambda giver: (load[giver.agent_id], giver.name, giver.agent_id), default=None)


def _giver(taker: AgentRow, row: AgentRow, sha256: str) -> Giver | None:
    store = row.models
    if not row.connected or store is None or store.share is None:
        return None
    if not any(file.sha256 == sha256 for file in store.files):
        return None
    is_same_host = bool(row.host and taker.host and row.host.hostname == taker.host.hostname)
    networks = taker.models.networks if taker.models else ()
    address = address_between(networks, store.share.addresses, is_same_host=is_same_host)
    if address is None:
        return None
    return Giver(row.agent_id, row.agent_name, address, store.share.port, store.share.fingerprint)


def address_between(taker: Sequence[str], giver: Sequence[str], *, is_same_host: bool = False) -> str | None:
    """The address at which a host reaches another one on a network that both are on; None where there is no such one.

    taker, giver: their addresses with their networks, such as "192.168.1.5/24". What an agent reports that is no
    address counts as none. An address that both have, such as a container bridge's or the loopback's, leads a host to
    itself, and so counts only where both are on one host.
    """
    own = [found for text in taker if (found := _interface(text))]
    for text in giver:
        there = _interface(text)
        if there is None:
            continue
        for here in own:
            is_own = there.ip == here.ip or there.ip.is_loopback
            if there.network == here.network and is_own == is_same_host:
                return str(there.ip)
    return None


def _interface(text: str) -> Interface | None:
    try:
        return ip_interface(text)
    except ValueError:
        return None
