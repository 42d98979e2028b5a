"""Tells where a loaded model is, and refuses one that must be on the GPU and is not. Asks llama.cpp and the host."""

from __future__ import annotations

from moe2.agent.engine.gpu.facts import HostGpu
from moe2.agent.engine.gpu.fault import gpu_fault, layers_asked, placement_fault
from moe2.agent.engine.gpu.look import gpu_kind, look
from moe2.agent.engine.llama.model import GpuRequiredError, can_offload, engine_said, gpu_backends, placement
from moe2.agent.engine.protocol import ModelSpec
from moe2.common.placement import DeviceShare, GpuCause, GpuFault, gpu_layers


def refuse_without_gpu(spec: ModelSpec) -> None:
    """Raises `GpuRequiredError` before anything is loaded where the model must be on a GPU and there is none to use."""
    if not spec.require_gpu or can_offload():
        return
    raise GpuRequiredError(spec.path, _present(gpu_fault(look(), backends=gpu_backends(), engine_said=engine_said())))


def where_it_is(spec: ModelSpec) -> tuple[tuple[DeviceShare, ...], GpuFault | None]:
    """Returns what each device holds of the model that was loaded last, and why the GPU does not hold what it should.

    Raises `GpuRequiredError` where that is not to be put up with.
    """
    shares = placement()
    total = sum(share.layers for share in shares)
    if spec.gpu_layers and total and gpu_layers(shares) >= layers_asked(spec.gpu_layers, total):
        return shares, None
    # The driver is asked only where the configuration wants it: asking wakes a laptop's card.
    host = look() if spec.gpu_layers else HostGpu(kind=gpu_kind())
    fault = placement_fault(spec.gpu_layers, shares, host, backends=gpu_backends(), engine_said=engine_said())
    if spec.require_gpu and fault is not None:
        raise GpuRequiredError(spec.path, fault)
    return shares, fault


def _present(fault: GpuFault | None) -> GpuFault:
    """llama.cpp sees no GPU, so there is a fault; one that cannot be told apart has llama.cpp's own word alone."""
    if fault is not None:
        return fault
    return GpuFault(
        cause=GpuCause.DRIVER_ERROR,
        message="CUDA works, but llama.cpp finds no GPU.",
        remedy="Run `sudo ./install.sh upgrade`, which builds llama.cpp for this GPU.",
    )
