"""Looks for this host's GPU, its device nodes and its driver, with the rights of the process that asks. Blocking."""

from __future__ import annotations

import errno
import grp
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from moe2.agent.engine.gpu import cuda_program
from moe2.agent.engine.gpu.facts import CudaAnswer, DeviceNode, GpuKind, HostGpu, NodeState

ANSWER_WITHIN_S = 30.0
"""Without a persistence daemon a driver takes up to two seconds for each card."""
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI class of VGA and 3D controllers."""
_SAID_CHARACTERS = 600
_NODES = {
    # An Orin's GPU has nodes of its own driver; Thor's has those of a card.
    GpuKind.JETSON: (
        ("dev/nvmap",),
        ("dev/nvgpu/igpu0/ctrl", "dev/nvhost-ctrl-gpu", "dev/nvidia[0-9]*"),
        ("dev/dri/renderD*",),
    ),
    GpuKind.CARD: (("dev/nvidiactl",), ("dev/nvidia[0-9]*",), ("dev/nvidia-uvm",)),
    GpuKind.WSL: (("dev/dxg",),),
}
"""Of each kind: what must be there. Each tuple is met by any of its patterns."""


def look(root: Path = Path("/"), *, ask: bool = True) -> HostGpu:
    """Returns what is known of the GPU of the host below `root`.

    ask: also run the driver's `cuInit` in a child process, which takes a moment and wakes a sleeping card.
    """
    kind = gpu_kind(root)
    # A copy of a host's /sys and /proc has no /dev, and says nothing about it.
    patterns = _NODES[kind] if kind is not None and (root / "dev").is_dir() else ()
    return HostGpu(
        kind=kind,
        nodes=tuple(node for each in patterns for node in _nodes(root, each)),
        cuda=ask_cuda() if ask else None,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def gpu_kind(root: Path = Path("/")) -> GpuKind | None:
    """Returns how a GPU of NVIDIA's is attached to the host below `root`; None where there is none."""
    with suppress(OSError):
        if b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes():
            return GpuKind.JETSON
    if (root / "etc/nv_tegra_release").exists():
        return GpuKind.JETSON
    if any(_is_nvidia_display(device) for device in (root / "sys/bus/pci/devices").glob("*")):
        return GpuKind.CARD
    if next((root / "proc/driver/nvidia/gpus").glob("*"), None) is not None:
        return GpuKind.CARD
    # Windows shows the GPUs of all makers there; its driver for CUDA comes along in this folder.
    if (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        return GpuKind.WSL
    return None


def ask_cuda(*, within_s: float = ANSWER_WITHIN_S) -> CudaAnswer:
    """Returns what the driver's library answers to `cuInit(0)` in a child process of this one's user and unit."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program, no shell
            [sys.executable, "-I", cuda_program.__file__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CudaAnswer(detail=f"the driver did not answer within {within_s:.0f} s")
    except OSError as error:
        return CudaAnswer(detail=f"the driver could not be asked: {error}")
    said = done.stderr.decode("utf-8", "replace").strip()[-_SAID_CHARACTERS:]
    if done.returncode < 0:
        return CudaAnswer(said=said, detail=f"the driver crashed with {_signal_name(-done.returncode)}")
    try:
        # The driver may print before; its answer is the last line.
        told = json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
        return CudaAnswer(
            code=told["code"],
            has_library=told["code"] is not None,
            devices=tuple(told["devices"]),
            driver=told["driver"],
            said=said,
            detail=told["detail"],
        )
    except (ValueError, LookupError, TypeError):
        return CudaAnswer(said=said, detail=f"the driver ended the question with status {done.returncode}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_nvidia_display(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def _nodes(root: Path, patterns: tuple[str, ...]) -> list[DeviceNode]:
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    if not found:
        return [DeviceNode(path=" or ".join(f"/{pattern}" for pattern in patterns), state=NodeState.MISSING)]
    return [_node(path) for path in found]


def _node(path: Path) -> DeviceNode:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        states = {errno.EACCES: NodeState.DENIED, errno.EPERM: NodeState.BARRED, errno.ENOENT: NodeState.MISSING}
        state = states.get(error.errno or 0, NodeState.FAILED)
        return DeviceNode(path=str(path), state=state, owner=_group(path), detail=error.strerror)
    return DeviceNode(path=str(path), state=NodeState.OPENS, owner=_group(path))


def _group(path: Path) -> str | None:
    try:
        number = path.stat().st_gid
    except OSError:
        return None
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
