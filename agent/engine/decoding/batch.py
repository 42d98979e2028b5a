"""PURE: which tokens of which run go into the next batch, and which lane of the cache each run has.

A *run* is a token sequence being put through the model; it holds one lane. Runs that decode take one token of every
batch; what is left of the batch's budget goes to prompts, the shortest remainder first, so that a short prompt does not
wait behind a long one, with a share kept for the oldest so that it cannot starve.

Lanes outlive their runs: a finished run's tokens stay cached until they are forgotten, and a new run begins with the
longest prefix that any lane already holds.

Admission counts tokens: the sum of what all runs have reserved never exceeds the cache. Cells that runs share are
counted for each of them, which errs on the safe side.

In a divided cache (llama.cpp's `kv_unified = false`) each lane has cells of its own, as many as every other: a token
looks at no other lane's. Prefixes are copied then, and lanes are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

_STEADY_BATCH_TOKENS = 32
"""The largest batch of a steady run: beyond 63 tokens llama.cpp's attention takes other kernels, which add up in
another order (ggml's GGML_FA_TILE_Q is 64), and others wait while it is decoded."""
_OLDEST_SHARE = 4
"""The oldest prompt gets at least one part in this many of the prefill budget."""


_SPARE_LANES = 8
"""Lanes beyond the slots, for cached prefixes and for branches."""
_MAX_LANES = 64
_LANE_STEP = 256
"""llama.cpp rounds the cells of a lane of its own up to whole steps of so many."""
_COPIES_PER_TOKEN = 32
"""A prefix comes by copying all that holds it: decoding one token anew takes longer than copying so many. Measured on
two x86-64 cores with a 135M model: about 1000; less where a GPU decodes."""


def lanes_for(slots: int, *, kv_unified: bool = True) -> int:
    """The lanes of a cache whose engine runs so many jobs at once. A divided one has one to spare, for branches."""
    return min(2 * slots + _SPARE_LANES, max(_MAX_LANES, slots)) if kv_unified else slots + 1


def job_cells(context_tokens: int, slots: int, *, kv_unified: bool) -> int:
    """Cells that one job can fill: of a divided cache its slot's part, rounded up."""
    return context_tokens if kv_unified else -(-context_tokens // (slots * _LANE_STEP)) * _LANE_STEP


def is_worth_copying(gained: int, copied: int) -> bool:
    """True if having so many tokens of a prompt saves more than copying what holds them takes."""
    return gained * _COPIES_PER_TOKEN >= copied


class DecodeOutcome(Enum):
    DONE = auto()
    NO_CELLS = auto()
    """The cache had no room; nothing was changed."""
    OUT_OF_MEMORY = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one lane for one batch. Logits are wanted from index `logits_from` of `tokens` on.

    is_steady: its logits are not to depend on what else is in the cache: it is alone in its batch.
    guessed: how many of its last tokens are guesses, which may have to leave the cache again.
    """

    lane: int
    start: int
    tokens: Sequence[int]
    logits_from: int
    is_steady: bool = False
    guessed: int = 0

    @property
    def is_read(self) -> bool:
        """True for a part of a prompt, or of what is scored: its tokens are known, not written one by one."""
        return len(self.tokens) - self.guessed > 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run begins: on `lane`, emptied and then given the first `keep` tokens of `source`; where `source` is the
    lane itself, it is cut back to them. displaced: what `lane` held of others and is worth keeping elsewhere."""

    lane: int
    source: int
    keep: int
    displaced: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Run:
    """A run: one sequence of tokens that grows batch by batch.

    tokens: all tokens known so far; the first `filled` of them are in the cache.
    logits_from: the position from which logits are wanted.
    reserved: cells this run may fill.
    is_steady: see `Chunk`.
    guesses: tokens that may come next, for the next batch, as far as it has room.
    certain: how many of them come whatever the model says, so that no logits are wanted before them.
    """

    lane: int
    tokens: list[int]
    filled: int
    logits_from: int
    reserved: int
    is_steady: bool = False
    guesses: list[int] = field(default_factory=list)
    certain: int = 0
    decoded_at: int = 0
    """When its latest tokens went through, by the lanes' own clock."""

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.filled

    @property
    def is_written(self) -> bool:
        """It takes one token of every batch, the one that was drawn last."""
        return self.remaining == 1 and self.filled >= self.logits_from


@dataclass(slots=True)
class _Lane:
    cached: list[int] = field(default_factory=list)
    run: Run | None = None
    used_at: int = 0


class Lanes:
    """The lanes of one cache, the runs on them, and their reservations."""

    def __init__(self, *, lanes: int, cells: int, cuts_anywhere: bool, kv_unified: bool = True) -> None:
        """cells: of all lanes together. cuts_anywhere: the cache can be cut back to any earlier token (not so for
        recurrent models, whose lanes are only ever continued). kv_unified: lanes share the cells, or each has its
        own."""
        self.kv_unified = kv_unified
        self._lanes = [_Lane() for _ in range(lanes)]
        self._cells = cells
        self._cuts_anywhere = cuts_anywhere
        self._clock = 0
        self.runs: list[Run] = []
        self.reserved = 0

    @property
    def cells_free(self) -> int:
        """Cells not reserved by any run."""
        return self._cells - self.reserved

    def place(
        self, tokens: list[int], *, reserve: int, logits_from: int, reads_anew: bool = False
    ) -> tuple[Run, Placement] | None:
        """Start a run on the best free lane; None while there is no free lane or not enough cells.

        At least one token is left to decode, as its logits are needed. reads_anew: nothing comes from the cache.
        """
        if reserve > self.cells_free:
            return None
        limit = 0 if reads_anew else most_reused(tokens, logits_from)
        source, keep = self._longest_prefix(tokens, limit=limit)
        lane = self._free_lane(source, keep)
        if lane is None:
            return None
        return self._start(lane, source, keep, tokens, reserve=reserve, logits_from=logits_from)

    def branch(self, trunk: Run, tokens: list[int], *, logits_from: int) -> tuple[Run, Placement] | None:
        """Start a run that shares all that `trunk` has in the cache; None while there is no free lane.

        Its cells must be part of the trunk's reservation already.
        """
        lane = self._free_lane(trunk.lane, 0)
        if lane is None:
            return None
        return self._start(lane, trunk.lane, trunk.filled, tokens, reserve=0, logits_from=logits_from)

    def grow(self, run: Run) -> bool:
        """Make room for one more token beyond the run's reservation, if any cell is free."""
        if len(run.tokens) < run.reserved:
            return True
        if self.cells_free < 1:
            return False
        run.reserved += 1
        self.reserved += 1
        return True

    def finish(self, run: Run, *, keep_cached: bool) -> None:
        """Free a run's lane. Its tokens stay cached unless the cache's content is not to be trusted."""
        lane = self._lanes[run.lane]
        lane.run = None
        lane.used_at = self._tick()
        lane.cached = run.tokens[: run.filled] if keep_cached else []
        self.runs.remove(run)
        self.reserved -= run.reserved

    @property
    def idle_tokens(self) -> int:
        """Tokens that stay cached for no run."""
        return sum(len(lane.cached) for lane in self._lanes)

    def least_recent(self) -> tuple[int, list[int]] | None:
        """(lane, its tokens) of the idle lane that was used longest ago; None where no idle lane holds any."""
        idle = [index for index, lane in enumerate(self._lanes) if lane.cached]
        if not idle:
            return None
        oldest = min(idle, key=lambda index: self._lanes[index].used_at)
        return oldest, self._lanes[oldest].cached

    def forget(self, lane: int) -> None:
        """Empties an idle lane: its cached tokens are forgotten."""
        self._lanes[lane].cached = []

    def plan(self, *, batch_tokens: int, prefill_tokens: int, outputs: int) -> list[tuple[Run, Chunk]]:
        """The next batch: at most `batch_tokens` tokens, of which at most `prefill_tokens` from prompts, and at most
        `outputs` with logits.

        How llama.cpp adds up depends on a token's place in its batch: a steady run has every second batch to itself, or
        all where nobody else is there, and its prompt is cut at the same places whatever the host's speed.
        """
        chunks: list[tuple[Run, Chunk]] = []
        steady = min((run for run in self.runs if run.is_steady and run.remaining), key=_decoded_at, default=None)
        others = [run for run in self.runs if run.remaining and not run.is_steady]
        if steady is not None and (not others or steady.decoded_at <= max(map(_decoded_at, others))):
            count = min(steady.remaining, batch_tokens, _STEADY_BATCH_TOKENS)
            return [(steady, _chunk(steady, min(count, _within_outputs(steady, outputs))))]
        room, rows = batch_tokens, outputs
        written = [run for run in others if run.is_written][: min(room, rows)]
        prompts = [run for run in others if not run.is_written]
        spare = max(0, min(room, rows) - len(written) - len(prompts))
        # Those that guess come last: what they give back leaves no gaps before the others' tokens, whose order in the
        # cache is that of the text.
        for run in sorted(written, key=lambda run: bool(run.guesses)):
            guesses = run.guesses[:spare]
            chunk = _chunk(run, 1, guesses)
            chunks.append((run, chunk))
            spare -= len(guesses)
            room -= len(chunk.tokens)
            rows -= len(chunk.tokens)
        budget = min(room, prefill_tokens)
        for run, count in _shares(prompts, budget):
            count = min(count, _within_outputs(run, rows))
            if count:
                chunk = _chunk(run, count)
                rows -= count - chunk.logits_from
                chunks.append((run, chunk))
        if not self.kv_unified:
            # llama.cpp takes lanes of their own in one go where each is the next of the one before.
            chunks.sort(key=lambda planned: planned[1].lane)
        return chunks

    def commit(self, chunks: Sequence[tuple[Run, Chunk]]) -> None:
        """Takes in that a batch went through, so that its tokens are in the cache. A run's guesses count only once they
        are accepted."""
        now = self._tick()
        for run, chunk in chunks:
            run.filled += len(chunk.tokens) - chunk.guessed
            run.guesses, run.certain = [], 0
            run.decoded_at = now

    def _start(
        self, lane: int, source: int, keep: int, tokens: list[int], *, reserve: int, logits_from: int
    ) -> tuple[Run, Placement]:
        run = Run(lane=lane, tokens=list(tokens), filled=keep, logits_from=logits_from, reserved=reserve)
        held = self._lanes[lane].cached
        # Where lanes share cells there are many, and what was used longest ago may go.
        displaced = held if not self.kv_unified and len(held) > (keep if lane == source else 0) else []
        self._lanes[lane].run = run
        self._lanes[lane].cached = []
        if keep:
            self._lanes[source].used_at = self._tick()
        self.runs.append(run)
        self.reserved += reserve
        return run, Placement(lane, source, keep, displaced)

    def _longest_prefix(self, tokens: list[int], *, limit: int) -> tuple[int, int]:
        """(lane, tokens shared) of the lane that holds most of the beginning of `tokens`, at most `limit`."""
        best, most = 0, 0
        for index, lane in enumerate(self._lanes):
            held = lane.cached if lane.run is None else lane.run.tokens
            usable = len(held) if lane.run is None else lane.run.filled
            if not self._cuts_anywhere and (lane.run is not None or usable > limit or tokens[:usable] != held):
                continue
            shared = shared_beginning(tokens, held, min(limit, usable))
            if shared > most and (self.kv_unified or is_worth_copying(shared, usable)):
                best, most = index, shared
        return best, most

    def _free_lane(self, source: int, keep: int) -> int | None:
        """The lane to start on: the source itself if nothing of value is lost, else an empty one, else the least
        recently used; the source only where it is the last one free. In a divided cache only those are looked at that
        lie between running lanes, or else next to one."""
        free = [index for index, lane in enumerate(self._lanes) if lane.run is None]
        if not self.kv_unified:
            most = max(map(self._neighbours_running, free), default=0)
            free = [index for index in free if self._neighbours_running(index) == most]
        if not free:
            return None
        held = self._lanes[source]
        if keep and source in free and (keep == len(held.cached) or free == [source]):
            return source
        others = [index for index in free if index != source or not keep]
        return min(others, key=lambda index: (bool(self._lanes[index].cached), self._lanes[index].used_at))

    def _neighbours_running(self, index: int) -> int:
        beside = (index - 1, index + 1)
        return sum(0 <= near < len(self._lanes) and self._lanes[near].run is not None for near in beside)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _decoded_at(run: Run) -> int:
    return run.decoded_at


def most_reused(tokens: list[int], logits_from: int) -> int:
    """How many tokens of a prompt may come from the cache: the logits of the rest are needed, of one at least."""
    return min(len(tokens) - 1, logits_from)


def _shares(prompts: list[Run], budget: int) -> list[tuple[Run, int]]:
    """The prefill budget's parts: first a share for the oldest, the rest to the shortest remainder first."""
    shares: dict[int, int] = {}
    if prompts:
        # Runs are in order of arrival.
        first = min(prompts[0].remaining, max(1, budget // _OLDEST_SHARE), budget)
        shares[id(prompts[0])] = first
        budget -= first
    for run in sorted(prompts, key=lambda run: run.remaining):
        given = shares.get(id(run), 0)
        more = min(run.remaining - given, budget)
        shares[id(run)] = given + more
        budget -= more
    return [(run, shares[id(run)]) for run in prompts if shares[id(run)]]


def _within_outputs(run: Run, rows: int) -> int:
    """Tokens of this run that can go into a batch with so many logits rows left."""
    return max(0, run.logits_from - run.filled) + rows


def _chunk(run: Run, count: int, guesses: Sequence[int] = ()) -> Chunk:
    end = run.filled + count
    logits_from = min(count, max(0, run.logits_from - run.filled)) + min(run.certain, len(guesses))
    tokens = [*run.tokens[run.filled : end], *guesses]
    return Chunk(run.lane, run.filled, tokens, logits_from, run.is_steady, len(guesses))


def shared_beginning(a: list[int], b: list[int], limit: int) -> int:
    """Length of the common beginning, at most `limit`."""
    # Slices compare in C: bisect on them.
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
