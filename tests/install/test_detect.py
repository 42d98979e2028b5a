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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tegra", "nvcc", "architecture"),
    [
        ("tegra210", "10.2", "53"),
        ("tegra186", "10.2", "62"),
        ("tegra194", "11.4", "72"),
        ("tegra264", "12.9", "101"),
        ("tegra264", "13.0", "110"),
        ("tegra999", "13.0", "native"),
    ],
)
def test_other_jetsons(host: FakeHost, tegra: str, nvcc: str, architecture: str) -> None:
    """Thor's architecture was renumbered with CUDA 13; one that is not known is left to the compiler."""
    host.jetson(tegra=tegra, release="35", revision="5.0")
    host.cuda(nvcc)
    said = plan(host)
    assert "L4T 35.5.0 (JetPack 5)" in said
    assert f"-DCMAKE_CUDA_ARCHITECTURES={architecture}" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "revision", "named"),
    [
        ("34", "1.1", "L4T 34.1.1 (JetPack 5)"),
        ("35", "6.0", "L4T 35.6.0 (JetPack 5)"),
        ("36", "4.7", "L4T 36.4.7 (JetPack 6)"),
        ("38", "2.0", "L4T 38.2.0 (JetPack 7)"),
        ("39", "0.0", "L4T 39.0.0 (JetPack 7)"),
        ("40", "1.0", "L4T 40.1.0\n"),
    ],
)
def test_a_release_of_l4t_is_a_jetpack(host: FakeHost, release: str, revision: str, named: str) -> None:
    """One that is not known yet is no reason to stop."""
    host.jetson(release=release, revision=revision)
    host.cuda()
    assert named in plan(host)


@pytest.mark.slow
@pytest.mark.parametrize(("memory_kb", "without"), [(7_620_000, True), (15_800_000, False), (64_300_000, False)])
def test_a_small_board_gets_llama_cpp_without_its_memory_pool(host: FakeHost, memory_kb: int, without: bool) -> None:
    """That pool reserves 32 GB of addresses, which a board of 8 GB refuses."""
    host.jetson()
    host.cuda()
    host.file("proc/meminfo", f"MemTotal:        {memory_kb} kB\n")
    said = plan(host)
    assert ("-DGGML_CUDA_NO_VMM=ON" in said) is without
    assert ("cuda-87-novmm" in said) is without


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "nvcc", "fault"),
    [
        ("12.0", "12.4", "nvcc 12.4 does not know architecture 120: it needs CUDA 12.8 or newer"),
        ("12.0", "12.8", ""),
        ("8.9", "11.5", "nvcc 11.5 does not know architecture 89: it needs CUDA 11.8 or newer"),
        ("8.9", "13.1", ""),
        ("7.0", "13.0", "nvcc 13.0 no longer knows architecture 70: it needs CUDA 12.9 or older"),
    ],
)
def test_a_compiler_that_cannot_know_the_card_is_told_at_once(
    host: FakeHost, capability: str, nvcc: str, fault: str
) -> None:
    """And not after an hour of compiling."""
    host.nvidia(("NVIDIA GeForce RTX", capability))
    host.cuda(nvcc)
    said = plan(host)
    assert ("GGML_CUDA=on" in said) is (not fault)
    assert fault in said


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("memory_kb", "jobs"), [(7_800_000, 3), (64_000_000, 6), (900_000, 1)])
def test_no_more_compilers_than_the_memory_has_room_for(host: FakeHost, memory_kb: int, jobs: int) -> None:
    """An Orin Nano has six cores and 8 GB."""
    host.jetson()
    host.cuda()
    host.file("proc/meminfo", f"MemTotal:        {memory_kb} kB\nMemFree:  1 kB\n")
    assert f"CMAKE_BUILD_PARALLEL_LEVEL={jobs} " in plan(host)


@pytest.mark.slow
def test_a_card_without_its_driver_is_not_taken_for_no_card(host: FakeHost) -> None:
    """A build for the CPU, with a warning; a sound device of the same maker is no card."""
    host.file("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    host.file("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert "without an NVIDIA GPU" in plan(host)
    host.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    host.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    said = plan(host)
    assert "with an NVIDIA card that no driver answers for" in said
    assert "Install NVIDIA's driver and the CUDA toolkit" in said
    told = host.install("doctor")
    assert told.returncode == 1
    assert "an NVIDIA card, but no driver that answers for it" in told.stdout


def test_windows_has_nvidia_smi_where_sudo_does_not_look(host: FakeHost) -> None:
    """Below /usr/lib/wsl."""
    host.nvidia(("NVIDIA GeForce RTX 4090", "8.9"))
    program = host.file("usr/lib/wsl/lib/nvidia-smi", (host.bin / "nvidia-smi").read_bytes())
    program.chmod(0o755)
    (host.bin / "nvidia-smi").unlink()
    host.cuda("12.8")
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in plan(host)
