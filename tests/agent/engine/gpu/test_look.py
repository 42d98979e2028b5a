"""What is found of a host's GPU: trees of files, and a fake driver library that is compiled here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe2.agent.engine.gpu.facts import GpuKind, NodeState
from moe2.agent.engine.gpu.look import ask_cuda, gpu_kind, look
from tests.fakes.nvidialibrary import compile_cuda

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the fake driver library")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cuda(tmp_path_factory.mktemp("cuda")).parent


def says(monkeypatch: pytest.MonkeyPatch, library: Path, state: Path, **values: object) -> None:
    """Have the fake driver answer so from now on."""
    state.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_CUDA_STATE", str(state))


def file(root: Path, path: str, content: bytes = b"") -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def card(root: Path, vendor: str = "0x10de", kind: str = "0x030000") -> None:
    file(root, "sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n".encode())
    file(root, "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n".encode())


# --- The driver -------------------------------------------------------------------------------------------------------


@needs_gcc
def test_a_working_driver_names_its_gpus(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> None:
    """With the newest CUDA version that it knows."""
    says(monkeypatch, library, tmp_path / "state", count=2, version=12080)
    found = ask_cuda()
    assert (found.code, found.devices, found.driver) == (0, ("Fake GPU 0", "Fake GPU 1"), "12.8")


@needs_gcc
@pytest.mark.parametrize("code", [100, 801, 803, 999])
def test_a_refusal_is_told_by_its_code(
    monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path, code: int
) -> None:
    """Without any device."""
    says(monkeypatch, library, tmp_path / "state", code=code)
    found = ask_cuda()
    assert (found.code, found.devices, found.has_library) == (code, (), True)


@needs_gcc
def test_what_the_driver_prints_is_kept_apart(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> None:
    """Its words on stderr are told, as those of Tegra's library whose user may not open a node."""
    # Read-only to everybody, root included.
    says(monkeypatch, library, tmp_path / "state", opens="/proc/sys/kernel/ostype")
    found = ask_cuda()
    assert found.code == 999
    assert "NvRmMemInitNvmap failed with Permission denied" in found.said


@needs_gcc
def test_a_driver_that_prints_on_stdout_is_understood(
    monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path
) -> None:
    """The answer is the last line."""
    says(monkeypatch, library, tmp_path / "state", noise=1)
    assert ask_cuda().code == 0


@needs_gcc
def test_a_driver_that_crashes_takes_nobody_along(
    monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path
) -> None:
    """It is told by its signal."""
    says(monkeypatch, library, tmp_path / "state", crash=1)
    found = ask_cuda()
    assert found.code is None
    assert found.detail == "the driver crashed with SIGSEGV"


@pytest.mark.slow
@needs_gcc
def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> None:
    """After the time that it is given."""
    says(monkeypatch, library, tmp_path / "state", hang=1)
    assert ask_cuda(within_s=1.0).detail == "the driver did not answer within 1 s"


def test_a_library_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of that name which is no library, as after a broken download."""
    file(tmp_path, "libcuda.so.1", b"<html>")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = ask_cuda()
    assert not found.has_library
    assert found.detail is not None
    assert "libcuda.so.1" in found.detail


# --- The host ---------------------------------------------------------------------------------------------------------


def test_a_jetson_is_told_by_its_device_tree(tmp_path: Path) -> None:
    """Or by L4T's release file where there is none."""
    file(tmp_path, "proc/device-tree/compatible", b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    assert gpu_kind(tmp_path) is GpuKind.JETSON
    other = tmp_path / "other"
    file(other, "etc/nv_tegra_release", b"# R38 (release)")
    assert gpu_kind(other) is GpuKind.JETSON


@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [
        ("0x10de", "0x030000", GpuKind.CARD),
        ("0x10de", "0x030200", GpuKind.CARD),
        ("0x10de", "0x040300", None),
        ("0x8086", "0x030000", None),
    ],
)
def test_a_card_is_told_by_its_maker_and_class(tmp_path: Path, vendor: str, kind: str, found: GpuKind | None) -> None:
    """The sound device of the same card is no GPU, nor is that of another maker."""
    card(tmp_path, vendor, kind)
    assert gpu_kind(tmp_path) is found


def test_windows_has_one_node(tmp_path: Path) -> None:
    """With Windows' own library beside it; the node alone may be another maker's."""
    file(tmp_path, "dev/dxg")
    assert gpu_kind(tmp_path) is None
    file(tmp_path, "usr/lib/wsl/lib/libcuda.so.1")
    found = look(tmp_path, ask=False)
    assert (found.kind, [node.state for node in found.nodes]) == (GpuKind.WSL, [NodeState.OPENS])


def test_an_empty_host_has_no_gpu(tmp_path: Path) -> None:
    """Nor any node to look for."""
    found = look(tmp_path, ask=False)
    assert (found.kind, found.nodes, found.cuda) == (None, (), None)


def test_a_copy_of_a_hosts_files_says_nothing_of_its_nodes(tmp_path: Path) -> None:
    """It has no /dev at all, which no host lacks."""
    card(tmp_path)
    assert look(tmp_path, ask=False).nodes == ()


def test_missing_nodes_are_named(tmp_path: Path) -> None:
    """Those of a card: one of them is there, two are not."""
    card(tmp_path)
    file(tmp_path, "dev/nvidiactl")
    states = {node.path.removeprefix(str(tmp_path)): node.state for node in look(tmp_path, ask=False).nodes}
    assert states == {
        "/dev/nvidiactl": NodeState.OPENS,
        "/dev/nvidia[0-9]*": NodeState.MISSING,
        "/dev/nvidia-uvm": NodeState.MISSING,
    }


def test_a_node_that_cannot_be_opened_is_told_with_its_group(tmp_path: Path) -> None:
    """A dangling link stands for one whose device is gone, a folder for one that refuses."""
    file(tmp_path, "etc/nv_tegra_release")
    (tmp_path / "dev/nvmap").mkdir(parents=True)
    (tmp_path / "dev/dri").mkdir()
    (tmp_path / "dev/dri/renderD128").symlink_to(tmp_path / "nowhere")
    states = {node.path.removeprefix(str(tmp_path)): node for node in look(tmp_path, ask=False).nodes}
    assert states["/dev/nvmap"].state is NodeState.FAILED
    assert states["/dev/nvmap"].owner is not None
    assert states["/dev/dri/renderD128"].state is NodeState.MISSING
