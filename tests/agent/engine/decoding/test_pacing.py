"""A model held to another machine's speed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.pacing import PacedCache
from moe2.agent.engine.protocol import Pace
from tests.agent.engine.simulation import SimulatedCache

_PACE = Pace(prefill_tokens_per_s=100.0, decode_tokens_per_s=10.0)
_PROMPT = Chunk(0, 0, [1, 2, 3, 4, 5], 4)


class _Host:
    """A cache whose every batch takes `seconds`, and the clock it takes them on."""

    def __init__(self, seconds: float) -> None:
        self.now_s = 0.0
        self._seconds = seconds
        self._cache = SimulatedCache(64)
        self._decode = self._cache.decode
        self._cache.decode = self._slowly  # type: ignore[method-assign]
        self.paced = PacedCache(self._cache, _PACE, clock=lambda: self.now_s, sleep=self._sleep)

    def _slowly(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        self.now_s += self._seconds
        return self._decode(chunks)

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def test_a_fast_host_takes_the_paces_time() -> None:
    """Five prompt tokens at 100 per second, then one decoded token at 10 per second."""
    host = _Host(0.001)
    host.paced.decode([_PROMPT])
    assert host.now_s == pytest.approx(0.05)
    host.paced.decode([Chunk(0, 5, [6], 0)])
    assert host.now_s == pytest.approx(0.15)


def test_tokens_decoded_together_take_the_time_of_one() -> None:
    """The weights are read once for all of them."""
    host = _Host(0.001)
    host.paced.decode([_PROMPT, Chunk(1, 0, [1, 2, 3], 2)])
    began_at_s = host.now_s
    host.paced.decode([Chunk(0, 5, [6], 0), Chunk(1, 3, [6], 0)])
    assert host.now_s - began_at_s == pytest.approx(0.1)


def test_a_slower_host_keeps_its_own_time() -> None:
    """Nothing can be sped up."""
    host = _Host(3.0)
    host.paced.decode([_PROMPT])
    assert host.now_s == 3.0
