"""The fleet as somebody looks at it: a part of its hosts, found by name, state or model, with counts of all. PURE.

`page_of` cuts a status down to a part; `FleetFeed` says what of such a part has changed since a viewer last heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.status import AgentRow, CoordinatorStatus, FleetCounts, ProvisioningStatus

MAX_HOSTS = 10_000
"""The largest part of a fleet that may be asked for, and the most hosts that may be left out before it."""
MAX_SHOWN_WARNINGS = 64
"""Warnings of a part of the fleet, the gravest first."""
MAX_SHOWN_NAMES = 20
"""Names in each list of the slow level's thoughts that goes with a part of the fleet."""


class AgentState(StrEnum):
    """The states of agents by which the fleet can be filtered."""

    CONNECTED = "connected"
    DRAINING = "draining"
    """Connected, and about to leave."""
    ASLEEP = "asleep"
    DISCONNECTED = "disconnected"
    WARNING = "warning"
    """Something is wrong with it, by its own word."""


@dataclass(frozen=True)
class FleetQuery:
    """The hosts that somebody wants to see, in the order of their names.

    limit: how many of them; None for all. offset: how many to leave out before. text: part of a name, an id, a host's
    name, board or accelerator, in any case. state: what it does. model: name of a model that it has.
    """

    limit: int | None = None
    offset: int = 0
    text: str = ""
    state: AgentState | None = None
    model: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole fleet is asked for."""
        return self == FleetQuery()

    def matches(self, row: AgentRow) -> bool:
        """Whether an agent is one of those that are looked for."""
        if self.state is not None and not _is(row, self.state):
            return False
        if self.model is not None and all(expert.model != self.model for expert in row.experts):
            return False
        return not self.text or self.text.casefold() in _words_of(row)


def _is(row: AgentRow, state: AgentState) -> bool:
    match state:
        case AgentState.CONNECTED:
            return row.connected
        case AgentState.DRAINING:
            return row.connected and row.draining
        case AgentState.ASLEEP:
            return row.asleep
        case AgentState.DISCONNECTED:
            return not row.connected and not row.asleep
        case AgentState.WARNING:
            return bool(row.warnings)


def _words_of(row: AgentRow) -> str:
    host = row.host
    about = (host.hostname, host.board, host.accelerator, host.power_mode) if host else ()
    return "\n".join(word for word in (row.agent_name, row.agent_id, *about) if word).casefold()


def counts_of(status: CoordinatorStatus) -> FleetCounts:
    """The numbers of the whole fleet."""
    n_connected = n_asleep = n_experts = n_ready = slots = active = queued = 0
    models: set[str] = set()
    for row in status.agents:
        n_asleep += row.asleep
        if not row.connected:
            continue
        n_connected += 1
        n_experts += len(row.experts)
        for expert in row.experts:
            n_ready += expert.state is ExpertState.READY
            slots += expert.slots
            active += expert.active
            queued += expert.queued
            models.add(expert.model)
    return FleetCounts(
        agents=len(status.agents),
        connected=n_connected,
        asleep=n_asleep,
        experts=n_experts,
        experts_ready=n_ready,
        slots=slots,
        slots_active=active,
        queued=queued,
        models=tuple(sorted(models)),
        matching=len(status.agents),
        warnings=len(status.warnings),
    )


def page_of(status: CoordinatorStatus, query: FleetQuery) -> CoordinatorStatus:
    """The status with the hosts that are asked for, and the counts of all; lists of other things are cut short, too."""
    counts = counts_of(status)
    if query.is_whole:
        return replace(status, counts=counts)
    found = [row for row in status.agents if query.matches(row)]
    end = None if query.limit is None else query.offset + query.limit
    dispatch = status.dispatch
    return replace(
        status,
        agents=tuple(found[query.offset : end]),
        warnings=tuple(sorted(status.warnings, key=_is_minor)[:MAX_SHOWN_WARNINGS]),
        dispatch=replace(dispatch, breakers=tuple(one for one in dispatch.breakers if one.state != "closed")),
        provisioning=status.provisioning and _shortened(status.provisioning),
        counts=replace(counts, matching=len(found), offset=query.offset),
    )


def _is_minor(warning: HealthWarning) -> bool:
    return warning.severity is not Severity.DEGRADED


def _shortened(provisioning: ProvisioningStatus) -> ProvisioningStatus:
    return replace(
        provisioning,
        awake=provisioning.awake[:MAX_SHOWN_NAMES],
        n_awake=len(provisioning.awake),
        stays=dict(list(provisioning.stays.items())[:MAX_SHOWN_NAMES]),
        n_stays=len(provisioning.stays),
        changes=provisioning.changes[:MAX_SHOWN_NAMES],
        would_sleep=provisioning.would_sleep[:MAX_SHOWN_NAMES],
    )


class FleetFeed:
    """What one viewer of a part of the fleet has been told, so that only what has changed is told again."""

    def __init__(self, query: FleetQuery) -> None:
        self._query = query
        self._fields: dict[str, bytes] = {}
        self._rows: dict[str, bytes] = {}

    def news(self, status: CoordinatorStatus) -> Mapping[str, msgspec.Raw]:
        """The fields of the status that have changed, as JSON; at first all.

        Of `agents` only the hosts that have changed are there, and `agent_ids` has the ids of all that are shown, in
        their order, where that has changed.
        """
        part = page_of(status, self._query)
        told: dict[str, msgspec.Raw] = {}
        for name in status.__struct_fields__:
            if name != "agents":
                self._tell(told, name, getattr(part, name))
        rows = {row.agent_id: msgspec.json.encode(_seen(row)) for row in part.agents}
        self._tell(told, "agent_ids", tuple(rows))
        changed = [msgspec.Raw(row) for agent_id, row in rows.items() if self._rows.get(agent_id) != row]
        if changed or not self._rows:
            told["agents"] = msgspec.Raw(msgspec.json.encode(changed))
        self._rows = rows
        return told

    def _tell(self, told: dict[str, msgspec.Raw], name: str, value: Any) -> None:
        encoded = msgspec.json.encode(value)
        if self._fields.get(name) != encoded:
            self._fields[name] = encoded
            told[name] = msgspec.Raw(encoded)


def _seen(row: AgentRow) -> AgentRow:
    """The row without what only programs want, such as what predictions are made from, and what is older each time."""
    experts = tuple(_seen_expert(expert) for expert in row.experts)
    return replace(row, report_age_s=None, standby=None, experts=experts)


_UNSEEN: dict[str, Any] = dict.fromkeys(
    ("latency", "energy", "measured_age_s", "load_cost", "unload_cost", "sampling", "file_sha256", "vocabulary_sha256")
)


def _seen_expert(expert: ExpertReport) -> ExpertReport:
    return replace(expert, **_UNSEEN)
