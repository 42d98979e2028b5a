"""The checks of what an agent reports: of its host, experts and sensors, and of what waiting costs. PURE.

Decisions are arithmetic over all experts, so one impossible figure costs its expert, never the rest of the report. Of
waiting (watts, changes of state, standing joules, addresses) an impossible part becomes unknown: who is awake is
decided by these figures, and the books are sums over them.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from moe2.common.cost import LatencyProfile, Spread
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import Report
from moe2.common.link.reports import ExpertReport, HostFacts, Performance, SensorReport
from moe2.common.link.supply import ModelFile, ModelStore
from moe2.common.standby import IdlePower, Standby, StandingEnergy, TransitionCost, WakeAddress
from moe2.coordinator.fleet.bounds import (
    CONTROL,
    MAX_FIGURE,
    MAX_JOULES,
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    MAX_TOKENS,
    MAX_WATTS,
    name_fault,
    range_fault,
    shown,
)

P = TypeVar("P")

MAX_REASON_CHARACTERS = 500
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_COUNTERS = ("idle_j", "loading_j", "waking_j", "other_j", "requests_j")
_EPOCH = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_SLOTS = 65_536
MAX_SPREAD = 20.0
"""The largest spread, in natural logarithms: predictions that are off by a factor of half a billion."""
_WARNING_CODE = re.compile(r"[a-z0-9_]{1,64}")
_CHECKED_APART = {"performance", "measured_age_s", "load_cost", "unload_cost"}
"""Fields of an expert that become unknown if they are impossible, and cost the expert nothing."""


def sound_standby(standby: Standby, former: Standby | None, faults: dict[str, str]) -> Standby:
    """Returns the standby without impossible parts, and enters into `faults` what was wrong, by part.

    former: a standby that was found sound; what equals its part is not looked through again, and becomes that part.
    """
    fields: dict[str, Any] = {}

    def is_new(name: str) -> bool:
        if former is None or getattr(standby, name) != (before := getattr(former, name)):
            return True
        fields[name] = before
        return False

    if is_new("idle"):
        fields["idle"] = _sound_parts(standby.idle, "its idle power", idle_fault, faults)
    if is_new("wake_addresses"):
        fields["wake_addresses"] = _sound_parts(standby.wake_addresses, "its network addresses", address_fault, faults)
    for name, what in (("suspend_cost", "its suspending"), ("wake_cost", "its waking")):
        if is_new(name):
            fields[name] = _sound_cost(getattr(standby, name), what, faults)
    if fault := range_fault("asleep_s", standby.asleep_s, MAX_SECONDS):
        faults["its sleep"] = f"{fault}. It counts as unknown"
        fields["asleep_s"] = None
    if standby.energy is not None and is_new("energy") and (fault := standing_energy_fault(standby.energy)):
        faults["its standing energy"] = f"{fault}. It is not booked"
        fields["energy"] = None
    if standby.suspend_fault is not None and is_new("suspend_fault"):
        fields["suspend_fault"] = CONTROL.sub(" ", standby.suspend_fault[:MAX_REASON_CHARACTERS])
    changed = {name: value for name, value in fields.items() if value is not getattr(standby, name)}
    return replace(standby, **changed) if changed else standby


def sound_costs(expert: ExpertReport, faults: dict[str, str]) -> ExpertReport:
    """Returns the expert without impossible costs of loading and unloading, and enters what was wrong."""
    if expert.load_cost is None and expert.unload_cost is None:
        return expert
    load_cost = _sound_cost(expert.load_cost, f"the load_cost of {expert.model!r}", faults)
    unload_cost = _sound_cost(expert.unload_cost, f"the unload_cost of {expert.model!r}", faults)
    if load_cost is expert.load_cost and unload_cost is expert.unload_cost:
        return expert
    return replace(expert, load_cost=load_cost, unload_cost=unload_cost)


def idle_fault(idle: IdlePower) -> str | None:
    """Returns what is wrong with the power of one state; None if nothing is."""
    names = (name_fault("the name", model) for model in idle.models)
    if idle.asleep and idle.models:
        return "a state is both asleep and has models in memory"
    if len(set(idle.models)) < len(idle.models):
        return "a state has the same model twice"
    return (
        next((fault for fault in names if fault), None)
        or range_fault("power_w", idle.power_w, MAX_WATTS)
        or range_fault("spread_w", idle.spread_w, MAX_WATTS)
        or range_fault("measured_s", idle.measured_s, MAX_SECONDS)
        or range_fault("age_s", idle.age_s, MAX_SECONDS)
    )


def cost_fault(cost: TransitionCost) -> str | None:
    """Returns what is wrong with the cost of a change of state; None if nothing is."""
    if cost.n < 1:
        return f"n is {cost.n}"
    return (
        range_fault("n", cost.n, MAX_FIGURE)
        or range_fault("duration_s", cost.duration_s, MAX_SECONDS)
        or range_fault("max_duration_s", cost.max_duration_s, MAX_SECONDS)
        or range_fault("energy_j", cost.energy_j, MAX_JOULES)
        or range_fault("age_s", cost.age_s, MAX_SECONDS)
    )


def address_fault(address: WakeAddress) -> str | None:
    """Returns what is wrong with an address that wakes a host; None if nothing is."""
    if fault := name_fault("the interface", address.interface):
        return fault
    if not _MAC.fullmatch(address.mac) or int(address.mac[:2], 16) & 1 or address.mac == "00:00:00:00:00:00":
        return f"{address.mac[:32]!r} is not the hardware address of one host"
    if address.network is None:
        return None if address.broadcast is None else "a broadcast address stands without its network"
    try:
        network = ipaddress.IPv4Network(address.network)
    except ValueError:
        return f"{address.network[:64]!r} is no IPv4 network"
    if address.broadcast != str(network.broadcast_address):
        return f"{str(address.broadcast)[:64]!r} is not the broadcast address of {network}"
    return None


def standing_energy_fault(energy: StandingEnergy) -> str | None:
    """Returns what is wrong with a host's counters of joules; None if nothing is."""
    if not _EPOCH.fullmatch(energy.epoch):
        return "its epoch is not 1 to 64 letters, digits or . _ -"
    for name in _COUNTERS:
        if not 0 <= (joules := getattr(energy, name)) <= MAX_JOULES:
            return range_fault(name, joules, MAX_JOULES)
    return range_fault("measured_s", energy.measured_s, MAX_SECONDS)


def _sound_cost(cost: TransitionCost | None, what: str, faults: dict[str, str]) -> TransitionCost | None:
    if cost is None or (fault := cost_fault(cost)) is None:
        return cost
    faults[what] = f"{fault}. It counts as unknown"
    return None


def _sound_parts(
    parts: tuple[P, ...], what: str, fault_of: Callable[[P], str | None], faults: dict[str, str]
) -> tuple[P, ...]:
    sound = []
    for part in parts:
        if fault := fault_of(part):
            faults[what] = f"{fault}. It counts as unknown"
        else:
            sound.append(part)
    return parts if len(sound) == len(parts) else tuple(sound)


def sound_report(report: Report, former: Report | None = None) -> tuple[Report, tuple[str, ...]]:
    """Returns the report without impossible parts, with a warning for each of them, and what was wrong.

    former: what this function made of the agent's report before; None if there was none. Most reports change little
    but ages. A part that equals one that was found sound is not looked through again, and that one stands for it: what
    is kept of a thousand agents, here and by others, is then kept once.
    """
    faults: dict[str, str] = {}
    parts: dict[str, Any] = {}
    for name, check in _PARTS.items():
        part, before = getattr(report, name), getattr(former, name, None)
        if part is not None:
            made = before if part == before else check(part, before, faults)
            parts[name] = part if before is None and made == part else made
    told = tuple(f"what it reports of {what} cannot be: {fault}" for what, fault in faults.items())
    if told:
        parts["warnings"] = parts.get("warnings", report.warnings) + tuple(map(_unsound, told))
    changed = {name: part for name, part in parts.items() if part is not getattr(report, name)}
    return replace(report, **changed) if changed else report, told


def _sound_experts(
    told: tuple[ExpertReport, ...], former: tuple[ExpertReport, ...] | None, faults: dict[str, str]
) -> tuple[ExpertReport, ...]:
    if former is not None and len(former) == len(told):
        # Mostly they are what they were, a little older.
        as_before = tuple(map(_as_before, told, former))
        if None not in as_before:
            return tuple(sound_costs(expert, faults) for expert in as_before if expert is not None)
    named = Counter(expert.model for expert in told)
    known = {expert.model: expert for expert in former or ()}
    experts: list[ExpertReport] = []
    for expert in told:
        before = known.get(expert.model) if named[expert.model] == 1 else None
        if before is not None and (now := _as_before(expert, before)) is not None:
            experts.append(sound_costs(now, faults))
        else:
            fault = name_fault("the name", expert.model)
            if fault is None and named[expert.model] > 1:
                fault = f"it is there {named[expert.model]} times"
            fault = fault or fault_in(expert)
            if fault is None:
                experts.append(sound_costs(shown(_with_shown(expert)), faults))
            else:
                faults[f"the model {expert.model[:MAX_NAME_CHARACTERS]!r}"] = f"{fault}. It gets no requests"
    return tuple(experts)


def _as_before(expert: ExpertReport, before: ExpertReport) -> ExpertReport | None:
    """Returns the sound expert `before` with what passes of `expert`, if that is all that differs and may be believed;
    else None. Costs of loading are to be checked."""
    if expert == before:
        return before
    now = replace(
        before,
        active=expert.active,
        queued=expert.queued,
        elsewhere=expert.elsewhere,
        measured_age_s=expert.measured_age_s,
        load_cost=expert.load_cost,
        unload_cost=expert.unload_cost,
    )
    return now if now == expert and _is_age(expert.measured_age_s) and _counts_fault(expert) is None else None


def _sound_sensors(
    sensors: tuple[SensorReport, ...], former: tuple[SensorReport, ...] | None, faults: dict[str, str]
) -> tuple[SensorReport, ...]:
    if former is not None and len(former) == len(sensors):
        # Mostly only the watts are new, and the texts are those that were found sound.
        now = tuple(
            replace(one, power_w=new.power_w, uncounted_w=new.uncounted_w)
            for one, new in zip(former, sensors, strict=True)
        )
        if now == sensors:
            return tuple(_sensor(sensor, faults) for sensor in now)
    return shown(tuple(_sensor(sensor, faults) for sensor in sensors))


def _sound_warnings(
    told: tuple[HealthWarning, ...], _: tuple[HealthWarning, ...] | None, faults: dict[str, str]
) -> tuple[HealthWarning, ...]:
    warnings = shown(tuple(warning for warning in told if _WARNING_CODE.fullmatch(warning.code)))
    if len(warnings) < len(told):
        faults["its warnings"] = "a code is not 1 to 64 letters, digits or _. It is not shown"
    return warnings


def _sound_host(told: HostFacts, _: HostFacts | None, faults: dict[str, str]) -> HostFacts:
    host = shown(told, MAX_NAME_CHARACTERS)
    for name in ("cpu_count", "memory_bytes"):
        if fault := range_fault(name, getattr(host, name), MAX_FIGURE):
            faults["its host"] = f"{fault}. It is not shown"
            host = replace(host, **{name: None})
    return host


def _sound_store(store: ModelStore, _: ModelStore | None, faults: dict[str, str]) -> ModelStore:
    return shown(_store(store, faults))


_PARTS: dict[str, Callable[[Any, Any, dict[str, str]], Any]] = {
    "experts": _sound_experts,
    "sensors": _sound_sensors,
    "warnings": _sound_warnings,
    "host": _sound_host,
    "standby": sound_standby,
    "models": _sound_store,
}
"""The check of each part of a report, in the order in which faults are told."""


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
    """Returns the expert with those figures unknown that are only shown and cannot be."""
    figures = asdict(expert.performance)
    # What a host draws at rest is a difference, which may come out below 0 by a little.
    sizes = {name: abs(value) if name == "idle_w" and value is not None else value for name, value in figures.items()}
    sound = {name: figures[name] for name, value in sizes.items() if range_fault(name, value, MAX_FIGURE) is None}
    is_aged = _is_age(expert.measured_age_s)
    if len(sound) == len(figures) and is_aged:
        return expert
    return replace(expert, performance=Performance(**sound), measured_age_s=expert.measured_age_s if is_aged else None)


def _is_age(age_s: float | None) -> bool:
    return range_fault("the age", age_s, MAX_SECONDS) is None


def fault_in(expert: ExpertReport) -> str | None:
    """Returns what is wrong with the first impossible figure of an expert; None if all are possible."""
    if not (1 <= expert.slots <= MAX_SLOTS and 1 <= expert.context_tokens <= MAX_TOKENS):
        return f"{expert.slots} slots, {expert.context_tokens} tokens of context"
    if fault := _counts_fault(expert):
        return fault
    if expert.parameters == 0:
        return "parameters is 0"
    if expert.latency is not None and not 1 <= expert.latency.slots <= MAX_SLOTS:
        return f"latency.slots is {expert.latency.slots}"
    return _fault(expert, "")


def _counts_fault(expert: ExpertReport) -> str | None:
    if not 0 <= expert.elsewhere <= MAX_SLOTS + MAX_TOKENS:
        return f"{expert.elsewhere} requests of other coordinators"
    return range_fault("active", expert.active, MAX_FIGURE) or range_fault("queued", expert.queued, MAX_FIGURE)


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
