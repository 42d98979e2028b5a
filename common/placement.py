"""Where a model's layers and bytes are, and why they are not on the GPU. PURE values, made by agents and only shown."""

from __future__ import annotations

from enum import StrEnum

import msgspec

MAX_DEVICES = 64
"""Of one model: longer arrays are refused by their length."""


class DeviceShare(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one device of the host holds of one model.

    device: llama.cpp's name, such as "CUDA0"; "CPU" is the host's memory. description: the device's own name.
    bus_id: its PCI address, such as "0000:01:00.0"; None where it has none, as a Jetson's GPU.
    layers: of the model, its output layer among them. weights_bytes, cache_bytes, work_bytes: of the model's weights,
    of its keys and values, and of the room for computing; None where llama.cpp did not say.
    """

    device: str
    is_gpu: bool = False
    description: str | None = None
    bus_id: str | None = None
    layers: int = 0
    weights_bytes: int | None = None
    cache_bytes: int | None = None
    work_bytes: int | None = None


class GpuCause(StrEnum):
    """Why a model is not on the GPU."""

    NOT_ASKED = "not_asked"
    """The configuration says gpu_layers = 0."""
    NO_GPU = "no_gpu"
    """The host has no GPU."""
    NO_DEVICE = "no_device"
    """The host has a GPU that its driver does not see."""
    NO_GPU_BUILD = "no_gpu_build"
    """llama.cpp was built without a GPU backend."""
    NO_DEVICE_NODE = "no_device_node"
    """A file below /dev that the driver's library opens is missing."""
    NO_PERMISSION = "no_permission"
    """The agent's user, or its unit, may not open such a file."""
    NO_DRIVER = "no_driver"
    """The driver's library libcuda.so.1 is not installed, or not found."""
    MEMORY = "memory"
    """The GPU has too little free memory."""
    DRIVER_ERROR = "driver_error"
    """The driver answered with an error of its own."""


class GpuFault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a model, or a part of it, is not on this host's GPU, and what to do about it.

    is_asked: the configuration wants it there.
    """

    cause: GpuCause
    message: str
    remedy: str
    is_asked: bool = True


def gpu_layers(placement: tuple[DeviceShare, ...]) -> int:
    """Returns how many layers are on GPUs."""
    return sum(share.layers for share in placement if share.is_gpu)


def placement_text(placement: tuple[DeviceShare, ...]) -> str:
    """Returns one short text for people, such as "CUDA0 33/33 layers"; empty where nothing is known."""
    total = sum(share.layers for share in placement)
    if not total:
        return ""
    parts = [f"{share.device} {share.layers}/{total} layers" for share in placement if share.layers]
    return ", ".join(parts)
