"""What is known of this host's GPU: where it sits, which files below /dev stand for it, what its driver answers.

Values only; `moe2.agent.engine.gpu.look` gathers them and `moe2.agent.engine.gpu.fault` judges them. PURE.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class GpuKind(StrEnum):
    """How a GPU of NVIDIA's is attached to the host."""

    JETSON = "jetson"
    CARD = "card"
    WSL = "wsl"
    """Windows Subsystem for Linux: one node, /dev/dxg, in place of all others."""


class NodeState(StrEnum):
    """Whether a file below /dev can be opened for reading and writing."""

    OPENS = "opens"
    MISSING = "missing"
    DENIED = "denied"
    """The file's owner, group and mode do not let this user open it (EACCES)."""
    BARRED = "barred"
    """The unit's device rules do not let any of its processes open it (EPERM)."""
    FAILED = "failed"


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file below /dev that CUDA opens. path: its pattern where it is missing. owner: its group, such as "video"."""

    path: str
    state: NodeState
    owner: str | None = None
    detail: str | None = None


class CudaAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the driver's library answered.

    code: cuInit's result; None where it was not asked, as `detail` says. has_library: libcuda.so.1 could be loaded.
    devices: names of the GPUs. driver: the newest CUDA version that it knows. said: what it printed on its way.
    """

    code: int | None = None
    has_library: bool = True
    devices: tuple[str, ...] = ()
    driver: str | None = None
    said: str = ""
    detail: str | None = None


class HostGpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The host's GPU as found. kind: None where none of NVIDIA's is attached. cuda: None where nobody asked."""

    kind: GpuKind | None = None
    nodes: tuple[DeviceNode, ...] = ()
    cuda: CudaAnswer | None = None
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the environment."""
