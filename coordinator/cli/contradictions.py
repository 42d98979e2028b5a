"""What the running fleet says against a configuration that is good by itself: averages that no expert can keep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.localsocket import NotRunningError, RefusedError, fetch
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.plan import PlanAnswer
from moe2.coordinator.settings import CoordinatorSettings

SHORTEST = {"model": "moe2", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
"""The least that anybody can ask for: what it takes, every answer takes at least."""


def contradictions(settings: CoordinatorSettings) -> tuple[str, ...]:
    """Averages below what the fleet's cheapest expert takes for a single token, each with its remedy.

    Empty where no coordinator runs, or none of its experts' joules were measured.
    """
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
