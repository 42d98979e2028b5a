"""From a model's settings to what its engine is told to load. PURE."""

from __future__ import annotations

from moe2.agent.engine.protocol import LoraSpec, ModelSpec, Pace
from moe2.agent.settings import ModelSection


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
    )
