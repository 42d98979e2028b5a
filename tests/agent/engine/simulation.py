"""A model that is a function: its next token depends on every token before it, through the cache, and on nothing else.

Whoever sees another sequence's tokens, or misses one of its own, draws different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome, Lanes, lanes_for
from moe2.agent.engine.decoding.decoder import Decoder
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drafting import Drafter
from moe2.agent.engine.decoding.drawing import Draw
from moe2.agent.engine.decoding.guessing import Guessing
from moe2.agent.engine.decoding.intake import Intake, Limits
from moe2.agent.engine.decoding.shelf import Shelf, State
from moe2.agent.engine.prompt.request import RequestReader
from moe2.agent.engine.protocol import Event, Finished, JobFailed
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.link.messages import Submit, Tokens

VOCABULARY_SIZE = 27
END = 0


def logits_after(tokens: Sequence[int]) -> Logits:
    """What the simulated model says after these tokens, shape (VOCABULARY_SIZE,)."""
    return np.random.default_rng(list(tokens)).normal(size=VOCABULARY_SIZE).astype(np.float32)


def greedy(prompt: Sequence[int], most: int) -> list[int]:
    """The oracle: the tokens drawn after a prompt by a single sequence, without the end token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most:
        token = int(np.argmax(logits_after(tokens)))
        if token == END:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


class Letters:
    """A vocabulary of a..z (tokens 1..26) and an end token (0)."""

    bos = ""
    control_texts: tuple[str, ...] = ()
    infill_marks: tuple[int, int, int] | None = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [ord(letter) - ord("a") + 1 for letter in text]

    def piece(self, token: int) -> bytes:
        return b"" if token == END else bytes([ord("a") + token - 1])

    def special_text(self, token: int) -> str:
        return "<end>" if token == END else ""

    def is_end(self, token: int) -> bool:
        return token == END


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token - 1) for token in tokens)


class SimulatedCache:
    """A unified cache of `cells` cells: lanes hold cells, copies share them. In a divided one each lane has so many."""

    def __init__(
        self,
        cells: int,
        *,
        says: Callable[[Sequence[int]], Logits] = logits_after,
        gives_back: bool = True,
        kv_unified: bool = True,
    ) -> None:
        """says: what the model says after some tokens. gives_back: a part of a lane can be dropped."""
        self._cells = cells
        self._kv_unified = kv_unified
        self._says = says
        self._gives_back = gives_back
        self._lanes: dict[int, list[tuple[int, int]]] = {}
        self._next_cell = 0
        self._rows: dict[int, Logits] = {}
        self.fails_with: DecodeOutcome | None = None
        self.decoded_tokens = 0
        self.on_decode: Callable[[int], None] = lambda tokens: None

    @property
    def used(self) -> int:
        return len({cell for lane in self._lanes.values() for cell, _ in lane})

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        if self.fails_with is not None:
            return self.fails_with
        new = sum(len(chunk.tokens) for chunk in chunks)
        if not self._kv_unified:
            lanes_in_order = [chunk.lane for chunk in chunks]
            if lanes_in_order != sorted(lanes_in_order):
                raise AssertionError(f"llama.cpp would take lanes {lanes_in_order} one after another")
            if any(chunk.start + len(chunk.tokens) > self._cells for chunk in chunks):
                return DecodeOutcome.NO_CELLS
        elif self.used + new > self._cells:
            return DecodeOutcome.NO_CELLS
        self._rows.clear()
        self.decoded_tokens += new
        self.on_decode(new)
        place = 0
        for chunk in chunks:
            lane = self._lanes.setdefault(chunk.lane, [])
            if chunk.start != len(lane):
                raise AssertionError(f"lane {chunk.lane} holds {len(lane)} tokens, not {chunk.start}")
            for offset, token in enumerate(chunk.tokens):
                lane.append((self._next_cell, token))
                self._next_cell += 1
                if offset >= chunk.logits_from:
                    self._rows[place] = self._says([known for _, known in lane])
                place += 1
        return DecodeOutcome.DONE

    def logits(self, place: int) -> Logits:
        return self._rows[place]

    def embedding(self, place: int) -> Logits:
        """The simulated model's vector of a token is its logits."""
        return self._rows[place]

    def copy(self, source: int, target: int, tokens: int) -> None:
        if self._lanes.get(target):
            raise AssertionError(f"lane {target} is not empty")
        self._lanes[target] = self._lanes[source][:tokens]

    def trim(self, lane: int, keep: int) -> bool:
        if keep and not self._gives_back:
            return False
        self._lanes[lane] = self._lanes.get(lane, [])[:keep]
        return True

    def state_bytes(self, lane: int) -> int:
        return len(self._lanes[lane])

    def save(self, lane: int) -> State:
        return np.array([token for _, token in self._lanes[lane]], np.uint8)

    def restore(self, lane: int, state: State) -> bool:
        if self._lanes.get(lane):
            raise AssertionError(f"lane {lane} is not empty")
        if (self.used if self._kv_unified else 0) + len(state) > self._cells:
            return False
        self._lanes[lane] = [(self._next_cell + at, token) for at, token in enumerate(state.tolist())]
        self._next_cell += len(state)
        return True


class _Greedy:
    is_ready = True

    def __init__(self, cache: SimulatedCache, *, endless: bool) -> None:
        self._cache = cache
        self._first = END + 1 if endless else 0

    def sample(self, place: int) -> int:
        return self.sample_kept(self._cache.logits(place))

    def sample_kept(self, logits: Logits) -> int:
        return self._first + int(np.argmax(logits[self._first :]))

    def close(self) -> None:
        pass


class Engine:
    """A decoder over the simulated model, its events kept."""

    def __init__(
        self,
        *,
        slots: int = 3,
        cells: int = 64,
        batch_tokens: int = 16,
        endless: bool = False,
        idle_tokens: int | None = None,
        shelved_tokens: int = 0,
        new_draw: Callable[[Submit, SimulatedCache], Draw] | None = None,
        says: Callable[[Sequence[int]], Logits] = logits_after,
        speculation: Speculation | None = None,
        gives_back: bool = True,
        seconds: Callable[[int], float] | None = None,
        held_up_s: Callable[[int], float] = lambda tokens: 0.0,
        draft_says: Callable[[Sequence[int]], Logits] | None = None,
        draft_seconds: Callable[[int], float] = lambda tokens: 0.0,
        draft_cells: int | None = None,
        kv_unified: bool = True,
    ) -> None:
        """`endless`: the end token is never drawn. idle_tokens: None is all of the cache. shelved_tokens: room on the
        shelf. new_draw: None draws the most likely token. says, gives_back: see `SimulatedCache`.
        seconds: what a step takes, by the tokens in its batch; None for a clock that is only looked at.
        held_up_s: how long other work of the host holds a step up besides.
        draft_says: what a draft model says; None for no draft model. draft_seconds, draft_cells: its steps and its
        cache, which is as large as the other one by default. Without `kv_unified` each slot has `cells` to itself."""
        self._endless = endless
        self._own_draw = new_draw
        self.cache = SimulatedCache(cells, says=says, gives_back=gives_back, kv_unified=kv_unified)
        self.steps = 0
        if seconds is not None:
            self.cache.on_decode = lambda tokens: self._pass(seconds(tokens), held_up_s(tokens))
        self._tick_s = 0.001 if seconds is None else 0.0
        self.events: list[Event] = []
        self.now_s = self._held_up_s = 0.0
        n_lanes = 2 * slots + 2 if kv_unified else lanes_for(slots, kv_unified=False)
        all_cells = cells if kv_unified else cells * n_lanes
        lanes = Lanes(lanes=n_lanes, cells=all_cells, cuts_anywhere=True, kv_unified=kv_unified)
        limits = Limits(
            slots=slots,
            context_tokens=all_cells,
            idle_tokens=all_cells if idle_tokens is None else idle_tokens,
            job_tokens=cells,
            batch_tokens=batch_tokens,
            outputs=batch_tokens,
        )
        self.shelf = Shelf(most_bytes=shelved_tokens, cuts_anywhere=True, free_bytes=lambda: None)
        self.draft_cache: SimulatedCache | None = None
        drafter = None
        if draft_says is not None:
            self.draft_cache = SimulatedCache(cells if draft_cells is None else draft_cells, says=draft_says)
            self.draft_cache.on_decode = lambda tokens: self._pass(draft_seconds(tokens))
            drafter = Drafter(
                self.draft_cache,
                lanes=slots,
                batch_tokens=512,
                most_tokens=cells,
                cuts_anywhere=True,
                clock=self._clock,
                costs=StepCosts(step_s=draft_seconds(1), token_s=draft_seconds(2) - draft_seconds(1)),
            )
        intake = Intake(
            reader=RequestReader(Letters(), None, vocabulary_size=VOCABULARY_SIZE),
            cache=self.cache,
            lanes=lanes,
            new_draw=self._new_draw,
            limits=limits,
            speculation=speculation,
        )
        self.decoder = Decoder(
            intake=intake,
            cache=self.cache,
            lanes=lanes,
            shelf=self.shelf,
            limits=limits,
            clock=self._clock,
            work_clock=self._work_clock,
            emit=self.events.append,
            guessing=None if speculation is None else Guessing(speculation, drafter, clock=self._work_clock),
        )

    def _new_draw(self, request: Submit) -> Draw:
        if self._own_draw is not None:
            return self._own_draw(request, self.cache)
        return _Greedy(self.cache, endless=self._endless)

    def _clock(self) -> float:
        self.now_s += self._tick_s
        return self.now_s

    def _work_clock(self) -> float:
        return self._clock() - self._held_up_s

    def _pass(self, seconds: float, held_up_s: float = 0.0) -> None:
        self.now_s += seconds + held_up_s
        self._held_up_s += held_up_s

    def run(self, most_steps: int = 10_000) -> None:
        """Step until there is nothing to do."""
        for _ in range(most_steps):
            if not self.decoder.has_work:
                return
            self.decoder.step()
            self.steps += 1
        raise AssertionError("The decoder does not come to an end.")

    def text(self, job_id: str) -> str:
        return "".join(
            piece.text
            for event in self.events
            if isinstance(event, Tokens)
            for job in event.jobs
            if job.job_id == job_id
            for piece in job.pieces
        )

    def end(self, job_id: str) -> Finished | JobFailed:
        """The one event that ended a job."""
        (found,) = [
            event for event in self.events if isinstance(event, Finished | JobFailed) and event.job_id == job_id
        ]
        return found
