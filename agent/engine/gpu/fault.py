"""Why the GPU is not used, and what to do about it: from facts of the host to a cause and a remedy. PURE.

The codes are those of `CUresult` in CUDA's driver API; their remedies were gathered from public reports of Jetsons and
desktop cards.
"""

from __future__ import annotations

from moe2.agent.engine.gpu.facts import CudaAnswer, DeviceNode, GpuKind, HostGpu, NodeState
from moe2.common.placement import DeviceShare, GpuCause, GpuFault, gpu_layers

_REINSTALL = "run `sudo ./install.sh upgrade` from the checkout, which writes the agent's unit anew for this host"
_BUILD = (
    "Install the CUDA toolkit, so that nvcc is in PATH or /usr/local/cuda/bin, then run `sudo ./install.sh upgrade`."
)
_RESTART = "then: sudo systemctl restart moe2-agent"
_NAMES = {
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    304: "CUDA_ERROR_OPERATING_SYSTEM",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    999: "CUDA_ERROR_UNKNOWN",
}
_NODE_CODES = (None, 0, 3, 100, 101, 304, 801, 999)
"""Answers for which a device node that cannot be opened is reason enough; None is a driver that hung or crashed."""
_PERMISSION_WORDS = ("Permission denied", "Operation not permitted")


def layers_asked(layers: int, total: int) -> int:
    """Returns how many of a model's `total` layers the setting `gpu_layers` wants on the GPU; -1 is all."""
    return total if layers < 0 else min(layers, total)


def placement_fault(
    asked: int, placement: tuple[DeviceShare, ...], host: HostGpu, *, backends: tuple[str, ...], engine_said: str = ""
) -> GpuFault | None:
    """Returns why fewer layers are on GPUs than asked for; None where all are, or where there is no GPU and none is
    asked for.

    asked: the setting `gpu_layers`. backends: llama.cpp's own, without its processor's. engine_said: what llama.cpp
    logged when it looked for GPUs.
    """
    total = sum(share.layers for share in placement)
    on_gpu = gpu_layers(placement)
    if asked == 0:
        return None if on_gpu or host.kind is None else _not_asked(host, backends)
    if total and on_gpu >= layers_asked(asked, total):
        return None
    fault = gpu_fault(host, backends=backends, engine_said=engine_said)
    if fault is not None:
        return fault
    words = f" llama.cpp says: {engine_said}" if engine_said else ""
    return GpuFault(
        cause=GpuCause.DRIVER_ERROR,
        message=f"CUDA works, but llama.cpp put only {on_gpu} of {total} layers on the GPU.{words}",
        remedy="Read the agent's log around the loading of the model: journalctl -u moe2-agent.",
    )


def gpu_fault(host: HostGpu, *, backends: tuple[str, ...] | None, engine_said: str = "") -> GpuFault | None:
    """Returns why llama.cpp cannot use the GPU of this host; None where nothing is wrong with it.

    backends: llama.cpp's own, without its processor's; None where that was not asked.
    """
    if host.kind is None and not (host.cuda and host.cuda.devices):
        return GpuFault(
            cause=GpuCause.NO_GPU,
            message="No NVIDIA GPU was found on this host.",
            remedy="Set gpu_layers = 0 where the processor is to answer; else check that the card is seen: lspci.",
        )
    if backends == ():
        answer = "" if host.cuda is None else f" The driver says: {cuda_text(host.cuda)}."
        return GpuFault(
            cause=GpuCause.NO_GPU_BUILD,
            message=f"This llama.cpp was built for the processor alone, without CUDA.{answer}",
            remedy=_BUILD,
        )
    if host.cuda is None:
        return _node_fault(host)
    if host.cuda.code == 0 and host.cuda.devices:
        return _words_of_the_engine(host, engine_said)
    if not host.cuda.has_library:
        return _library_fault(host, host.cuda)
    # Other codes speak for themselves, also where a node is missing besides.
    return (_node_fault(host) if host.cuda.code in _NODE_CODES else None) or _code_fault(host, host.cuda)


def cuda_text(answer: CudaAnswer) -> str:
    """Returns the driver's answer in a few words for people."""
    if not answer.has_library:
        return "libcuda.so.1 cannot be loaded"
    if answer.code is None:
        return answer.detail or "no answer"
    if answer.code == 0:
        names = ", ".join(answer.devices) or "no device"
        return f"cuInit 0, {names}" + (f", CUDA {answer.driver}" if answer.driver else "")
    return f"cuInit {answer.code} ({_NAMES.get(answer.code, 'unnamed')})"


def _not_asked(host: HostGpu, backends: tuple[str, ...]) -> GpuFault:
    built = "" if backends else " This llama.cpp was built without CUDA, too."
    setting = f"et gpu_layers = -1 for the model in /etc/moe2/agent.toml, {_RESTART}"
    return GpuFault(
        cause=GpuCause.NOT_ASKED if backends else GpuCause.NO_GPU_BUILD,
        message=f"The host has a GPU ({host.kind}), and the model's gpu_layers is 0.{built}",
        remedy=f"S{setting}" if backends else f"{_BUILD} Then s{setting}",
        is_asked=False,
    )


def _words_of_the_engine(host: HostGpu, said: str) -> GpuFault | None:
    """Returns a fault only llama.cpp has seen: the driver itself is content."""
    if not said:
        return None
    if "insufficient for CUDA runtime" in said:
        newest = host.cuda.driver if host.cuda else None
        known = f", which knows CUDA {newest} at most" if newest else ""
        return GpuFault(
            cause=GpuCause.DRIVER_ERROR,
            message=f"llama.cpp was built with a newer CUDA than the driver's{known}: {said}",
            remedy="Update the driver, or build with an older CUDA toolkit: remove /opt/moe2/wheels/cuda-*, put that "
            "toolkit's nvcc first in PATH, and run `sudo ./install.sh upgrade`.",
        )
    if "out of memory" in said.lower():
        return GpuFault(
            cause=GpuCause.MEMORY,
            message=f"The GPU has too little free memory: {said}",
            remedy="Free memory (`nvidia-smi` shows who holds it), or offload fewer layers (gpu_layers).",
        )
    return GpuFault(
        cause=GpuCause.DRIVER_ERROR,
        message=f"The driver is content, llama.cpp is not: {said}",
        remedy="Run `sudo ./install.sh upgrade` to build llama.cpp for this GPU; a GPU of another architecture than "
        "the one it was built for cannot be used.",
    )


def _node_fault(host: HostGpu) -> GpuFault | None:
    by_state: dict[NodeState, list[DeviceNode]] = {}
    for node in host.nodes:
        by_state.setdefault(node.state, []).append(node)
    answer = f" ({cuda_text(host.cuda)})" if host.cuda else ""
    if barred := by_state.get(NodeState.BARRED):
        return GpuFault(
            cause=GpuCause.NO_PERMISSION,
            message=f"The unit's device rules bar {_paths(barred)}{answer}.",
            remedy=f"{_REINSTALL[0].upper()}{_REINSTALL[1:]}; a drop-in with an empty `DeviceAllow=` line and "
            "`DevicePolicy=auto` lifts the rules (docs/operations.md).",
        )
    if denied := by_state.get(NodeState.DENIED):
        groups = sorted({node.owner for node in denied if node.owner} - {"root"})
        joining = f"Its group is {', '.join(groups)}: " if groups else "It belongs to root alone: "
        return GpuFault(
            cause=GpuCause.NO_PERMISSION,
            message=f"This user may not open {_paths(denied)}{answer}.",
            remedy=joining
            + (
                f"{_REINSTALL}, with these groups; where you run the agent yourself, join them and log in again."
                if groups
                else "a udev rule has to give it a group, such as video; NVIDIA's driver brings such rules."
            ),
        )
    if missing := by_state.get(NodeState.MISSING):
        return GpuFault(
            cause=GpuCause.NO_DEVICE_NODE,
            message=f"{_paths(missing)} {'is' if len(missing) == 1 else 'are'} missing{answer}.",
            remedy=_MISSING_REMEDIES[host.kind or GpuKind.CARD],
        )
    return None


_MISSING_REMEDIES = {
    GpuKind.JETSON: "Load the GPU's modules (sudo modprobe nvgpu; sudo modprobe nvidia-drm on JetPack 6 and 7, "
    f"tegra-drm on 5) and see `sudo dmesg | grep -i nvgpu`, {_RESTART}.",
    GpuKind.CARD: f"Have them made: sudo nvidia-modprobe -u -c 0 (or `sudo nvidia-smi`), {_RESTART}. If that fails, "
    "the driver's module is not loaded: sudo modprobe nvidia, and see `sudo dmesg | grep -i nvrm`.",
    GpuKind.WSL: "Update WSL on Windows (wsl --update), then restart it (wsl --shutdown).",
}


def _library_fault(host: HostGpu, answer: CudaAnswer) -> GpuFault:
    places = {
        GpuKind.JETSON: "Install it (sudo apt-get install nvidia-l4t-cuda), then: sudo ldconfig.",
        GpuKind.CARD: "Install NVIDIA's driver with its compute libraries (on Ubuntu: sudo ubuntu-drivers install), "
        "then reboot.",
        GpuKind.WSL: "Make it known: echo /usr/lib/wsl/lib | sudo tee /etc/ld.so.conf.d/wsl.conf; sudo ldconfig.",
    }
    return GpuFault(
        cause=GpuCause.NO_DRIVER,
        message=f"NVIDIA's driver library cannot be loaded: {answer.detail}.",
        remedy=places[host.kind or GpuKind.CARD],
    )


def _code_fault(host: HostGpu, answer: CudaAnswer) -> GpuFault:
    said = f" It printed: {answer.said}" if answer.said else ""
    message = f"The driver refuses: {cuda_text(answer)}.{said}"
    if answer.code == 999 and any(words in answer.said for words in _PERMISSION_WORDS):
        return GpuFault(
            cause=GpuCause.NO_PERMISSION,
            message=message,
            remedy="The agent's user is not in the group that owns a device node, usually video on /dev/nvmap (ls -l "
            f"/dev/nvmap): {_REINSTALL}.",
        )
    return GpuFault(cause=_cause_of(answer.code), message=message, remedy=_code_remedy(host, answer))


def _cause_of(code: int | None) -> GpuCause:
    if code in (0, 100):
        return GpuCause.NO_DEVICE
    return GpuCause.MEMORY if code == 2 else GpuCause.DRIVER_ERROR


def _code_remedy(host: HostGpu, answer: CudaAnswer) -> str:
    code, is_jetson = answer.code, host.kind is GpuKind.JETSON
    if code in (0, 100) and host.visible_devices is not None:
        return f"CUDA_VISIBLE_DEVICES is {host.visible_devices!r} and hides the GPUs: remove it from the environment."
    if code == 801 and is_jetson:
        return (
            "On an Orin: the render nodes /dev/dri/renderD* are missing (sudo modprobe nvidia-drm), or the agent's "
            f"user is not in the group render: {_REINSTALL}. On Thor: /sys cannot be read; mount it."
        )
    if code in (0, 100):
        where = "sudo dmesg | grep -i nvgpu" if is_jetson else "nvidia-smi"
        return f"See what the driver says of the GPU: {where}. In a container, pass the GPU through (--gpus all)."
    log = "sudo dmesg | grep -i nv" if is_jetson else "nvidia-smi, and sudo dmesg | grep -i nvrm"
    if code is None or code not in _REMEDIES or (code == 999 and is_jetson):
        return f"See what the driver says ({log}), and reboot if that does not help."
    return _REMEDIES[code]


_REMEDIES = {
    2: "Free memory: on a Jetson the GPU shares the host's; elsewhere `nvidia-smi` shows who holds it.",
    34: "The CUDA toolkit's stub of libcuda.so.1 is found first: take its folder `stubs` out of LD_LIBRARY_PATH.",
    46: "Another process holds the GPU for itself: sudo nvidia-smi -c DEFAULT.",
    101: "A GPU that is named does not exist: check CUDA_VISIBLE_DEVICES.",
    304: "The system refused the driver something: check the rights on /dev/nvidia* and the unit's device rules.",
    801: "The GPU or the driver's mode cannot compute with CUDA: see `nvidia-smi -q`.",
    802: "The host is not ready yet: sudo systemctl start nvidia-fabricmanager, or wait and restart the agent.",
    803: "The loaded driver and its library differ, as after an update: reboot. In a container: install the host's "
    "release of the library.",
    804: "The compatibility library of a newer CUDA does not support this GPU: take cuda-compat out of "
    "LD_LIBRARY_PATH, or update the driver.",
    999: "The driver's state is broken, as after a suspend: sudo rmmod nvidia_uvm; sudo modprobe nvidia_uvm; sudo "
    "nvidia-modprobe -u -c 0. If that fails, reboot.",
}


def _paths(nodes: list[DeviceNode]) -> str:
    return ", ".join(node.path for node in nodes)
