"""How much memory a model needs."""

from __future__ import annotations

import pytest

from moe2.agent.engine.llama.memory import (
    Need,
    cache_bytes,
    least_cells,
    offloaded_part,
    shortage,
    window_of,
    windowed_tokens,
)

LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": "30",
    "llama.embedding_length": "576",
    "llama.attention.head_count": "9",
    "llama.attention.head_count_kv": "3",
}
GIB = 2**30


@pytest.mark.parametrize(("cache_type", "per_value"), [("f16", 2), ("q8_0", 34 / 32), ("q4_0", 18 / 32)])
def test_a_cache_has_keys_and_values_of_every_layer(cache_type: str, per_value: float) -> None:
    """Tokens x layers x cached heads x (64 + 64) values."""
    assert cache_bytes(LLAMA.get, 1000, cache_type) == int(1000 * 30 * 3 * 128 * per_value)


def test_heads_may_differ_by_layer() -> None:
    """Some files give a list; a layer without cached heads has no cache."""
    heads = "[" + ", ".join(["3", "0"] * 15) + "]"
    assert cache_bytes({**LLAMA, "llama.attention.head_count_kv": heads}.get, 1000, "f16") == 1000 * 45 * 128 * 2


@pytest.mark.parametrize(
    "change",
    [
        {"llama.attention.kv_lora_rank": "512"},
        {"llama.ssm.state_size": "16"},
        {"llama.block_count": None},
        {"llama.attention.head_count": "0"},
        {"llama.attention.head_count": "[9, 9]"},
    ],
)
def test_a_cache_of_another_kind_is_unknown(change: dict[str, str | None]) -> None:
    """Never a guess."""
    assert cache_bytes({**LLAMA, **change}.get, 1000, "f16") is None


@pytest.mark.parametrize(("gpu_layers", "part"), [(0, 0.0), (-1, 1.0), (31, 1.0), (99, 1.0), (15, 15 / 31)])
def test_layers_are_offloaded_in_proportion(gpu_layers: int, part: float) -> None:
    """The output layer counts as one."""
    assert offloaded_part(LLAMA.get, gpu_layers) == pytest.approx(part)


def test_what_fits_lacks_nothing() -> None:
    """And what nobody knows is not refused."""
    need = Need(weights_bytes=GIB, cache_bytes=GIB, offloaded=0.0)
    assert shortage(need, host_free_bytes=2 * GIB, device_free_bytes=0) is None
    assert shortage(need, host_free_bytes=None, device_free_bytes=None) is None


def test_a_shortage_has_the_numbers_and_what_would_fit() -> None:
    """Half of the cache has room beside the weights."""
    need = Need(weights_bytes=GIB, cache_bytes=2 * GIB, offloaded=0.0)
    missing = shortage(need, host_free_bytes=2 * GIB, device_free_bytes=None)
    assert missing is not None
    assert missing.fitting == 0.5
    assert "3.00 GiB of memory (weights 1.00 GiB, cache 2.00 GiB), but only 2.00 GiB are free" in missing.text


def test_each_memory_holds_its_part() -> None:
    """Offloaded weights need none of the host's memory, and the other way round."""
    need = Need(weights_bytes=2 * GIB, cache_bytes=None, offloaded=1.0)
    assert shortage(need, host_free_bytes=0, device_free_bytes=2 * GIB) is None
    missing = shortage(need, host_free_bytes=9 * GIB, device_free_bytes=GIB)
    assert missing is not None
    assert "GPU memory" in missing.text
    assert missing.fitting is None


def test_a_window_is_read_from_the_file() -> None:
    """A model without sliding layers has none."""
    assert window_of({**LLAMA, "llama.attention.sliding_window": "512"}.get) == 512
    assert window_of(LLAMA.get) is None
    assert window_of({**LLAMA, "llama.attention.sliding_window": "0"}.get) is None


@pytest.mark.parametrize(
    ("window", "context_tokens", "cells"),
    [(None, 32_768, None), (512, 32_768, 9216), (512, 4096, None), (512, 18_432, 9216), (512, 18_431, None)],
)
def test_sliding_layers_hold_their_window_where_that_saves_half(
    window: int | None, context_tokens: int, cells: int | None
) -> None:
    """Seventeen lanes of a window each, and a batch."""
    assert windowed_tokens(window, cells=context_tokens, lanes=17, batch_tokens=512) == cells


def test_lanes_with_cells_of_their_own_have_room_for_a_batch_each() -> None:
    """So a divided cache of sliding layers takes more, and saves half later."""
    assert windowed_tokens(512, cells=32_768, lanes=9, batch_tokens=512, kv_unified=False) == 9216
    assert windowed_tokens(512, cells=18_431, lanes=9, batch_tokens=512, kv_unified=False) is None


def test_a_divided_cache_has_one_slots_part_more() -> None:
    """For the lane of branches; the estimate counts it."""
    shared = least_cells(LLAMA.get, context_tokens=8192, slots=8, batch_tokens=512)
    assert shared == 8192
    assert least_cells(LLAMA.get, context_tokens=8192, slots=8, batch_tokens=512, kv_unified=False) == 9 * 1024
