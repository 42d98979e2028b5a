"""A model held to the speed of another machine: for simulated hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.intake import Cache
from moe2.agent.engine.decoding.shelf import State
from moe2.agent.engine.protocol import Pace


class PacedCache:
    """Lets each batch take at least as long as at the given pace; a host that is slower by itself is not sped up.

    A batch takes the time of its prompt tokens one after the other, and that of one decoded token however many are
    decoded together: decoding is bound by reading the weights once (assumed). A guessed token takes as long as one of a
    prompt, as it needs the same arithmetic (assumed).
    """

    def __init__(self, cache: Cache, pace: Pace, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._cache = cache
        self._pace = pace
        self._clock = clock
        self._sleep = sleep

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        began_at_s = self._clock()
        outcome = self._cache.decode(chunks)
        at_once = sum(len(chunk.tokens) if chunk.is_read else chunk.guessed for chunk in chunks)
        due_s = at_once / self._pace.prefill_tokens_per_s
        if not all(chunk.is_read for chunk in chunks):
            due_s += 1 / self._pace.decode_tokens_per_s
        early_s = began_at_s + due_s - self._clock()
        if early_s > 0:
            self._sleep(early_s)
        return outcome

    def logits(self, place: int) -> Logits:
        return self._cache.logits(place)

    def copy(self, source: int, target: int, tokens: int) -> None:
        self._cache.copy(source, target, tokens)

    def trim(self, lane: int, keep: int) -> bool:
        return self._cache.trim(lane, keep)

    def state_bytes(self, lane: int) -> int:
        return self._cache.state_bytes(lane)

    def save(self, lane: int) -> State:
        return self._cache.save(lane)

    def restore(self, lane: int, state: State) -> bool:
        return self._cache.restore(lane, state)
