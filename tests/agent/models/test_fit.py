"""Whether a model that is not here yet has room."""

from __future__ import annotations

import pytest

from moe2.agent.engine.llama.memory import Capacity
from moe2.agent.models.fit import memory_shortage
from moe2.common.gguf import parse_head
from tests.gguf import gguf

MIB = 2**20


@pytest.mark.parametrize(("window", "fits"), [(0, False), (64, True), (16_384, False)])
def test_a_model_with_short_windows_is_not_refused_for_a_cache_that_it_does_not_take(window: int, fits: bool) -> None:
    """Two layers of 32,768 tokens take 8 MiB with everything, of which a window of 64 leaves less than one."""
    header = parse_head(gguf(more={"attention.sliding_window": window}), "x")
    capacity = Capacity(knows=True, host_free_bytes=4 * MIB)
    missing = memory_shortage(header, MIB, capacity, context_tokens=32_768, slots=4, batch_tokens=512)
    assert (missing is None) is fits
