"""Settings that change what a model is: the cache's type and LoRA adapters, on the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe2.agent.engine.protocol import Loaded, LoadFailed, LoraSpec, ModelSpec, Pace
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import write_lora
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

_WIDTH = 576
_NAME = "blk.{}.attn_q.weight"


def _spec(**fields: Any) -> ModelSpec:
    return ModelSpec(path=str(smollm2_path()), context_tokens=256, slots=1, threads=1, speculation=False, **fields)


def _answer(**fields: Any) -> str:
    with Child() as child:
        loaded = child.load_spec(_spec(**fields))
        assert isinstance(loaded, Loaded), loaded
        prompt = TextPrompt(text="The capital of France is")
        child.send(
            Submit(
                request_id="r", model="m", job_id="j", prompt=prompt, sampling=Sampling(temperature=0), max_tokens=12
            )
        )
        texts, _ = child.collect(1)
    return texts["j"]


def _failure(**fields: Any) -> LoadFailed:
    with Child() as child:
        failed = child.load_spec(_spec(**fields))
    assert isinstance(failed, LoadFailed)
    return failed


def _adapter(path: Path, *, width: int = _WIDTH) -> str:
    """An adapter that turns every layer's queries into noise."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(30):
        tensors[f"{_NAME.format(layer)}.lora_a"] = random.normal(size=(4, width)).astype(np.float32)
        tensors[f"{_NAME.format(layer)}.lora_b"] = random.normal(size=(_WIDTH, 4)).astype(np.float32)
    return str(write_lora(path, tensors, alpha=4.0))


@pytest.mark.parametrize("cache_type", ["q8_0", "q4_0"])
def test_a_quantized_cache_still_knows_the_capital(cache_type: str) -> None:
    """Smaller keys and values, the same model."""
    assert "Paris" in _answer(cache_type=cache_type)


@pytest.mark.parametrize("fields", [{"flash_attention": True}, {"mlock": True}, {"gpu_layers": -1}])
def test_a_setting_that_only_concerns_speed_changes_no_answer(fields: dict[str, Any]) -> None:
    """Also where the host cannot follow it: no GPU, no right to lock so much memory."""
    assert _answer(**fields).split()[:1] == _answer().split()[:1]


def test_an_unknown_cache_type_is_refused() -> None:
    """It names what can be chosen."""
    assert "f16, q8_0, q4_0" in _failure(cache_type="q1").message


def test_an_adapter_is_applied_as_strongly_as_asked(tmp_path: Path) -> None:
    """At scale 0 the model answers as without it, at scale 1 otherwise."""
    path = _adapter(tmp_path / "noise.gguf")
    plain = _answer()
    assert _answer(lora=(LoraSpec(path=path, scale=0.0),)) == plain
    assert _answer(lora=(LoraSpec(path=path, scale=1.0),)) != plain


def test_an_adapter_that_is_missing_or_for_another_model_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    missing = _failure(lora=(LoraSpec(path=str(tmp_path / "absent.gguf")),))
    assert (missing.code, "absent.gguf" in missing.message) == ("adapter_missing", True)
    other = _failure(lora=(LoraSpec(path=_adapter(tmp_path / "other.gguf", width=64)),))
    assert (other.code, "other.gguf" in other.message) == ("adapter_unusable", True)


def test_a_paced_model_is_no_faster_than_its_pace() -> None:
    """The run after loading keeps it already."""
    pace = Pace(prefill_tokens_per_s=200.0, decode_tokens_per_s=20.0)
    with Child() as child:
        loaded = child.load_spec(_spec(pace=pace))
    assert isinstance(loaded, Loaded)
    assert loaded.warmup_prefill_tokens_per_s is not None
    assert loaded.warmup_decode_tokens_per_s is not None
    assert loaded.warmup_prefill_tokens_per_s <= pace.prefill_tokens_per_s
    assert loaded.warmup_decode_tokens_per_s <= pace.decode_tokens_per_s
