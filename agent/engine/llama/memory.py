"""PURE: how much memory a model needs, and whether there is enough of it.

An estimate before loading: the file's bytes, and the cache's keys and values where they are plain ones of every layer.
What llama.cpp needs besides (work buffers) is small and left out, so what is refused here could not have run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from moe2.agent.engine.decoding.batch import job_cells, lanes_for

CACHE_TYPE_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes per value: ggml's blocks of 32 carry a 16-bit scale."""
_GIB = 2**30

Metadata = Callable[[str], str | None]
"""A GGUF file's metadata as text, by key; None where it has none."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has room for.

    knows: whether llama.cpp knows the architecture. *_free_bytes: of memory, where that is known; device_free_bytes
    is None without a GPU that this build can use."""

    knows: bool
    host_free_bytes: int | None = None
    device_free_bytes: int | None = None


@dataclass(frozen=True)
class Need:
    """The memory that a model needs.

    weights_bytes: of model and adapters; cache_bytes: None where it is not known. offloaded: the part on the GPU,
    0..1."""

    weights_bytes: int
    cache_bytes: int | None
    offloaded: float

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + (self.cache_bytes or 0)

    def beside(self, other: Need) -> Need:
        """The memory that this model and another need together."""
        whole = self.total_bytes + other.total_bytes
        offloaded = self.offloaded * self.total_bytes + other.offloaded * other.total_bytes
        caches = [each.cache_bytes for each in (self, other) if each.cache_bytes is not None]
        return Need(
            weights_bytes=self.weights_bytes + other.weights_bytes,
            cache_bytes=sum(caches) if caches else None,
            offloaded=offloaded / whole if whole else 0.0,
        )


def cache_bytes(metadata: Metadata, tokens: int, cache_type: str) -> int | None:
    """Bytes that the keys and values of so many tokens take; None where the cache is of another kind (recurrent states,
    compressed attention) or the file does not say."""
    name = metadata("general.architecture") or ""
    if any(metadata(f"{name}.{key}") for key in ("attention.kv_lora_rank", "ssm.state_size", "wkv.head_size")):
        return None
    layers, width = _number(metadata(f"{name}.block_count")), _number(metadata(f"{name}.embedding_length"))
    heads = _per_layer(metadata(f"{name}.attention.head_count"), layers)
    if layers is None or width is None or heads is None or not heads[0]:
        return None
    cached_heads = _per_layer(metadata(f"{name}.attention.head_count_kv"), layers) or heads
    key = _number(metadata(f"{name}.attention.key_length")) or width // heads[0]
    value = _number(metadata(f"{name}.attention.value_length")) or width // heads[0]
    return int(tokens * sum(cached_heads) * (key + value) * CACHE_TYPE_BYTES[cache_type])


def window_of(metadata: Metadata) -> int | None:
    """Tokens that a model's sliding layers look back; None for a model that has none."""
    return _number(metadata(f"{metadata('general.architecture')}.attention.sliding_window")) or None


def windowed_tokens(
    window: int | None, *, cells: int, lanes: int, batch_tokens: int, kv_unified: bool = True
) -> int | None:
    """Cells that sliding layers take where they hold no more than they look at; None where they are to hold everything.

    With everything, a lane can be cut back to any earlier token, so that prompts share their beginnings. That is given
    up only where it more than halves these layers' cache: with a long context and a short window. cells: of the other
    layers, of all lanes together. Without `kv_unified` each lane has its own, and room for a batch.
    """
    if window is None:
        return None
    windowed = window * lanes + batch_tokens * (1 if kv_unified else lanes)
    return windowed if 2 * windowed <= cells else None


def all_cells(context_tokens: int, slots: int, *, kv_unified: bool) -> int:
    """Cells of all lanes together. A divided cache has a slot's part more than it was given, for the spare lane."""
    each = job_cells(context_tokens, slots, kv_unified=kv_unified)
    return each if kv_unified else each * lanes_for(slots, kv_unified=False)


def least_cells(
    metadata: Metadata, *, context_tokens: int, slots: int, batch_tokens: int, kv_unified: bool = True
) -> int:
    """Tokens that every layer's cache has room for, at least: files do not say which layers slide."""
    cells = all_cells(context_tokens, slots, kv_unified=kv_unified)
    lanes = lanes_for(slots, kv_unified=kv_unified)
    windowed = windowed_tokens(
        window_of(metadata), cells=cells, lanes=lanes, batch_tokens=batch_tokens, kv_unified=kv_unified
    )
    return cells if windowed is None else windowed


def offloaded_part(metadata: Metadata, gpu_layers: int) -> float:
    """Which part of a model such a setting puts on the GPU. The output layer counts as one."""
    layers = _number(metadata(f"{metadata('general.architecture')}.block_count"))
    if gpu_layers < 0 or layers is None:
        return 1.0 if gpu_layers else 0.0
    return min(1.0, gpu_layers / (layers + 1))


@dataclass(frozen=True)
class Shortage:
    """What is missing, in numbers. fitting: which part of the cache would have room, 0..1; None where not even the
    weights have, or where it is not known."""

    text: str
    fitting: float | None


def shortage(need: Need, *, host_free_bytes: int | None, device_free_bytes: int | None) -> Shortage | None:
    """What is missing, in numbers; None where there is enough, or nobody knows."""
    for part, free_bytes, where in (
        (1 - need.offloaded, host_free_bytes, "memory"),
        (need.offloaded, device_free_bytes, "GPU memory"),
    ):
        if free_bytes is not None and part * need.total_bytes > free_bytes:
            left = free_bytes - part * need.weights_bytes
            return Shortage(
                f"It needs {_gib(part * need.total_bytes)} of {where} (weights {_gib(part * need.weights_bytes)}, "
                f"cache {'unknown' if need.cache_bytes is None else _gib(part * need.cache_bytes)}), "
                f"but only {_gib(free_bytes)} are free.",
                fitting=left / (part * need.cache_bytes) if need.cache_bytes and left > 0 else None,
            )
    return None


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / _GIB:.2f} GiB"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _per_layer(text: str | None, layers: int | None) -> list[int] | None:
    """A figure that files give once, or as a list with one for each layer."""
    if text is None or layers is None:
        return None
    if text.startswith("["):
        figures = json.loads(text)
        return figures if len(figures) == layers and all(isinstance(figure, int) for figure in figures) else None
    figure = _number(text)
    return None if figure is None else [figure] * layers
