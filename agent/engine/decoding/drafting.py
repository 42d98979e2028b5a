"""The draft model's side of guessing: what it has read of each sequence, and what it says comes next.

Each running sequence has a lane of the draft model's cache. It is behind the text while nobody asks, and ahead of it by
guesses that have not been drawn: both are put right when the sequence is looked at again. Knows no llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome, Run, shared_beginning
from moe2.agent.engine.decoding.distribution import Logits, logprob
from moe2.agent.engine.speculation.costs import StepCosts

MAX_BEHIND = 16
"""Tokens that are read with a guess; more are read before one is asked for, in steps of their own."""


class DraftCache(Protocol):
    """The draft model and its key/value cache (see `context.Context`)."""

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome: ...
    def logits(self, place: int) -> Logits: ...
    def trim(self, lane: int, keep: int) -> bool: ...


@dataclass(slots=True)
class _Lane:
    """held: the tokens in the cache; the first `agreed` of them are the run's. run: None for an idle lane, which keeps
    what it holds for a prompt that begins so."""

    index: int
    held: list[int] = field(default_factory=list)
    agreed: int = 0
    run: Run | None = None
    used: int = 0


class Drafter:
    """The draft model of one engine, in step with the sequences that it guesses for."""

    def __init__(
        self,
        cache: DraftCache,
        *,
        lanes: int,
        batch_tokens: int,
        most_tokens: int,
        cuts_anywhere: bool,
        clock: Callable[[], float],
        costs: StepCosts,
    ) -> None:
        """lanes: sequences at once. most_tokens: of one sequence. cuts_anywhere: the cache can be cut back to any
        earlier token, not only to where it was a few tokens ago."""
        self._cache = cache
        self._lanes = [_Lane(index) for index in range(lanes)]
        self._of: dict[Run, _Lane] = {}
        self._batch_tokens = batch_tokens
        self._most_tokens = most_tokens
        self._cuts_anywhere = cuts_anywhere
        self._clock = clock
        self._uses = 0
        self.costs = costs
        self.has_failed = False
        """It could not decode, and is not asked any more."""

    def behind(self, run: Run) -> int | None:
        """How many tokens of a run it has not read, at least one; None where it cannot guess for it."""
        if self.has_failed or len(run.tokens) >= self._most_tokens:
            return None
        lane = self._lane_of(run)
        return None if lane is None else len(run.tokens) - lane.agreed

    def end(self, run: Run) -> None:
        """A run is over. What was read of it is kept for one that begins so, as long as nobody needs the lane."""
        lane = self._of.pop(run, None)
        if lane is not None:
            lane.run = None

    def read(self, run: Run, tokens: int) -> None:
        """Read at most so many tokens of a run, and leave the last one for the guess."""
        lane = self._lane_of(run)
        if lane is None:
            return
        part = run.tokens[lane.agreed : len(run.tokens) - 1][: min(tokens, self._batch_tokens)]
        if part and self._decode([Chunk(lane.index, lane.agreed, part, len(part))]):
            lane.held += part
            lane.agreed = len(lane.held)

    def draft(self, wanted: Mapping[Run, int]) -> dict[Run, tuple[list[int], list[float]]]:
        """(tokens, their probabilities) that come next in each run, at most as many as are wanted, of which there is at
        least one. A run is left out where there is no room for it."""
        guesses: dict[Run, tuple[list[int], list[float]]] = {}
        chunks: list[Chunk] = []
        room = self._batch_tokens
        for run in wanted:
            lane = self._lane_of(run)
            if lane is None or not 0 < len(run.tokens) - lane.agreed <= room:
                continue
            part = run.tokens[lane.agreed :]
            room -= len(part)
            chunks.append(Chunk(lane.index, lane.agreed, part, len(part) - 1))
            guesses[run] = [], []
        going = list(guesses)
        while going and self._decode(chunks):
            place, chunks, still = -1, chunks, []
            next_chunks: list[Chunk] = []
            for run, chunk in zip(going, chunks, strict=True):
                place += len(chunk.tokens)
                lane = self._of[run]
                lane.held += chunk.tokens
                lane.agreed = min(len(lane.held), len(run.tokens))
                logits = self._cache.logits(place)
                token = int(np.argmax(logits))
                tokens, probabilities = guesses[run]
                tokens.append(token)
                probabilities.append(float(np.exp(logprob(logits, token))))
                if len(tokens) < wanted[run] and len(lane.held) < self._most_tokens:
                    next_chunks.append(Chunk(lane.index, len(lane.held), [token], 0))
                    still.append(run)
            going, chunks = still, next_chunks
        return {run: guess for run, guess in guesses.items() if guess[0]}

    def _decode(self, chunks: Sequence[Chunk]) -> bool:
        """One batch, after emptying the idle lanes if it takes that; False where it was not decoded."""
        began_at_s = self._clock()
        outcome = self._cache.decode(chunks)
        if outcome is DecodeOutcome.NO_CELLS and self._empty_idle_lanes():
            outcome = self._cache.decode(chunks)
        if outcome is DecodeOutcome.DONE:
            self.costs.learn(sum(len(chunk.tokens) for chunk in chunks), self._clock() - began_at_s)
            return True
        # Without cells nothing has changed, and there will be some again.
        self.has_failed = outcome is not DecodeOutcome.NO_CELLS
        return False

    def _empty_idle_lanes(self) -> bool:
        idle = [lane for lane in self._lanes if lane.run is None and lane.held]
        for lane in idle:
            self._cut(lane, 0)
        return bool(idle)

    def _lane_of(self, run: Run) -> _Lane | None:
        """The run's lane, cut back to what it has in common with the run; None where there is none."""
        lane = self._of.get(run)
        if lane is None:
            lane = self._start(run)
            if lane is None:
                return None
        held, tokens = lane.held, run.tokens
        agreed, end = lane.agreed, min(len(held), len(tokens))
        while agreed < end and held[agreed] == tokens[agreed]:
            agreed += 1
        # The last token is read again where all are known: what follows on it is what is asked.
        lane.agreed = min(agreed, len(tokens) - 1)
        if lane.agreed < len(held):
            self._cut(lane, lane.agreed)
        return lane

    def _start(self, run: Run) -> _Lane | None:
        """A lane for a run: the idle one that holds most of its beginning, else the one that was idle longest."""
        idle = [lane for lane in self._lanes if lane.run is None]
        if not idle:
            return None
        common = {lane.index: self._in_common(lane, run) for lane in idle}
        lane = max(idle, key=lambda lane: (common[lane.index], not lane.held, -lane.used))
        self._uses += 1
        lane.run, lane.used, lane.agreed = run, self._uses, common[lane.index]
        self._of[run] = lane
        return lane

    def _in_common(self, lane: _Lane, run: Run) -> int:
        limit = min(len(lane.held), len(run.tokens) - 1)
        common = shared_beginning(run.tokens, lane.held, limit) if limit else 0
        # What slides can be cut back by a few tokens only.
        return common if self._cuts_anywhere or common >= len(lane.held) - MAX_BEHIND else 0

    def _cut(self, lane: _Lane, keep: int) -> None:
        """Drop what a lane holds behind the first `keep` tokens, or all of it where the cache cannot do that."""
        if not self._cache.trim(lane.index, keep):
            self._cache.trim(lane.index, 0)
            keep = 0
        del lane.held[keep:]
        lane.agreed = min(lane.agreed, keep)
