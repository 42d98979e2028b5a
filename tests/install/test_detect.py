"""install.sh: what it takes a host for, and how it would build llama.cpp there."""

from __future__ import annotations

import pytest

from tests.install.fakehost import FakeHost


def plan(host: FakeHost) -> str:
    """What a dry run of installing an agent says, warnings included."""
    shown = host.install_agent("--dry-run")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout + shown.stderr


def test_a_jetson_agx_orin(host: FakeHost) -> None:
    """JetPack from L4T's release, CUDA architecture 87 from the device tree, nvcc from its usual place."""
    host.jetson()
    host.cuda()
    said = plan(host)
    assert "Jetson, NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.0 (JetPack 6)" in said
    assert "aarch64" in said
    assert "nvcc 12.6, architecture 87" in said
    assert "-DGGML_CUDA=on\\ -DCMAKE_CUDA_ARCHITECTURES=87" in said
    assert "Installing moe2[agent,jetson]" in said


@pytest.mark.parametrize(
    ("tegra", "architecture"), [("tegra210", "53"), ("tegra186", "62"), ("tegra194", "72"), ("tegra264", "native")]
)
def test_other_jetsons(host: FakeHost, tegra: str, architecture: str) -> None:
    """One that is not known is left to the compiler, which can ask the GPU."""
    host.jetson(tegra=tegra, release="35", revision="5.0")
    host.cuda()
    said = plan(host)
    assert "L4T 35.5.0 (JetPack 5)" in said
    assert f"-DCMAKE_CUDA_ARCHITECTURES={architecture}" in said


def test_a_jetson_without_its_release_file(host: FakeHost) -> None:
    """The device tree is enough."""
    host.jetson()
    (host.root / "etc/nv_tegra_release").unlink()
    host.cuda()
    said = plan(host)
    assert "L4T unknown" in said
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in said


def test_a_desktop_with_a_4090(host: FakeHost) -> None:
    """The architecture is what the driver calls compute capability."""
    host.nvidia(("NVIDIA GeForce RTX 4090", "8.9"))
    host.cuda("12.4")
    said = plan(host)
    assert "with NVIDIA GeForce RTX 4090, driver 560.35.03" in said
    assert "CUDA 12.6 (driver), nvcc 12.4, architecture 89" in said
    assert "-DGGML_CUDA=on\\ -DCMAKE_CUDA_ARCHITECTURES=89" in said
    assert "Installing moe2[agent,nvidia]" in said


def test_two_kinds_of_cards(host: FakeHost) -> None:
    """llama.cpp is built for both."""
    host.nvidia(("NVIDIA GeForce RTX 4090", "8.9"), ("NVIDIA GeForce RTX 3090", "8.6"))
    host.cuda()
    assert "-DCMAKE_CUDA_ARCHITECTURES=86\\;89" in plan(host)


def test_a_driver_that_does_not_tell_the_compute_capability(host: FakeHost) -> None:
    """The compiler looks itself."""
    host.nvidia(("Tesla T4", None))
    host.cuda()
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in plan(host)


def test_a_gpu_without_a_cuda_compiler(host: FakeHost) -> None:
    """A build for the CPU, with a warning that says what is missing."""
    host.nvidia(("NVIDIA GeForce RTX 4090", "8.9"))
    said = plan(host)
    assert "There is a GPU, but no nvcc" in said
    assert "Install the CUDA toolkit" in said
    assert "GGML_CUDA" not in said


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_plain_host(host: FakeHost, machine: str) -> None:
    """No GPU is asked for, and none is missed."""
    host.uname(machine)
    said = plan(host)
    assert "without an NVIDIA GPU" in said
    assert f"{machine}, systemd 252" in said
    assert "GGML_CUDA" not in said
    assert "Installing moe2[agent] " in said


def test_a_driver_without_a_card(host: FakeHost) -> None:
    """nvidia-smi alone makes no GPU."""
    host.program("nvidia-smi", "echo 'No devices were found'; exit 6")
    assert "without an NVIDIA GPU" in plan(host)


def test_a_processor_that_moe2_is_not_for(host: FakeHost) -> None:
    """Refused before anything is done."""
    host.uname("riscv64")
    refused = host.install("coordinator", "--dry-run")
    assert refused.returncode == 1
    assert "this is riscv64; moe2 is for x86_64 and aarch64" in refused.stderr


@pytest.mark.parametrize(("memory_kb", "jobs"), [(7_800_000, 3), (64_000_000, 6), (900_000, 1)])
def test_no_more_compilers_than_the_memory_has_room_for(host: FakeHost, memory_kb: int, jobs: int) -> None:
    """An Orin Nano has six cores and 8 GB."""
    host.jetson()
    host.cuda()
    host.file("proc/meminfo", f"MemTotal:        {memory_kb} kB\nMemFree:  1 kB\n")
    assert f"CMAKE_BUILD_PARALLEL_LEVEL={jobs} " in plan(host)
