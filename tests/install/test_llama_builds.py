"""How llama.cpp is compiled, kept and taken again, on hosts that are trees with programs that only look real."""

from __future__ import annotations

import tomllib

import pytest

from tests.install.fakehost import FakeHost

pytestmark = pytest.mark.slow


def test_a_build_with_cuda_that_fails_becomes_one_for_the_cpu(host: FakeHost) -> None:
    """With a warning, what the compiler said, and all layers on the CPU."""
    host.jetson()
    host.cuda()
    host.fault("cuda")
    installed = host.install_agent()
    assert installed.returncode == 0
    assert "could not be compiled with CUDA; it is built for the CPU, which is much slower" in installed.stderr
    assert "nvcc: no kernel image" in (host.root / "opt/moe2/wheels/cuda-87/failed").read_text()
    agent = tomllib.loads((host.root / "etc/moe2/agent.toml").read_text())
    assert "gpu_layers" not in agent["models"][0]


def test_a_build_with_cuda_that_failed_is_tried_again_by_an_upgrade_only(host: FakeHost) -> None:
    """It may take an hour, so not by every run."""
    host.jetson()
    host.cuda()
    host.fault("cuda")
    host.install_agent()
    (host.faults / "cuda").unlink()
    host.calls()
    host.install("agent")
    assert not [call for call in host.calls() if "pip wheel" in call]
    upgraded = host.install("upgrade")
    assert upgraded.returncode == 0
    assert "set gpu_layers = -1 for the models in /etc/moe2/agent.toml" in upgraded.stdout
    assert "CMAKE_ARGS: -DLLAVA_BUILD=OFF -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=87" in host.calls()


@pytest.mark.parametrize(
    ("flags", "without"),
    [
        ("avx512_vnni amx_bf16 amx_tile amx_int8", " -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"),
        ("avx2 avx512_vnni", ""),
    ],
)
def test_llama_cpp_is_compiled_without_amx(host: FakeHost, flags: str, without: str) -> None:
    """Its code for it crashes on Xeons that have it."""
    (host.root / "proc").mkdir(exist_ok=True)
    (host.root / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    host.install_agent()
    assert f"CMAKE_ARGS: -DLLAVA_BUILD=OFF{without}" in host.calls()


def test_a_kept_llama_cpp_that_was_compiled_with_amx_is_not_used(host: FakeHost) -> None:
    """An earlier release left it; the upgrade compiles another one, which pip's cache does not give, once."""
    host.install_agent()
    kept = host.root / "opt/moe2/wheels/cpu"
    assert list(kept.glob("*.whl"))
    before = host.release()
    host.file("proc/cpuinfo", "flags\t\t: fpu amx_tile amx_int8\n")
    host.calls()
    assert host.install("upgrade").returncode == 0
    calls = host.calls()
    [compiling] = [call for call in calls if "pip wheel" in call]
    assert "--no-cache-dir" in compiling
    assert "CMAKE_ARGS: -DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8" in calls
    [installing] = [call for call in calls if "pip install" in call]
    assert f"--find-links {kept}-noamx" in installing
    assert host.release() != before
    assert not kept.exists()
    host.install("upgrade")
    assert not [call for call in host.calls() if "pip wheel" in call]
