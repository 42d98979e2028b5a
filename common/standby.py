"""What a host costs while it answers nobody: its power in each state, its changes of state, its joules by cause. PURE.

Agents measure these figures and report them; the coordinator decides by them who is awake, and keeps the joules in its
books. Unmeasured is None, never 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from moe2.common.energy import Quality, Scope

MAX_IDLE_STATES = 64
MAX_WAKE_ADDRESSES = 16
MAX_MODELS_IN_STATE = 256
"""Of one host's report: longer arrays are refused by their length."""


class Cause(StrEnum):
    """Why a host used joules that belong to no request."""

    IDLE = "idle"
    """It waited, with models in memory or without."""
    LOADING = "loading"
    """A model was brought into memory, or taken out of it."""
    WAKING = "waking"
    """The host went to sleep or woke up."""
    OTHER = "other"
    """Everything else: measuring itself, and joules that a sensor reported too late to give them to anybody."""


class IdlePower(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The measured power of a host that waits in one state, in its present power mode.

    models: names of the models in memory, sorted; none where all are cold. asleep: the host is suspended.
    power_w: the median in W over the sensors that `scope` names. spread_w: half the distance between the quartiles;
    None where too few slices were measured. measured_s: seconds of waiting that the figure rests on. age_s: since the
    last of them.
    """

    power_w: float
    models: Annotated[tuple[str, ...], Meta(max_length=MAX_MODELS_IN_STATE)] = ()
    asleep: bool = False
    spread_w: float | None = None
    measured_s: float = 0.0
    age_s: float | None = None
    quality: Quality = Quality.UNMEASURED
    scope: Scope | None = None


class TransitionCost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one change of state took, as it was measured the last times.

    duration_s: mean seconds. max_duration_s: the longest of those that are remembered. energy_j: mean joules of the
    host meanwhile, everything included; None where they were not measured. n: how many were measured. age_s: since the
    last one.
    """

    duration_s: float
    max_duration_s: float | None = None
    energy_j: float | None = None
    n: int = 1
    age_s: float | None = None
    quality: Quality = Quality.UNMEASURED


class StandingEnergy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Joules of a host since its agent started, counted up: those of no request by cause, and those of requests.

    epoch: drawn anew at each start of the agent, when all counters begin at 0. Their sum is everything that the host's
    sensors have measured in that time, but for the joules of requests that have not ended yet. An agent without a
    sensor sends none of this.
    """

    epoch: Annotated[str, Meta(max_length=64)]
    idle_j: float = 0.0
    loading_j: float = 0.0
    waking_j: float = 0.0
    other_j: float = 0.0
    requests_j: float = 0.0
    measured_s: float = 0.0
    """Seconds that the sensors covered."""
    quality: Quality = Quality.UNMEASURED
    scope: Scope | None = None

    def by_cause(self) -> dict[Cause, float]:
        """Returns the joules of no request, by cause."""
        return {
            Cause.IDLE: self.idle_j,
            Cause.LOADING: self.loading_j,
            Cause.WAKING: self.waking_j,
            Cause.OTHER: self.other_j,
        }


class WakeAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where a magic packet wakes the host.

    mac: such as "3c:6d:66:01:02:03". network: such as "192.168.1.0/24"; broadcast: its broadcast address; None where
    the interface has no IPv4 address. armed: whether the interface may wake the host; None if that cannot be seen.
    """

    interface: str
    mac: str
    network: str | None = None
    broadcast: str | None = None
    armed: bool | None = None


class Standby(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How a host waits, and what its agent may do about it.

    allow_unload, allow_suspend: what the agent's configuration allows the coordinator to ask for. suspend_fault: why
    the host cannot be suspended although that is allowed; None if it can, or nobody asked. idle: the power of each
    state that was measured. suspend_cost, wake_cost: of the whole host. asleep_s: how long it slept the last time.
    """

    allow_unload: bool = False
    allow_suspend: bool = False
    suspend_fault: str | None = None
    idle: Annotated[tuple[IdlePower, ...], Meta(max_length=MAX_IDLE_STATES)] = ()
    suspend_cost: TransitionCost | None = None
    wake_cost: TransitionCost | None = None
    asleep_s: float | None = None
    wake_addresses: Annotated[tuple[WakeAddress, ...], Meta(max_length=MAX_WAKE_ADDRESSES)] = ()
    energy: StandingEnergy | None = None
