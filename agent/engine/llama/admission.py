"""Refuses a model that this host cannot hold, before it is loaded. A door to llama.cpp.

Linux grants more memory than it has and kills later; a clear refusal with numbers is better.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from llama_cpp import _ggml as ggml
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.llama.capacity import host_free_bytes
from moe2.agent.engine.llama.memory import Metadata, Need, cache_bytes, least_cells, offloaded_part, shortage
from moe2.agent.engine.llama.model import ModelError, check_file, check_model_files, metadata_of
from moe2.agent.engine.llama.parts import size_bytes
from moe2.agent.engine.protocol import ModelSpec

_GPU_KINDS = (1, 2)
"""GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU."""


def refuse_beyond_memory(spec: ModelSpec, *, beside: ModelSpec | None = None) -> None:
    """Raises `ModelError` where weights and cache together clearly exceed what is free.

    beside: another model that is loaded first, and whose memory counts.
    """
    need = _need_of(spec)
    if need is None:
        # Not even its metadata can be read: loading it will say why.
        return
    other = None if beside is None else _need_of(beside)
    missing = shortage(
        need if other is None else need.beside(other),
        host_free_bytes=host_free_bytes(),
        device_free_bytes=device_free_bytes() if need.offloaded or (other and other.offloaded) else None,
    )
    if missing is not None:
        raise ModelError(
            f"There is not enough memory for {spec.path} with {spec.context_tokens} tokens of context"
            f"{'' if beside is None else ' beside ' + beside.path}. {missing.text}",
            code="out_of_memory",
            remedy="Use a smaller model or quantization, or free memory."
            if missing.fitting is None
            else f"Lower context_tokens to at most {int(missing.fitting * spec.context_tokens)}, set cache_type to "
            "q8_0 or q4_0, or free memory.",
        )


def _need_of(spec: ModelSpec) -> Need | None:
    """What a model needs; None where its file cannot be read. Raises `ModelError` where a file is missing."""
    check_model_files(Path(spec.path))
    for adapter in spec.lora:
        check_file(Path(adapter.path), what="adapter")
    with _opened(spec.path) as metadata:
        if metadata is None:
            return None
        cells = least_cells(
            metadata,
            context_tokens=spec.context_tokens,
            slots=spec.slots,
            batch_tokens=spec.batch_tokens,
            kv_unified=spec.kv_unified,
        )
        return Need(
            weights_bytes=sum(size_bytes(Path(path)) for path in (spec.path, *(lora.path for lora in spec.lora))),
            cache_bytes=cache_bytes(metadata, cells, spec.cache_type),
            offloaded=offloaded_part(metadata, spec.gpu_layers if llama.llama_supports_gpu_offload() else 0),
        )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Metadata | None]:
    """The file's metadata without its weights; None where llama.cpp cannot read it."""
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    pointer = llama.llama_model_load_from_file(path.encode(), parameters)
    try:
        yield None if not pointer else lambda key: metadata_of(pointer, key)
    finally:
        if pointer:
            llama.llama_model_free(pointer)


def device_free_bytes() -> int | None:
    """Free memory of all GPUs together; None where the library does not say."""
    library = ggml.libggml
    with contextlib.suppress(AttributeError):
        library.ggml_backend_dev_get.restype = ctypes.c_void_p
        library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
        library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
        size = ctypes.POINTER(ctypes.c_size_t)
        library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
        library.ggml_backend_dev_memory.restype = None
        library.ggml_backend_dev_count.restype = ctypes.c_size_t
        found = []
        for place in range(library.ggml_backend_dev_count()):
            device = library.ggml_backend_dev_get(place)
            if library.ggml_backend_dev_type(device) in _GPU_KINDS:
                free, total = ctypes.c_size_t(), ctypes.c_size_t()
                library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
                found.append(free.value)
        return sum(found) if found else None
    return None
