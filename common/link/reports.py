"""What an agent reports of its host, its sensors and its experts: frozen values, no behaviour.

The rules of `moe2.common.link.messages` hold for them. None of them can be part of a cycle of references, so that the
garbage collector need not look at what is kept of a thousand agents (`gc=False`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from moe2.common.cost import EnergyProfile, LatencyProfile
from moe2.common.generation import Sampling
from moe2.common.placement import MAX_DEVICES, DeviceShare, GpuFault
from moe2.common.standby import TransitionCost

MAX_TEMPLATE_VARIABLES = 64


class HostFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What an agent's host is."""

    hostname: str
    system: str
    architecture: str
    cpu_model: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    accelerator: str | None = None
    board: str | None = None
    power_mode: str | None = None


class SensorReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One power sensor as found: "present", "absent", "denied" or "broken", with the remedy where there is one.

    simulated: nothing is measured, the watts are those of a simulated host's profile.
    uncounted_w: the power in W of a sensor that is no part of the host's sum, because others measure the same already,
    such as a metered plug beside them.
    owned: this agent holds the device's lock, so that no other agent of the host reports the same joules.
    """

    name: str
    state: str
    detail: str | None = None
    remedy: str | None = None
    power_w: float | None = None
    simulated: bool = False
    uncounted_w: float | None = None
    owned: bool = False


class ExpertState(StrEnum):
    COLD = "cold"
    """Not in memory; loaded for the first request."""
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class Performance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Measured speed and cost of one expert; None where nothing was measured yet.

    n_requests: requests the figures rest on (0: only the warm-up run after loading).
    """

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    ttft_s: float | None = None
    j_per_decoded_token: float | None = None
    idle_w: float | None = None
    n_requests: int = 0


class ExpertReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One expert as its agent sees it now.

    latency, energy: what predictions are made from, with their own spread and number of requests; None before anything
    was measured. measured_age_s: since the last request they learned from; None before the first.
    on_demand: cold or loading, it still takes requests, which wait for it. load_s: what the last loading took.
    file_sha256: of the model's file; None until it has been computed.
    vector_size: the length of its vectors, if it is an embedding model, which writes no text; None for a model that
    writes, or where nobody knows yet. vector_sizes: the lengths below it that its vectors may be cut to.
    paced: its speed is a simulated host's, so that its seconds are simulated, too.
    sampling: what it draws with where a request says nothing; None until it is loaded, and from earlier releases.
    supports_thinking: its template has marks for reasoning; None where that is not known. supports_infill: its
    vocabulary has the marks of a gap between two texts; None until it is loaded, and from earlier releases.
    template_variables: what a client can set of its chat template; None where that is not known, or too much to tell.
    load_cost, unload_cost: what bringing the model into memory and ending its process have taken; None before either
    was measured.
    placement: which device holds what of it; empty until it is loaded, and from earlier releases. gpu_fault: why it is
    not on the host's GPU; None if it is, or if there is none and none is asked for.
    draft_fault: why the draft model that it is to have does not guess; None if it does, or if none is asked for.
    elsewhere: the part of active and queued that is other coordinators' work.
    """

    model: str
    state: ExpertState
    context_tokens: int
    slots: int
    active: int = 0
    queued: int = 0
    max_queue: int = 0
    file_bytes: int | None = None
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    licence: str | None = None
    vocabulary_sha256: str | None = None
    has_chat_template: bool | None = None
    supports_tools: bool | None = None
    load_progress: float | None = None
    restarts: int = 0
    last_error: str | None = None
    performance: Performance = Performance()
    latency: LatencyProfile | None = None
    energy: EnergyProfile | None = None
    measured_age_s: float | None = None
    on_demand: bool = False
    load_s: float | None = None
    file_sha256: str | None = None
    paced: bool = False
    vector_size: int | None = None
    vector_sizes: tuple[int, ...] = ()
    sampling: Sampling | None = None
    supports_thinking: bool | None = None
    supports_infill: bool | None = None
    template_variables: (
        Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None
    ) = None
    load_cost: TransitionCost | None = None
    unload_cost: TransitionCost | None = None
    placement: Annotated[tuple[DeviceShare, ...], Meta(max_length=MAX_DEVICES)] = ()
    gpu_fault: GpuFault | None = None
    draft_fault: str | None = None
    elsewhere: int = 0
