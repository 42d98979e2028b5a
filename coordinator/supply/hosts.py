"""Which hosts are meant by an operator, and which of them can give a file to another one. PURE.

An operator names hosts by names, by beginnings of ids, or by facts that all of them share. A host can give a file that
it has, if it shares it and is on the same network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from moe2.common.errors import Moe2Error
from moe2.common.status import AgentRow

FACTS = ("name", "hostname", "system", "architecture", "cpu_model", "accelerator", "board", "power_mode")
MAX_TAKERS = 2
"""Hosts that one neighbour gives files to at once; further ones wait, or come to the coordinator."""
Interface = IPv4Interface | IPv6Interface


class HostError(Moe2Error):
    """Hosts that are not there, or that take no orders about models."""


def meant(rows: Sequence[AgentRow], hosts: Sequence[str], matching: str | None) -> tuple[AgentRow, ...]:
    """The agents that are meant, each once. Raises `HostError` where a name is nobody's, or nobody matches."""
    found: dict[str, AgentRow] = {}
    for host in hosts:
        row = _named(rows, host)
        found[row.agent_id] = row
    if matching is not None:
        wanted = conditions(matching)
        matched = [row for row in rows if _matches(row, wanted)]
        if not matched:
            raise HostError(
                f"No host matches {matching!r}.", remedy="`moe2-coordinator status --json` shows their facts."
            )
        found |= {row.agent_id: row for row in matched}
    if not found:
        raise HostError("No host is named.", remedy="Name hosts, or say which with --all-matching.")
    return tuple(found.values())


def conditions(text: str) -> Mapping[str, str]:
    """Conditions such as "board=orin,system=linux", by the fact. Raises `HostError` for one that cannot be read."""
    wanted = {}
    for part in text.split(","):
        fact, is_given, value = part.partition("=")
        if not is_given or fact.strip() not in FACTS or not value.strip():
            raise HostError(
                f"{part!r} is no condition.", remedy=f"Write FACT=PART OF ITS VALUE; facts are {', '.join(FACTS)}."
            )
        wanted[fact.strip()] = value.strip().casefold()
    return wanted


def check_takes_orders(row: AgentRow) -> None:
    """Raises `HostError` where the coordinator may not say what a host serves, or cannot now."""
    if not row.connected:
        raise HostError(f"{row.agent_name} is not connected.", remedy="Try again when it is back.")
    if row.models is None:
        raise HostError(
            f"The agent of {row.agent_name} is of a release that takes no orders about models.",
            remedy="Upgrade it: `sudo ./install.sh upgrade` on that host.",
        )
    if not row.models.takes_orders:
        raise HostError(
            f"{row.agent_name} takes no models from the coordinator.",
            remedy="Set coordinator = true in [models_from] of the agent's configuration there, and restart the agent.",
        )


def _named(rows: Sequence[AgentRow], host: str) -> AgentRow:
    exact = [row for row in rows if host in (row.agent_name, row.agent_id)]
    found = exact or [row for row in rows if host and row.agent_id.startswith(host)]
    if not found:
        names = ", ".join(sorted(row.agent_name for row in rows)) or "none"
        raise HostError(f"There is no host {host!r}.", remedy=f"There are: {names}.")
    if len(found) > 1:
        raise HostError(f"{host!r} is the name of several hosts.", remedy="Name the one by its agent's id.")
    return found[0]


def _matches(row: AgentRow, wanted: Mapping[str, str]) -> bool:
    for fact, part in wanted.items():
        value = row.agent_name if fact == "name" else getattr(row.host, fact, None)
        if not isinstance(value, str) or part not in value.casefold():
            return False
    return True


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
