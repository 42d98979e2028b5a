"""Where a real child says that its model is, and why not on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.engine.protocol import (
    Load,
    Loaded,
    LoadFailed,
    Loading,
    ModelSpec,
)
from moe2.common.placement import GpuCause
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import write_bert
from tests.models import smollm2_path

pytestmark = pytest.mark.slow


def test_a_model_tells_where_its_layers_and_bytes_are() -> None:
    """All 31 layers of it, output layer included, and the weights' bytes as large as the file says."""
    with Child() as started:
        loaded = started.load(str(smollm2_path()))
    assert isinstance(loaded, Loaded)
    [share] = loaded.placement
    assert (share.device, share.is_gpu, share.layers) == ("CPU", False, 31)
    assert share.weights_bytes == pytest.approx(loaded.facts.file_bytes, rel=0.05)
    assert share.cache_bytes
    assert share.work_bytes


def test_an_embedding_model_tells_it_too(tmp_path: Path) -> None:
    """It is loaded another way."""
    with Child() as started:
        loaded = started.load(str(write_bert(tmp_path / "bert.gguf", words=("sun", "sea"))))
    assert isinstance(loaded, Loaded)
    assert sum(share.layers for share in loaded.placement) > 0


def test_a_model_that_was_to_be_on_the_gpu_says_why_it_is_not() -> None:
    """It answers all the same."""
    if gpu_backends_here():
        pytest.skip("this llama.cpp has a GPU backend")
    with Child() as started:
        loaded = started.load_spec(
            ModelSpec(path=str(smollm2_path()), context_tokens=256, slots=1, threads=1, gpu_layers=-1)
        )
    assert isinstance(loaded, Loaded)
    assert loaded.gpu_fault is not None
    assert loaded.gpu_fault.cause in (GpuCause.NO_GPU, GpuCause.NO_GPU_BUILD)


def test_a_model_that_must_be_on_the_gpu_is_refused_before_it_is_loaded() -> None:
    """Where there is none: with the cause, and what to do."""
    if gpu_backends_here():
        pytest.skip("this llama.cpp has a GPU backend")
    spec = ModelSpec(path=str(smollm2_path()), context_tokens=256, slots=1, threads=1, gpu_layers=-1, require_gpu=True)
    with Child() as started:
        started.send(Load(spec=spec))
        events = [started.next(), started.next()]
    assert isinstance(events[0], Loading)
    assert isinstance(events[1], LoadFailed)
    assert events[1].code == "gpu_required"
    assert events[1].gpu_fault is not None
    assert events[1].gpu_fault.remedy in events[1].message


def gpu_backends_here() -> tuple[str, ...]:
    from moe2.agent.engine.llama.model import gpu_backends

    return gpu_backends()
