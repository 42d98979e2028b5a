"""Which hosts an operator means: names, beginnings of ids, or facts that all of them share. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe2.common.errors import Moe2Error
from moe2.common.status import AgentRow

FACTS = ("name", "hostname", "system", "architecture", "cpu_model", "accelerator", "board", "power_mode")


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
