"""From a model's settings to what its engine is told to load. PURE."""

from __future__ import annotations

from moe2.agent.engine.protocol import LoraSpec, ModelSpec, Pace
from moe2.agent.settings import ModelSection, SamplingSection
from moe2.common.generation import MAX_TOP_K, Sampling


def spec_of(section: ModelSection, pace: Pace | None = None) -> ModelSpec:
    """pace: of a simulated host."""
    return ModelSpec(
        path=str(section.path),
        context_tokens=section.context_tokens,
        slots=section.slots,
        threads=section.threads,
        gpu_layers=section.gpu_layers,
        batch_tokens=section.batch_tokens,
        flash_attention=section.flash_attention,
        mlock=section.mlock,
        cache_type=section.cache_type,
        prefix_cache_mb=section.prefix_cache_mb,
        lora=tuple(LoraSpec(path=str(lora.path), scale=lora.scale) for lora in section.lora),
        pace=pace,
        sampling=_sampling_of(section.sampling),
    )


def _sampling_of(section: SamplingSection) -> Sampling:
    return Sampling(
        temperature=section.temperature,
        top_k=MAX_TOP_K if section.top_k == 0 else section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        repeat_penalty=section.repeat_penalty,
    )
