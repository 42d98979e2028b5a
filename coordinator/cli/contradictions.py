"""What the fleet says against a configuration that is good by itself: what no expert can keep."""

from __future__ import annotations

from collections.abc import Iterator
from time import time

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.localclient import STATUS_ROUTE, NotRunningError, RefusedError, fetch
from moe2.common.status import AgentRow, CoordinatorStatus
from moe2.common.terminal.figures import duration
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.plan import PlanAnswer
from moe2.coordinator.provisioning.decision import decide
from moe2.coordinator.provisioning.figures import fleet_of
from moe2.coordinator.provisioning.problem import limits_of
from moe2.coordinator.provisioning.state_files import FleetFile, MemoryFile
from moe2.coordinator.provisioning.statement import unknown_pins
from moe2.coordinator.settings import CoordinatorSettings

SHORTEST = {"model": "moe2", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
"""The least that anybody can ask for: what it takes, every answer takes at least."""
NOBODY_KNOWS = (
    "no coordinator runs, and none has kept what its hosts draw. `moe2-coordinator status` tells within a minute after "
    "the fleet is there."
)


def contradictions(settings: CoordinatorSettings) -> tuple[str, ...]:
    """What the fleet cannot keep of a configuration, each with its remedy, and what of it cannot be known here.

    That is averages below what the running fleet's cheapest expert takes for a single token, and limits on who is awake
    that contradict each other: by what the running fleet says, else by what the last coordinator has kept of it.
    """
    return (*_averages(settings), *_awake(settings))


def _awake(settings: CoordinatorSettings) -> tuple[str, ...]:
    """The names that `[provisioning]` pins and no agent has, the limits in it that no set of the fleet's experts keeps,
    with the cheapest correction, and whether that is not known."""
    section = settings.provisioning
    if section.mode == "off":
        return ()
    found = _known_fleet(settings)
    if found is None:
        has_limits = section.average_power_w is not None or section.pinned or section.min_hosts or section.min_awake > 1
        return (
            (f"provisioning: whether the fleet keeps these limits is not known: {NOBODY_KNOWS}",) if has_limits else ()
        )
    agents, pinned_keys, when = found
    pinned = frozenset(row.agent_id for row in agents if row.agent_name in section.pinned) | pinned_keys
    unknown = unknown_pins(section.pinned, agents)
    told = () if unknown is None else (f"provisioning.{unknown}{when}",)
    fleet = fleet_of(agents, lambda _: {}, wakes_by_command=section.wake_command is not None)
    if not fleet.experts:
        return told
    # Nobody's traffic: what contradicts now does so whatever is asked.
    decided = decide(fleet, (), limits_of(section, pinned=pinned), 0.0)
    unmeasured = ", ".join(sorted(host.name for host in fleet.hosts if host.awake_w is None))
    if decided.correction is not None:
        # What is not measured counts as nothing in it.
        is_about_watts = unmeasured and section.average_power_w is not None
        more = f" What {unmeasured} draws is unmeasured, and comes on top." if is_about_watts else ""
        return (*told, f"provisioning: whatever is asked, these limits contradict. {decided.correction}{more}{when}")
    if section.average_power_w is not None and unmeasured:
        return (
            *told,
            f"provisioning.average_power_w: whether {section.average_power_w:g} W are enough is not known: what "
            f"{unmeasured} draws while nobody asks is unmeasured.{when} Once it is measured, `moe2-coordinator status` "
            "tells.",
        )
    return told


def _known_fleet(settings: CoordinatorSettings) -> tuple[tuple[AgentRow, ...], frozenset[str], str] | None:
    """The agents, the keys of hosts that operators have pinned, and the age of these figures in words, empty for those
    of the running fleet; None where nobody knows."""
    try:
        content = fetch(settings.coordinator.socket, STATUS_ROUTE)
        status = msgspec.json.decode(content, type=CoordinatorStatus)
    except (NotRunningError, RefusedError, Moe2Error, msgspec.DecodeError):
        kept = FleetFile(settings.coordinator.state_dir).read()
        if kept is None:
            return None
        pinned = frozenset(MemoryFile(settings.coordinator.state_dir).read().wishes.pinned)
        return kept.agents, pinned, f" (By what a coordinator knew {duration(time() - kept.at_unix_s)} ago.)"
    names = status.provisioning.pinned if status.provisioning else ()
    return status.agents, frozenset(row.agent_id for row in status.agents if row.agent_name in names), ""


def _averages(settings: CoordinatorSettings) -> tuple[str, ...]:
    """Averages below what the fleet's cheapest expert takes for a single token, each with its remedy."""
    averages = settings.selection.averages
    wanted = {f"selection.categories.{name}": joules for name, joules in averages.by_category_j.items()}
    if averages.fleet_j is not None:
        wanted["selection"] = averages.fleet_j
    if not wanted:
        return ()
    try:
        content = fetch(settings.coordinator.socket, PLAN_PATH, body=msgspec.json.encode(SHORTEST))
        answer = msgspec.json.decode(content, type=PlanAnswer)
    except (NotRunningError, RefusedError, Moe2Error, msgspec.DecodeError):
        return ()
    return tuple(_against(wanted, answer))


def _against(wanted: dict[str, float], answer: PlanAnswer) -> Iterator[str]:
    rows = answer.decision.experts if answer.decision else ()
    known = [(row.energy_j.p50, row) for row in rows if row.energy_j is not None]
    if not known:
        return
    least_j, cheapest = min(known, key=lambda found: found[0])
    simulated = " (simulated)" if cheapest.energy_quality == "simulated" else ""
    for section, joules in wanted.items():
        if joules < least_j:
            yield (
                f"{section}.average_energy_j: no answer can be had for {joules:g} J: the cheapest expert, "
                f"{cheapest.model} on {cheapest.agent}, takes {least_j:.3g} J{simulated} for a single token. Set it to "
                "what its answers take or more (`moe2-coordinator plan` shows that), or add a cheaper expert."
            )
