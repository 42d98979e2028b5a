"""What the running fleet says against a configuration that is good by itself: what no expert can keep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.localsocket import STATUS_ROUTE, NotRunningError, RefusedError, fetch
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.plan import PlanAnswer
from moe2.coordinator.provisioning.decision import decide
from moe2.coordinator.provisioning.figures import fleet_of
from moe2.coordinator.provisioning.problem import limits_of
from moe2.coordinator.provisioning.statement import unknown_pins
from moe2.coordinator.settings import CoordinatorSettings

SHORTEST = {"model": "moe2", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
"""The least that anybody can ask for: what it takes, every answer takes at least."""


def contradictions(settings: CoordinatorSettings) -> tuple[str, ...]:
    """What the running fleet cannot keep of a configuration, each with its remedy; empty where no coordinator runs.

    That is averages below what its cheapest expert takes for a single token, and limits on who is awake that contradict
    each other.
    """
    return (*_averages(settings), *_awake(settings))


def _awake(settings: CoordinatorSettings) -> tuple[str, ...]:
    """The names that `[provisioning]` pins and no agent has, and the limits in it that no set of the fleet's experts
    keeps, with the cheapest correction."""
    section = settings.provisioning
    if section.mode == "off":
        return ()
    try:
        content = asyncio.run(fetch(settings.coordinator.socket, STATUS_ROUTE))
        status = msgspec.json.decode(content, type=CoordinatorStatus)
    except (NotRunningError, RefusedError, Moe2Error, msgspec.DecodeError):
        return ()
    kept = set(status.provisioning.pinned if status.provisioning else ()) | set(section.pinned)
    pinned = frozenset(row.agent_id for row in status.agents if row.agent_name in kept)
    unknown = unknown_pins(section.pinned, status.agents)
    told = () if unknown is None else (f"provisioning.{unknown}",)
    fleet = fleet_of(status.agents, lambda _: {}, wakes_by_command=section.wake_command is not None)
    if not fleet.experts:
        return told
    # Nobody's traffic: what contradicts now does so whatever is asked.
    decided = decide(fleet, (), limits_of(section, pinned=pinned), 0.0)
    return told if decided.correction is None else (*told, f"provisioning: {decided.correction}")


def _averages(settings: CoordinatorSettings) -> tuple[str, ...]:
    """Averages below what the fleet's cheapest expert takes for a single token, each with its remedy."""
    averages = settings.selection.averages
    wanted = {f"selection.categories.{name}": joules for name, joules in averages.by_category_j.items()}
    if averages.fleet_j is not None:
        wanted["selection"] = averages.fleet_j
    if not wanted:
        return ()
    try:
        content = asyncio.run(fetch(settings.coordinator.socket, PLAN_PATH, body=msgspec.json.encode(SHORTEST)))
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
