"""The decoding loop's one step: jobs in, events out. Knows no llama.cpp, no pipes and no clock of its own.

Each step builds one batch from all runs (see `batch`), puts it through the model and hands every job its logits. All
tokens of a step leave in one `Tokens`.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome, Lanes, Placement, Run, most_reused
from moe2.agent.engine.decoding.following import Following
from moe2.agent.engine.decoding.guessing import Guessing
from moe2.agent.engine.decoding.intake import Cache, Intake, Limits
from moe2.agent.engine.decoding.job import Job
from moe2.agent.engine.decoding.shelf import Shelf, Shelved
from moe2.agent.engine.prompt.request import RequestError, failed
from moe2.agent.engine.protocol import Event, Guessed, JobFailed, JobGuesses, Started
from moe2.agent.engine.protocol import Job as JobRequest
from moe2.agent.engine.speculation.speculation import Speculator
from moe2.common.errors import JobErrorCode, Moe2Error
from moe2.common.link.messages import JobPieces, Tokens

_STEP_S = 0.25
"""How long a batch of prompt tokens alone should take: a new job or a cancellation waits at most about this long."""
_SHARED_STEP_S = 0.08
"""The same while other jobs are being decoded: their streams pause for about this long."""
_TILE_TOKENS = 64
"""On a CPU llama.cpp's attention reads a prompt in tiles of so many tokens (ggml's GGML_FA_TILE_Q), and goes a slower
way with fewer: 64 tokens were read in the time of 38."""
_MIN_RATE_TOKENS = 32
"""Batches of fewer tokens say nothing about prompts."""
_RATE_WEIGHT = 0.3
"""Weight of the newest batch in the running estimate of prompt tokens per second."""


class _Step(NamedTuple):
    """When a step began and ended, and how many tokens of prompts it read."""

    began_at_s: float
    ended_at_s: float
    read_tokens: int


class _Made(NamedTuple):
    """What one job guessed in a step, and how many of these tokens were right."""

    job: Job
    speculator: Speculator
    drafted: int
    accepted: int


class Decoder:
    """The decoder of one model: it runs all its jobs in common batches."""

    def __init__(
        self,
        *,
        intake: Intake,
        cache: Cache,
        lanes: Lanes,
        shelf: Shelf,
        limits: Limits,
        clock: Callable[[], float],
        emit: Callable[[Event], None],
        prefill_tokens_per_s: float | None = None,
        guessing: Guessing | None = None,
        work_clock: Callable[[], float] | None = None,
    ) -> None:
        """guessing: None where nothing is guessed, as where the cache cannot give back its latest tokens.
        work_clock: by which steps are compared (see `open_session`); None for `clock`."""
        self._intake = intake
        self._cache = cache
        self._lanes = lanes
        self._shelf = shelf
        self._limits = limits
        self._clock = clock
        self._work_clock = work_clock or clock
        self._emit = emit
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._guessing = guessing
        self._queue: deque[Job] = deque()
        self._running: list[Job] = []
        self._runs: dict[Run, Job] = {}
        self._last = _Step(0.0, 0.0, 0)

    @property
    def has_work(self) -> bool:
        """False while all jobs, if any, wait for a word from outside."""
        return any(run.remaining for run in self._lanes.runs) or any(job.branches() for job in self._running)

    def submit(self, request: JobRequest, came_at_s: float | None = None) -> None:
        """Check and queue a job, or answer it with `JobFailed` at once. came_at_s: None for now."""
        now_s = self._clock()
        came_at_s = now_s if came_at_s is None else came_at_s
        try:
            if self._find(request.job_id) is not None:
                raise RequestError(f"Job {request.job_id} is already running.", code=JobErrorCode.INTERNAL)
            job = self._intake.job(request, came_at_s)
            job.batch_wait_s = now_s - came_at_s
            if self._last.began_at_s < came_at_s < self._last.ended_at_s:
                part = (self._last.ended_at_s - came_at_s) / (self._last.ended_at_s - self._last.began_at_s)
                job.unread_before = part * self._last.read_tokens
        except Exception as error:
            # A stranger's template or a prompt nobody thought of must not take the other jobs with it.
            if not isinstance(error, Moe2Error):
                traceback.print_exc()
            self._emit(failed(request.job_id, error))
            return
        if job.reason is not None:
            self._emit(Started(job_id=job.job_id, prompt_tokens=len(job.prompt)))
            self._emit(job.ended(self._clock()))
            return
        self._queue.append(job)
        self._admit()

    def cancel(self, job_id: str) -> None:
        """End a job now, whatever its phase. An unknown job is one that has just ended: nothing to do."""
        job = self._find(job_id)
        if job is not None:
            job.reason = "cancelled"
            self._report([job])
            self._admit()

    def take(self, job_id: str, step: int, token: int | None) -> None:
        """The next token of a job that follows. An unknown job is one that has just ended: nothing to do."""
        job = self._find(job_id)
        if not isinstance(job, Following):
            return
        if token is not None and not self._intake.knows_token(token):
            message = f"Token {token} is not in this model's vocabulary."
            self._give_up([job], JobErrorCode.INVALID_REQUEST, message, keep_cached=True)
        else:
            job.taken(step, token)
            self._report([job])
        self._admit()

    def resume(self, job_id: str) -> None:
        """What a job waited for is known. An unknown job is one that has just ended: nothing to do."""
        job = self._find(job_id)
        if job is None:
            return
        try:
            job.resume()
        except RequestError as error:
            self._give_up([job], error.code, str(error), keep_cached=True)
        else:
            if job.trunk is not None:
                self._report([job])
        self._admit()

    def step(self) -> None:
        """Decode one batch and report what came of it."""
        began_at_s = self._work_clock()
        self._branch()
        prefill_tokens = self._prefill_budget()
        if self._guessing is not None:
            prompts = sum(run.remaining for run in self._lanes.runs if not run.is_written)
            rate = self._prefill_tokens_per_s
            self._guessing.guess(
                self._lanes,
                self._runs,
                beside_s=min(prompts, prefill_tokens) / rate if rate else 0.0,
                room=min(self._limits.batch_tokens, self._limits.outputs),
            )
        chunks = self._lanes.plan(
            batch_tokens=self._limits.batch_tokens,
            prefill_tokens=prefill_tokens,
            outputs=self._limits.outputs,
        )
        if not chunks:
            return
        decoded_at_s = self._clock()
        outcome = self._decode([chunk for _, chunk in chunks])
        if outcome is not DecodeOutcome.DONE:
            self._fail(chunks, outcome)
            return
        self._lanes.commit(chunks)
        made: list[_Made] = []
        touched = self._hand_out(chunks, made)
        step_s = self._work_clock() - began_at_s
        read_tokens = sum(len(chunk.tokens) for _, chunk in chunks if chunk.is_read)
        self._last = _Step(decoded_at_s, self._clock(), read_tokens)
        self._learn([chunk for _, chunk in chunks], made, self._clock() - decoded_at_s, step_s)
        if guesses := [JobGuesses(each.job.job_id, each.drafted, each.accepted) for each in made if each.drafted]:
            self._emit(Guessed(jobs=tuple(guesses)))
        self._report([job for job, error in touched.items() if error is None])
        for job, error in touched.items():
            if error is not None:
                self._give_up([job], error.code, str(error), keep_cached=True)
        self._admit()

    def _hand_out(self, chunks: Sequence[tuple[Run, Chunk]], made: list[_Made]) -> dict[Job, RequestError | None]:
        """Give every job of a batch what the model said to it, and take back the guesses that were wrong.

        Returns these jobs, with the reason where one cannot go on; adds to `made` what was guessed.
        """
        now_s = self._clock()
        place = 0
        touched: dict[Job, RequestError | None] = {}
        for run, chunk in chunks:
            job = self._runs[run]
            touched.setdefault(job, None)
            if run is job.trunk and not run.remaining and job.phases.first_at_s is None:
                job.phases.first_at_s = now_s
            try:
                job.take(run, chunk, place)
            except RequestError as refusal:
                touched[job] = refusal
            place += len(chunk.tokens)
            accepted = self._give_back(run, chunk, job) if chunk.guessed else 0
            if job.speculator is not None and not chunk.is_read:
                made.append(_Made(job, job.speculator, chunk.guessed, accepted))
            if run is not job.trunk and not run.remaining:
                self._end_run(run, keep_cached=False)
        return touched

    def _find(self, job_id: str) -> Job | None:
        return next((job for job in (*self._running, *self._queue) if job.job_id == job_id), None)

    def _admit(self) -> None:
        while len(self._running) < self._limits.slots:
            job = next((job for job in self._queue if job.is_ready), None)
            if job is None:
                return
            placed = self._lanes.place(
                job.prompt, reserve=job.cells, logits_from=job.logits_from, reads_anew=job.reads_anew
            )
            if placed is None:
                return
            self._queue.remove(job)
            run, placement = placed
            unread = job.unread_before + sum(other.remaining for other in self._runs if not other.is_written)
            run.is_steady = job.reads_anew
            limit = 0 if job.reads_anew else most_reused(job.prompt, job.logits_from)
            self._make_way(placement)
            if limit and (shelved := self._shelf.find(job.prompt, beyond=run.filled, limit=limit)):
                self._bring_back(run, *shelved)
            else:
                self._settle(run, placement)
            self._runs[run] = job
            self._running.append(job)
            job.trunk = run
            job.phases.started_at_s = self._clock()
            job.cached_tokens = run.filled
            self._emit(
                Started(
                    job_id=job.job_id,
                    prompt_tokens=len(job.prompt),
                    cached_tokens=job.cached_tokens,
                    branch_tokens=job.branch_tokens,
                    unread_tokens=round(unread),
                    batch_wait_s=job.batch_wait_s,
                )
            )

    def _branch(self) -> None:
        """Start what branches jobs ask for, as far as lanes are free."""
        for job in self._running:
            for tokens in job.branches():
                assert job.trunk is not None  # noqa: S101 - a running job has its trunk
                placed = self._lanes.branch(job.trunk, tokens, logits_from=len(job.prompt))
                if placed is None:
                    return
                run, placement = placed
                self._make_way(placement)
                self._settle(run, placement)
                self._runs[run] = job
                job.branched(run)

    def _make_way(self, placement: Placement) -> None:
        """Put on the shelf what a placement takes from its lane."""
        if placement.displaced:
            self._shelve(placement.lane, placement.displaced)

    def _settle(self, run: Run, placement: Placement) -> None:
        """Make the cache agree with a placement."""
        if placement.lane != placement.source:
            self._cache.trim(placement.lane, 0)
            if placement.keep:
                self._cache.copy(placement.source, placement.lane, placement.keep)
        elif not self._cache.trim(placement.lane, placement.keep):
            self._cache.trim(placement.lane, 0)
            run.filled = 0

    def _bring_back(self, run: Run, shelved: Shelved, tokens: int) -> None:
        """Let a run begin with so many tokens of a shelved prefix, if the cache has room for all; else with none."""
        self._cache.trim(run.lane, 0)
        run.filled = 0
        while not self._cache.restore(run.lane, shelved.state):
            if not self._empty_lane(may_lose=True):
                return
        if self._cache.trim(run.lane, tokens):
            run.filled = tokens
        else:
            self._cache.trim(run.lane, 0)

    def _decode(self, chunks: list[Chunk]) -> DecodeOutcome:
        """One batch, after emptying as many idle lanes as it takes."""
        while True:
            outcome = self._cache.decode(chunks)
            if outcome is not DecodeOutcome.NO_CELLS or not self._empty_lane(may_lose=True):
                return outcome

    def _empty_lane(self, *, may_lose: bool) -> bool:
        """Put the least recently used idle lane on the shelf, or lose it where that has no room; False if it stays, or
        no lane is idle."""
        idle = self._lanes.least_recent()
        if idle is None:
            return False
        lane, tokens = idle
        if not (self._shelve(lane, tokens) or may_lose):
            return False
        self._lanes.forget(lane)
        self._cache.trim(lane, 0)
        return True

    def _shelve(self, lane: int, tokens: list[int]) -> bool:
        """Put a copy of an idle lane on the shelf; False where there is no room."""
        if not self._shelf.holds(tokens):
            if not self._shelf.has_room(self._cache.state_bytes(lane)):
                return False
            self._shelf.put(tokens, self._cache.save(lane))
        return True

    def _report(self, jobs: list[Job]) -> None:
        """Tokens first, all jobs in one frame, then the ends of jobs."""
        tokens = [JobPieces(job_id=job.job_id, pieces=tuple(p)) for job in jobs if (p := job.pieces())]
        if tokens:
            self._emit(Tokens(jobs=tuple(tokens)))
        for job in jobs:
            for event in job.events():
                self._emit(event)
            if job.reason is not None:
                self._emit(job.ended(self._clock()))
                self._end(job, keep_cached=True)

    def _fail(self, chunks: Sequence[tuple[Run, Chunk]], outcome: DecodeOutcome) -> None:
        """End the jobs of a batch that could not be decoded; the others go on."""
        messages = {
            DecodeOutcome.NO_CELLS: f"The cache of {self._limits.context_tokens} tokens is full. Raise context_tokens.",
            DecodeOutcome.OUT_OF_MEMORY: "llama.cpp found no memory for this batch. Lower batch_tokens or slots.",
            DecodeOutcome.FAILED: "llama.cpp could not decode this batch; its log names the cause.",
        }
        code = JobErrorCode.INTERNAL if outcome is DecodeOutcome.FAILED else JobErrorCode.OUT_OF_MEMORY
        failing = list({self._runs[run]: None for run, _ in chunks})
        self._give_up(failing, code, messages[outcome], keep_cached=False)
        self._admit()

    def _give_up(self, jobs: Sequence[Job], code: JobErrorCode, message: str, *, keep_cached: bool) -> None:
        for job in jobs:
            self._emit(
                JobFailed(
                    job_id=job.job_id,
                    code=code,
                    message=message,
                    prompt_tokens=len(job.prompt),
                    decoded_tokens=job.decoded_tokens,
                )
            )
            self._end(job, keep_cached=keep_cached)

    def _end(self, job: Job, *, keep_cached: bool) -> None:
        """Take a job out, with all its runs. Only a trunk's tokens are worth keeping."""
        job.close()
        if job.trunk is None:
            self._queue.remove(job)
            return
        self._running.remove(job)
        for run in [run for run, owner in self._runs.items() if owner is job]:
            self._end_run(run, keep_cached=keep_cached and run is job.trunk)
        if not self._running and self._lanes.idle_tokens > self._limits.idle_tokens:
            # What lies idle in the cache slows every step down. All of it goes, and only now: in gaps that others left,
            # tokens would lie before those that they follow, and attention would add up in another order.
            while self._empty_lane(may_lose=False):
                pass

    def _end_run(self, run: Run, *, keep_cached: bool) -> None:
        del self._runs[run]
        if self._guessing is not None:
            self._guessing.end(run)
        self._lanes.finish(run, keep_cached=keep_cached)
        if not keep_cached:
            self._cache.trim(run.lane, 0)

    def _prefill_budget(self) -> int:
        if self._prefill_tokens_per_s is None:
            return self._limits.batch_tokens
        shared = any(job.phases.first_at_s is not None for job in self._running)
        tokens = int(self._prefill_tokens_per_s * (_SHARED_STEP_S if shared else _STEP_S))
        return min(max(1, tokens // _TILE_TOKENS) * _TILE_TOKENS, self._limits.batch_tokens)

    def _give_back(self, run: Run, chunk: Chunk, job: Job) -> int:
        """Take the guesses that were wrong out of the cache; returns how many were right."""
        end = chunk.start + len(chunk.tokens)
        accepted = run.filled - (end - chunk.guessed)
        job.drafted_tokens += chunk.guessed
        job.accepted_tokens += accepted
        if job.speculator is not None and job.speculator.drafting_s:
            job.model_drafted_tokens += chunk.guessed
            job.model_accepted_tokens += accepted
        if run.filled < end and not self._cache.trim(run.lane, run.filled):
            # Not this model's cache: what is known is read again, and nothing is guessed any more.
            self._cache.trim(run.lane, 0)
            run.filled = 0
            self._guessing = None
        return accepted

    def _learn(self, chunks: Sequence[Chunk], made: Sequence[_Made], decode_s: float, step_s: float) -> None:
        """Learn from a step what the next ones will take. step_s: with the time in which its guesses were made."""
        reading = sum(chunk.is_read for chunk in chunks)
        # A token without logits takes less, by up to a third where the vocabulary is large beside the model.
        is_alike = not reading and not any(chunk.logits_from for chunk in chunks)
        if self._guessing is not None:
            self._guessing.settle(
                [(each.speculator, each.drafted, each.accepted) for each in made],
                sequences=len(chunks) - reading,
                waiting=reading,
                seconds=step_s if is_alike else None,
            )
        if reading:
            self._learn_rate(sum(len(chunk.tokens) for chunk in chunks), decode_s)

    def _learn_rate(self, tokens: int, seconds: float) -> None:
        if tokens < _MIN_RATE_TOKENS or seconds <= 0:
            return
        rate, known = tokens / seconds, self._prefill_tokens_per_s
        self._prefill_tokens_per_s = rate if known is None else known + _RATE_WEIGHT * (rate - known)
