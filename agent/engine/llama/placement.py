"""Reads from llama.cpp's log which device holds which layers and bytes. PURE: lines in, shares out.

llama.cpp has no function that tells it, but its log does, at levels that are passed on whatever the verbosity:

    llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 4090) (0000:01:00.0) - 23712 MiB free
    load_tensors: layer   0 assigned to device CUDA0, is_swa = 0
    load_tensors:        CUDA0 model buffer size =  4685.30 MiB
    llama_kv_cache:      CUDA0 KV buffer size =   448.00 MiB
    sched_reserve:      CUDA0 compute buffer size =   300.75 MiB
"""

from __future__ import annotations

import re
from collections import Counter

from moe2.common.placement import DeviceShare

HOST = "CPU"
_MIB = 2**20
_DEVICE = re.compile(r"using device (\S+) \((.*)\) \(([^()]*)\) - \d+ MiB free")
_LAYER = re.compile(r"layer\s+(\d+) assigned to device ([^\s,]+)")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([0-9]+(?:\.[0-9]+)?) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUS_ID = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]")
_COMPLAINT = re.compile(r"ggml_cuda_init: (failed to initialize .*|no CUDA devices found.*)")
_FROM_THE_FILE = ("llama_model_loader:", "print_info:", "load:")
"""How lines begin that repeat what the model's file says, which may be anything."""
_MARKS = ("ggml_cuda_init", "assigned to device", "buffer size", "using device", "layers to GPU")
_WEIGHTS, _CACHE, _WORK = "model", "cache", "work"
_KINDS = {"model": _WEIGHTS, "KV": _CACHE, "RS": _CACHE, "compute": _WORK, "output": _WORK}


class PlacementLog:
    """The lines about one model's loading and its context, read one after the other."""

    def __init__(self) -> None:
        self.complaint = ""
        """About the search for GPUs, which llama.cpp makes once in a process; empty where it found nothing amiss."""
        self.clear()

    def clear(self) -> None:
        """Forget everything: another model is loaded."""
        self._names: dict[str, tuple[str, str | None]] = {}
        self._layers: dict[int, str] = {}
        self._offloaded: tuple[int, int] | None = None
        self._buffers: Counter[tuple[str, str]] = Counter()

    def read(self, line: str) -> None:
        """Take a line of the log; most say nothing about devices."""
        if line.startswith(_FROM_THE_FILE) or not any(mark in line for mark in _MARKS):
            return
        if found := _LAYER.search(line):
            self._layers[int(found[1])] = found[2]
        elif found := _BUFFER.search(line):
            self._buffers[found[1], _KINDS[found[2]]] += round(float(found[3]) * _MIB)
        elif found := _DEVICE.search(line):
            self._names[found[1]] = (found[2], found[3] if _BUS_ID.fullmatch(found[3]) else None)
        elif found := _OFFLOADED.search(line):
            self._offloaded = int(found[1]), int(found[2])
        elif found := _COMPLAINT.search(line):
            self.complaint = found[1].strip()

    def shares(self) -> tuple[DeviceShare, ...]:
        """Returns what each device holds, GPUs first; nothing where the log said nothing."""
        layers = self._layers_by_device()
        held: Counter[tuple[str, str]] = Counter()
        for (buffer, kind), size in self._buffers.items():
            held[self._device_of(buffer), kind] += size
        devices = {*layers, *(device for device, _ in held)}
        order = sorted(devices, key=lambda device: (device == HOST, device))
        return tuple(
            DeviceShare(
                device=device,
                is_gpu=device != HOST,
                description=self._names[device][0] if device in self._names else None,
                bus_id=self._names[device][1] if device in self._names else None,
                layers=layers[device],
                weights_bytes=held.get((device, _WEIGHTS)),
                cache_bytes=held.get((device, _CACHE)),
                work_bytes=held.get((device, _WORK)),
            )
            for device in order
        )

    def _layers_by_device(self) -> Counter[str]:
        if self._layers:
            return Counter(self._layers.values())
        # Without the lines of single layers the sum is enough, as long as there is one GPU.
        if self._offloaded is None or len(self._names) > 1:
            return Counter()
        on_gpu, total = self._offloaded
        gpu = next(iter(self._names), "GPU")
        return Counter({gpu: on_gpu, HOST: total - on_gpu})

    def _device_of(self, buffer: str) -> str:
        """Returns the device that a buffer is on. CUDA_Host and CPU_Mapped are the host's memory."""
        known = {*self._names, *self._layers.values()} - {HOST}
        fitting = [device for device in known if buffer == device or buffer.startswith(f"{device}_")]
        return max(fitting, key=len, default=HOST)
