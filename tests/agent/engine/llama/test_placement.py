"""Which device holds what, read from llama.cpp's log."""

from __future__ import annotations

import pytest

from moe2.agent.engine.llama.placement import PlacementLog
from moe2.common.placement import DeviceShare, placement_text

MIB = 2**20
# A Jetson Orin: KV and compute lines as printed there (withcatai/node-llama-cpp issue 560), the others in their form.
ORIN = """\
llama_model_load_from_file_impl: using device CUDA0 (Orin) (unknown id) - 50123 MiB free
load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
load_tensors: layer   0 assigned to device CUDA0, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 0
load_tensors: layer   2 assigned to device CUDA0, is_swa = 0
load_tensors: offloading output layer to GPU
load_tensors: offloading 2 repeating layers to GPU
load_tensors: offloaded 3/3 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   243.43 MiB
load_tensors:        CUDA0 model buffer size =  1050.43 MiB
llama_kv_cache: layer  27: dev = CUDA0
llama_kv_cache:      CUDA0 KV buffer size =   448.00 MiB
llama_kv_cache: size =  448.00 MiB (  4096 cells,  28 layers,  1/1 seqs), K (f16):  224.00 MiB, V (f16):  224.00 MiB
sched_reserve:      CUDA0 compute buffer size =   300.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.01 MiB
"""
TWO_CARDS = """\
using device CUDA0 (NVIDIA GeForce RTX 4070 Ti) (0000:01:00.0) - 11000 MiB free
using device CUDA1 (NVIDIA GeForce RTX 3090 Ti) (0000:0a:00.0) - 23000 MiB free
load_tensors: layer   0 assigned to device CPU, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 0
load_tensors: layer   2 assigned to device CUDA1, is_swa = 0
load_tensors: layer  10 assigned to device CUDA1, is_swa = 0
load_tensors:        CUDA1 model buffer size = 13989.53 MiB
load_tensors:        CUDA0 model buffer size =  5434.38 MiB
load_tensors:          CPU model buffer size =  1640.62 MiB
"""


def read(text: str, log: PlacementLog | None = None) -> PlacementLog:
    log = log or PlacementLog()
    for line in text.splitlines(keepends=True):
        log.read(line)
    return log


def test_an_orin_holds_all_of_it() -> None:
    """Its GPU has no PCI address; what is mapped and pinned is the host's memory."""
    assert read(ORIN).shares() == (
        DeviceShare(
            device="CUDA0",
            is_gpu=True,
            description="Orin",
            layers=3,
            weights_bytes=round(1050.43 * MIB),
            cache_bytes=448 * MIB,
            work_bytes=round(300.75 * MIB),
        ),
        DeviceShare(device="CPU", weights_bytes=round(243.43 * MIB), work_bytes=round(16.01 * MIB)),
    )
    assert placement_text(read(ORIN).shares()) == "CUDA0 3/3 layers"


def test_two_cards_are_told_apart() -> None:
    """With their addresses, by which sensors know them; a layer is counted once."""
    first, second, host = read(TWO_CARDS).shares()
    assert (first.bus_id, first.layers, first.weights_bytes) == ("0000:01:00.0", 1, round(5434.38 * MIB))
    assert (second.bus_id, second.layers, second.description) == ("0000:0a:00.0", 2, "NVIDIA GeForce RTX 3090 Ti")
    assert (host.device, host.is_gpu, host.layers) == ("CPU", False, 1)
    assert placement_text(read(TWO_CARDS).shares()) == "CUDA0 1/4 layers, CUDA1 2/4 layers, CPU 1/4 layers"


def test_the_sum_is_enough_where_single_layers_are_not_told() -> None:
    """As in a release that does not print them, with one GPU."""
    summed = "".join(line for line in ORIN.splitlines(keepends=True) if "assigned" not in line)
    gpu, host = read(summed).shares()
    assert (gpu.device, gpu.layers, host.layers) == ("CUDA0", 3, 0)


def test_with_two_gpus_the_sum_alone_says_too_little() -> None:
    """Unknown, not guessed."""
    summed = "".join(line for line in TWO_CARDS.splitlines(keepends=True) if "assigned" not in line)
    shares = read(summed + "load_tensors: offloaded 4/4 layers to GPU\n").shares()
    assert sum(share.layers for share in shares) == 0
    assert placement_text(shares) == ""


def test_another_model_begins_anew() -> None:
    """But what llama.cpp said of the GPUs it says once in a process."""
    log = read("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\n" + ORIN)
    log.clear()
    assert log.shares() == ()
    assert log.complaint == "failed to initialize CUDA: no CUDA-capable device is detected"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "model buffer size = ",
        "load_tensors: layer x assigned to device",
        "llama_model_loader: - kv 0: general.name str = layer 0 assigned to device CUDA0, CUDA0 KV buffer size = 1 MiB",
        "CPU model buffer size = 1.2.3 MiB",
        "\x00\x01 KV buffer size = nan MiB",
    ],
)
def test_odd_lines_are_passed_over(line: str) -> None:
    """A model's own metadata stands in the same log."""
    assert read(line).shares() == ()
