"""LoRA adapters on a context. A door to llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as llama

from moe2.agent.engine.llama.context import Context
from moe2.agent.engine.llama.model import Model, ModelError, check_file, recent_error
from moe2.agent.engine.protocol import LoraSpec


def apply_adapters(model: Model, context: Context, adapters: Sequence[LoraSpec]) -> None:
    """Every batch from now on goes through these adapters; they are freed with the model. Raises `ModelError`."""
    if not adapters:
        return
    loaded: list[Any] = [_load(model, Path(adapter.path)) for adapter in adapters]
    if hasattr(llama, "llama_set_adapters_lora"):
        pointers = (llama.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*(adapter.scale for adapter in adapters))
        failed = llama.llama_set_adapters_lora(context.pointer, pointers, len(loaded), scales)
    else:
        failed = any(
            llama.llama_set_adapter_lora(context.pointer, pointer, adapter.scale)
            for pointer, adapter in zip(loaded, adapters, strict=True)
        )
    if failed:
        raise _unusable(", ".join(adapter.path for adapter in adapters))


def _load(model: Model, path: Path) -> Any:
    check_file(path, what="adapter")
    pointer = llama.llama_adapter_lora_init(model.pointer, str(path).encode())
    if not pointer:
        raise _unusable(str(path))
    return pointer


def _unusable(path: str) -> ModelError:
    said = recent_error()
    return ModelError(
        f"The LoRA adapter {path} cannot be applied to this model{f' (llama.cpp: {said})' if said else ''}.",
        code="adapter_unusable",
        remedy="Check that it is a LoRA in GGUF format, made for this very base model.",
    )
