"""From what is known of a GPU to the cause and the remedy."""

from __future__ import annotations

import pytest

from moe2.agent.engine.gpu.facts import CudaAnswer, DeviceNode, GpuKind, HostGpu, NodeState
from moe2.agent.engine.gpu.fault import gpu_fault, placement_fault
from moe2.common.placement import DeviceShare, GpuCause, GpuFault

CUDA = ("CUDA",)
WORKS = CudaAnswer(code=0, devices=("Orin",), driver="12.6")
ON_CPU = (DeviceShare(device="CPU", layers=33),)
ON_GPU = (DeviceShare(device="CUDA0", is_gpu=True, layers=33),)
DENIED_NVMAP = DeviceNode(path="/dev/nvmap", state=NodeState.DENIED, owner="video")
NO_RENDER = DeviceNode(path="/dev/dri/renderD*", state=NodeState.MISSING)


def jetson(cuda: CudaAnswer | None = None, *nodes: DeviceNode) -> HostGpu:
    return HostGpu(kind=GpuKind.JETSON, cuda=cuda or WORKS, nodes=nodes)


def card(cuda: CudaAnswer | None = None, *nodes: DeviceNode) -> HostGpu:
    return HostGpu(kind=GpuKind.CARD, cuda=cuda or WORKS, nodes=nodes)


def refused(code: int | None, said: str = "", detail: str | None = None) -> CudaAnswer:
    return CudaAnswer(code=code, said=said, detail=detail)


def fault(host: HostGpu, *, backends: tuple[str, ...] = CUDA, said: str = "") -> GpuFault:
    found = gpu_fault(host, backends=backends, engine_said=said)
    assert found is not None
    return found


def test_a_gpu_that_works_has_no_fault() -> None:
    """On a Jetson as on a card."""
    assert gpu_fault(jetson(), backends=CUDA) is None
    assert gpu_fault(card(), backends=CUDA) is None


@pytest.mark.parametrize(
    ("host", "cause", "remedy"),
    [
        (jetson(refused(801)), GpuCause.DRIVER_ERROR, "group render"),
        (jetson(refused(801), NO_RENDER), GpuCause.NO_DEVICE_NODE, "modprobe nvidia-drm"),
        (jetson(refused(999, "NvRmMemInitNvmap failed with Permission denied")), GpuCause.NO_PERMISSION, "/dev/nvmap"),
        (jetson(refused(999), DENIED_NVMAP), GpuCause.NO_PERMISSION, "Its group is video"),
        (jetson(refused(999)), GpuCause.DRIVER_ERROR, "dmesg"),
        (card(refused(999)), GpuCause.DRIVER_ERROR, "modprobe nvidia_uvm"),
        (card(refused(100)), GpuCause.NO_DEVICE, "nvidia-smi"),
        (jetson(refused(100)), GpuCause.NO_DEVICE, "nvgpu"),
        (card(refused(803)), GpuCause.DRIVER_ERROR, "reboot"),
        (card(refused(804)), GpuCause.DRIVER_ERROR, "cuda-compat"),
        (card(refused(802)), GpuCause.DRIVER_ERROR, "nvidia-fabricmanager"),
        (card(refused(34)), GpuCause.DRIVER_ERROR, "stubs"),
        (card(refused(46)), GpuCause.DRIVER_ERROR, "nvidia-smi -c DEFAULT"),
        (card(refused(2)), GpuCause.MEMORY, "nvidia-smi"),
        (card(refused(12345)), GpuCause.DRIVER_ERROR, "nvidia-smi"),
        (card(CudaAnswer(code=0)), GpuCause.NO_DEVICE, "nvidia-smi"),
        (card(refused(None, detail="the driver crashed with SIGSEGV")), GpuCause.DRIVER_ERROR, "dmesg"),
        (card(CudaAnswer(has_library=False, detail="no such file")), GpuCause.NO_DRIVER, "ubuntu-drivers"),
        (jetson(CudaAnswer(has_library=False, detail="x")), GpuCause.NO_DRIVER, "nvidia-l4t-cuda"),
        (
            HostGpu(kind=GpuKind.WSL, cuda=CudaAnswer(has_library=False, detail="x")),
            GpuCause.NO_DRIVER,
            "/usr/lib/wsl/lib",
        ),
    ],
)
def test_each_answer_of_the_driver_has_its_remedy(host: HostGpu, cause: GpuCause, remedy: str) -> None:
    """One that can be done on that kind of host."""
    found = fault(host)
    assert found.cause is cause
    assert remedy in found.remedy


def test_the_answer_is_told_by_number_and_name() -> None:
    """So that it can be searched for; also one that nobody knows."""
    assert "cuInit 801 (CUDA_ERROR_NOT_SUPPORTED)" in fault(jetson(refused(801))).message
    assert "cuInit 12345 (unnamed)" in fault(card(refused(12345))).message


def test_a_node_that_the_unit_bars_is_no_matter_of_groups() -> None:
    """EPERM comes from the unit's device rules, and installing again writes them for this host."""
    barred = DeviceNode(path="/dev/nvgpu/igpu0/ctrl", state=NodeState.BARRED, owner="video")
    found = fault(jetson(refused(999), barred, DENIED_NVMAP))
    assert found.cause is GpuCause.NO_PERMISSION
    assert "device rules bar /dev/nvgpu/igpu0/ctrl" in found.message
    assert "./install.sh upgrade" in found.remedy


def test_a_mismatch_of_driver_and_library_is_told_before_missing_nodes() -> None:
    """It explains them."""
    missing = DeviceNode(path="/dev/nvidia-uvm", state=NodeState.MISSING)
    assert "reboot" in fault(card(refused(803), missing)).remedy


def test_a_build_without_cuda_is_told_with_what_the_driver_says() -> None:
    """The driver may be broken besides."""
    found = fault(card(refused(999)), backends=())
    assert found.cause is GpuCause.NO_GPU_BUILD
    assert "cuInit 999" in found.message
    assert "nvcc" in found.remedy


@pytest.mark.parametrize(
    ("said", "cause", "remedy"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", GpuCause.DRIVER_ERROR, "Update the driver"),
        ("failed to initialize CUDA: out of memory", GpuCause.MEMORY, "gpu_layers"),
        ("no kernel image is available", GpuCause.DRIVER_ERROR, "./install.sh upgrade"),
    ],
)
def test_what_only_llama_cpp_complains_about_is_told(said: str, cause: GpuCause, remedy: str) -> None:
    """The driver's own answer is 0 then."""
    found = fault(card(), said=said)
    assert found.cause is cause
    assert said in found.message
    assert remedy in found.remedy


def test_hidden_gpus_are_told_by_the_variable_that_hides_them() -> None:
    """CUDA_VISIBLE_DEVICES may be empty."""
    found = fault(HostGpu(kind=GpuKind.CARD, cuda=refused(100), visible_devices=""))
    assert "CUDA_VISIBLE_DEVICES is ''" in found.remedy


# --- A model ----------------------------------------------------------------------------------------------------------


def test_a_model_on_the_gpu_has_no_fault() -> None:
    """All layers, or as many as were asked for."""
    assert placement_fault(-1, ON_GPU, card(), backends=CUDA) is None
    split = (DeviceShare(device="CUDA0", is_gpu=True, layers=20), DeviceShare(device="CPU", layers=13))
    assert placement_fault(20, split, card(), backends=CUDA) is None
    assert placement_fault(99, ON_GPU, card(), backends=CUDA) is None


def test_a_model_that_fell_back_to_the_processor_has_one() -> None:
    """It was asked for, and the cause is the host's."""
    found = placement_fault(-1, ON_CPU, jetson(refused(999), DENIED_NVMAP), backends=CUDA)
    assert found is not None
    assert (found.cause, found.is_asked) == (GpuCause.NO_PERMISSION, True)


def test_a_model_that_is_half_on_the_gpu_has_one() -> None:
    """Where all of it was asked for and nothing else is wrong, llama.cpp's log is the place to look."""
    split = (DeviceShare(device="CUDA0", is_gpu=True, layers=20), DeviceShare(device="CPU", layers=13))
    found = placement_fault(-1, split, card(), backends=CUDA)
    assert found is not None
    assert "20 of 33 layers" in found.message


def test_gpu_layers_of_zero_on_a_host_with_a_gpu_is_worth_knowing() -> None:
    """Nobody asked for the GPU; the remedy says how to."""
    found = placement_fault(0, ON_CPU, card(), backends=CUDA)
    assert found is not None
    assert (found.cause, found.is_asked) == (GpuCause.NOT_ASKED, False)
    assert found.remedy.startswith("Set gpu_layers = -1")
    without = placement_fault(0, ON_CPU, card(), backends=())
    assert without is not None
    assert without.cause is GpuCause.NO_GPU_BUILD


def test_a_host_without_a_gpu_is_left_alone() -> None:
    """Unless the configuration asks for one."""
    assert placement_fault(0, ON_CPU, HostGpu(), backends=()) is None
    found = placement_fault(-1, ON_CPU, HostGpu(cuda=CudaAnswer(has_library=False)), backends=())
    assert found is not None
    assert found.cause is GpuCause.NO_GPU


def test_a_placement_that_nobody_knows_is_no_success() -> None:
    """An empty log must not read as "all layers are on the GPU"."""
    found = placement_fault(-1, (), HostGpu(), backends=())
    assert found is not None
