"""The checks of what an agent reports of its host, its experts and its sensors. PURE.

Decisions are arithmetic over all experts, so one impossible figure costs its expert, never the rest of the report.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from moe2.common.cost import LatencyProfile, Spread
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import Report
from moe2.common.link.reports import ExpertReport, Performance, SensorReport
from moe2.common.link.supply import ModelFile, ModelStore
from moe2.coordinator.fleet.bounds import (
    MAX_FIGURE,
    MAX_NAME_CHARACTERS,
    MAX_TOKENS,
    MAX_WATTS,
    name_fault,
    range_fault,
    shown,
)
from moe2.coordinator.fleet.standby_checks import sound_costs, sound_standby

MAX_SLOTS = 65_536
MAX_SPREAD = 20.0
"""The largest spread, in natural logarithms: predictions that are off by a factor of half a billion."""
_WARNING_CODE = re.compile(r"[a-z0-9_]{1,64}")
_CHECKED_APART = {"performance", "measured_age_s", "load_cost", "unload_cost"}
"""Fields of an expert that become unknown if they are impossible, and cost the expert nothing."""


def sound_report(report: Report, known: dict[str, ExpertReport] | None = None) -> tuple[Report, tuple[str, ...]]:
    """Returns the report without impossible parts, with a warning for each of them, and what was wrong.

    known: figures, by model, that were found sound in the former report; those of this report take their place. Most
    reports change nothing but ages, and what has not changed is not looked through again.
    """
    named = Counter(expert.model for expert in report.experts)
    known = {} if known is None else known
    former = dict(known)
    known.clear()
    faults: dict[str, str] = {}
    experts: list[ExpertReport] = []
    for expert in report.experts:
        figures = replace(expert, measured_age_s=None, load_cost=None, unload_cost=None)
        if named[expert.model] == 1 and former.get(expert.model) == figures and _is_age(expert.measured_age_s):
            known[expert.model] = figures
            experts.append(sound_costs(expert, faults))
            continue
        fault = name_fault("the name", expert.model)
        if fault is None and named[expert.model] > 1:
            fault = f"it is there {named[expert.model]} times"
        fault = fault or fault_in(expert)
        if fault is None:
            readable = shown(_with_shown(expert))
            if readable is expert:
                known[expert.model] = figures
            experts.append(sound_costs(readable, faults))
        else:
            faults[f"the model {expert.model[:MAX_NAME_CHARACTERS]!r}"] = f"{fault}. It gets no requests"
    sensors = shown(tuple(_sensor(sensor, faults) for sensor in report.sensors))
    warnings = shown(tuple(warning for warning in report.warnings if _WARNING_CODE.fullmatch(warning.code)))
    if len(warnings) < len(report.warnings):
        faults["its warnings"] = "a code is not 1 to 64 letters, digits or _. It is not shown"
    host = shown(report.host, MAX_NAME_CHARACTERS)
    for name in ("cpu_count", "memory_bytes"):
        if fault := range_fault(name, getattr(host, name), MAX_FIGURE):
            faults["its host"] = f"{fault}. It is not shown"
            host = replace(host, **{name: None})
    standby = None if report.standby is None else sound_standby(report.standby, faults)
    models = None if report.models is None else shown(_store(report.models, faults))
    told = tuple(f"what it reports of {what} cannot be: {fault}" for what, fault in faults.items())
    parts = {
        "host": host,
        "experts": tuple(experts),
        "sensors": sensors,
        "warnings": warnings + tuple(map(_unsound, told)),
        "standby": standby,
        "models": models,
    }
    changed = {name: part for name, part in parts.items() if part != getattr(report, name)}
    return replace(report, **changed) if changed else report, told


def _unsound(told: str) -> HealthWarning:
    return HealthWarning(
        code="report_unsound",
        severity=Severity.DEGRADED,
        message=f"{told[0].upper()}{told[1:]}.",
        remedy="Restart the agent; if that does not help, remove its learned profiles and report the defect.",
    )


def _store(store: ModelStore, faults: dict[str, str]) -> ModelStore:
    files: list[ModelFile] = []
    for file in store.files:
        fault = range_fault("added_unix_s", file.added_unix_s, MAX_FIGURE)
        fault = fault or range_fault("last_used_unix_s", file.last_used_unix_s, MAX_FIGURE)
        if fault is None:
            files.append(file)
        else:
            faults[f"the file {file.name[:MAX_NAME_CHARACTERS]!r}"] = f"{fault}. It is not shown"
    return store if len(files) == len(store.files) else replace(store, files=tuple(files))


def _sensor(sensor: SensorReport, faults: dict[str, str]) -> SensorReport:
    fault = range_fault("power_w", sensor.power_w, MAX_WATTS)
    fault = fault or range_fault("uncounted_w", sensor.uncounted_w, MAX_WATTS)
    if fault is None:
        return sensor
    faults[f"the sensor {sensor.name[:MAX_NAME_CHARACTERS]!r}"] = f"{fault}. Its power counts as unknown"
    return replace(sensor, power_w=None, uncounted_w=None)


def _with_shown(expert: ExpertReport) -> ExpertReport:
    """Returns the expert with those figures unknown that are only shown and no numbers."""
    figures = expert.performance
    bad = [name for name, value in asdict(figures).items() if value is not None and not math.isfinite(value)]
    is_aged = _is_age(expert.measured_age_s)
    if not bad and is_aged:
        return expert
    performance: Performance = replace(figures, **dict.fromkeys(bad))
    return replace(expert, performance=performance, measured_age_s=expert.measured_age_s if is_aged else None)


def _is_age(age_s: float | None) -> bool:
    return age_s is None or math.isfinite(age_s)


def fault_in(expert: ExpertReport) -> str | None:
    """Returns what is wrong with the first impossible figure of an expert; None if all are possible."""
    if not (1 <= expert.slots <= MAX_SLOTS and 1 <= expert.context_tokens <= MAX_TOKENS):
        return f"{expert.slots} slots, {expert.context_tokens} tokens of context"
    if not 0 <= expert.elsewhere <= MAX_SLOTS + MAX_TOKENS:
        return f"{expert.elsewhere} requests of other coordinators"
    if expert.parameters == 0:
        return "parameters is 0"
    if expert.latency is not None and not 1 <= expert.latency.slots <= MAX_SLOTS:
        return f"latency.slots is {expert.latency.slots}"
    return _fault(expert, "")


def _fault(value: Any, where: str) -> str | None:
    """Returns the first figure that is not finite, negative or too large, with its place; None if there is none."""
    if isinstance(value, Spread):
        return next((f"{where} is {part}" for part in (value.p50, value.p95) if not abs(part) <= MAX_SPREAD), None)
    if isinstance(value, int | float):
        return None if 0 <= value <= MAX_FIGURE else f"{where} is {value}"
    parts: dict[str, Any] = {}
    if isinstance(value, msgspec.Struct):
        fields = asdict(value).items()
        parts = {f"{where}.{name}".lstrip("."): part for name, part in fields if name not in _CHECKED_APART}
        if isinstance(value, LatencyProfile):
            # A batch that tends to empty has a negative m0.
            parts[f"{where}.occupancy"] = tuple(map(abs, value.occupancy))
    elif isinstance(value, tuple):
        parts = {f"{where}[{place}]": part for place, part in enumerate(value)}
    return next((fault for name, part in parts.items() if (fault := _fault(part, name))), None)
