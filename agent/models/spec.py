"""From a model's settings to what its engine is told to load. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from moe2.agent.engine.protocol import DraftSpec, LoraSpec, ModelSpec, Pace
from moe2.agent.settings import ModelSection, SamplingSection
from moe2.common.generation import MAX_TOP_K, Sampling

MEASURING_LOCK = "measuring.lock"
"""In the agent's folder of state."""


def spec_of(
    section: ModelSection,
    pace: Pace | None = None,
    measuring_lock: Path | None = None,
    *,
    served: Mapping[str, ModelSection] = MappingProxyType({}),
) -> ModelSpec:
    """pace: of a simulated host. measuring_lock: the file by which this host's models are measured one at a time.
    served: what this host serves, by name, where the draft model is looked for."""
    return ModelSpec(
        path=str(section.path),
        context_tokens=section.context_tokens,
        slots=section.slots,
        kv_unified=section.kv_unified,
        threads=section.threads,
        gpu_layers=section.gpu_layers,
        require_gpu=section.require_gpu,
        batch_tokens=section.batch_tokens,
        flash_attention=section.flash_attention,
        mlock=section.mlock,
        cache_type=section.cache_type,
        prefix_cache_mb=section.prefix_cache_mb,
        lora=_lora_of(section),
        draft=None if section.draft is None else _draft_of(section.draft, served.get(section.draft)),
        pace=pace,
        sampling=_sampling_of(section.sampling),
        measuring_lock=None if measuring_lock is None else str(measuring_lock),
        speculation=section.speculation,
    )


def _lora_of(section: ModelSection) -> tuple[LoraSpec, ...]:
    return tuple(LoraSpec(path=str(lora.path), scale=lora.scale) for lora in section.lora)


def _draft_of(name: str, section: ModelSection | None) -> DraftSpec:
    if section is None:
        return DraftSpec(name=name)
    return DraftSpec(name=name, path=str(section.path), gpu_layers=section.gpu_layers, lora=_lora_of(section))


def _sampling_of(section: SamplingSection) -> Sampling:
    return Sampling(
        temperature=section.temperature,
        top_k=MAX_TOP_K if section.top_k == 0 else section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        repeat_penalty=section.repeat_penalty,
    )
