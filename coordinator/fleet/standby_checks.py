"""The checks of what agents say about waiting: watts, changes of state, standing joules, addresses. PURE.

Who is awake is decided by these figures, and the books are sums over them. An impossible part becomes unknown; the rest
of the report counts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from moe2.common.link.reports import ExpertReport
from moe2.common.standby import IdlePower, Standby, StandingEnergy, TransitionCost, WakeAddress
from moe2.coordinator.fleet.bounds import (
    CONTROL,
    MAX_FIGURE,
    MAX_JOULES,
    MAX_SECONDS,
    MAX_WATTS,
    name_fault,
    range_fault,
)

P = TypeVar("P")

MAX_REASON_CHARACTERS = 500
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_EPOCH = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    changed = {
        name: cost
        for name in ("load_cost", "unload_cost")
        if (cost := _sound_cost(getattr(expert, name), f"the {name} of {expert.model!r}", faults))
        is not getattr(expert, name)
    }
    return replace(expert, **changed) if changed else expert


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
    counters = {
        "idle_j": energy.idle_j,
        "loading_j": energy.loading_j,
        "waking_j": energy.waking_j,
        "other_j": energy.other_j,
        "requests_j": energy.requests_j,
    }
    faults = (range_fault(name, joules, MAX_JOULES) for name, joules in counters.items())
    return next(filter(None, faults), None) or range_fault("measured_s", energy.measured_s, MAX_SECONDS)


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
