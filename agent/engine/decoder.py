"""The decoding loop's one step: jobs in, events out. Knows no llama.cpp, no pipes and no clock of its own.

Each step builds one batch from all runs (see `batch`), puts it through the model and draws one token for every run that
reached the end of what was known. All tokens of a step leave in one `Decoded`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from moe2.agent.engine.batch import Chunk, DecodeOutcome, Lanes, Placement, Run
from moe2.agent.engine.distribution import Logits, logprob, most_likely
from moe2.agent.engine.protocol import Decoded, Event, Finished, Generate, JobFailed, JobTokens, Started
from moe2.agent.engine.request import RequestError, Vocabulary, check_generate, check_room, prompt_tokens
from moe2.agent.engine.template import ChatTemplate
from moe2.agent.engine.text import TextStream
from moe2.common.errors import JobErrorCode, Moe2Error
from moe2.common.messages import Sampling, TokenAlternative, TokenPiece

_STEP_S = 0.15
"""How long a batch of prompt tokens alone should take: a new job or a cancellation waits at most about this long."""
_SHARED_STEP_S = 0.08
"""The same while other jobs are being decoded: their streams pause for about this long."""
_LEAST_PREFILL_TOKENS = 32
_RATE_WEIGHT = 0.3
"""Weight of the newest batch in the running estimate of prompt tokens per second."""
_LEAST_PREDICTED_TOKENS = 64
"""An answer of unknown length is taken to be at least this long when cells are reserved for it."""


class Cache(Protocol):
    """The model and its key/value cache (see `context.Context`)."""

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome: ...
    def logits(self, place: int) -> Logits: ...
    def copy(self, source: int, target: int, tokens: int | None) -> None: ...
    def trim(self, lane: int, keep: int) -> bool: ...


class Draw(Protocol):
    """One job's sampler: draws a token from the logits at a place of the last batch."""

    def sample(self, place: int) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """slots: jobs at once. context_tokens: cells of the cache. job_tokens: prompt and answer of one job together.
    batch_tokens, outputs: tokens, and rows of logits, of one batch."""

    slots: int
    context_tokens: int
    job_tokens: int
    batch_tokens: int
    outputs: int


@dataclass(slots=True, eq=False)
class _Job:
    request: Generate
    prompt: list[int]
    draw: Draw
    text: TextStream
    queued_at_s: float
    run: Run | None = None
    cached_tokens: int = 0
    started_at_s: float | None = None
    first_at_s: float | None = None
    decoded_tokens: int = 0


class Decoder:
    """All jobs of one model."""

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        cache: Cache,
        lanes: Lanes,
        template: ChatTemplate | None,
        new_draw: Callable[[Sampling], Draw],
        limits: Limits,
        clock: Callable[[], float],
        emit: Callable[[Event], None],
        prefill_tokens_per_s: float | None = None,
    ) -> None:
        """`new_draw` raises `Moe2Error` for sampling parameters that make no sense."""
        self._vocabulary = vocabulary
        self._cache = cache
        self._lanes = lanes
        self._template = template
        self._new_draw = new_draw
        self._limits = limits
        self._clock = clock
        self._emit = emit
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._queue: deque[_Job] = deque()
        self._running: dict[Run, _Job] = {}
        self._pieces: dict[str, list[TokenPiece]] = {}
        self._ended: list[Event] = []

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._running)

    def submit(self, request: Generate) -> None:
        """Check and queue a job, or answer it with `JobFailed` at once."""
        try:
            if any(job.request.job_id == request.job_id for job in (*self._queue, *self._running.values())):
                raise RequestError(f"Job {request.job_id} is already running.", code=JobErrorCode.INTERNAL)
            check_generate(request)
            prompt = prompt_tokens(
                request.prompt, self._vocabulary, self._template, limit=self._limits.job_tokens
            )
            check_room(len(prompt), request.max_tokens, limit=self._limits.job_tokens)
            draw = self._new_draw(request.sampling)
        except RequestError as error:
            failed = JobFailed(
                job_id=request.job_id, code=error.code, message=str(error), prompt_tokens=error.prompt_tokens
            )
            self._emit(failed)
            return
        except Moe2Error as error:
            self._emit(
                JobFailed(job_id=request.job_id, code=JobErrorCode.INVALID_REQUEST, message=str(error))
            )
            return
        job = _Job(request, prompt, draw, TextStream(request.stop), self._clock())
        self._queue.append(job)
        self._admit()

    def cancel(self, job_id: str) -> None:
        """End a job now, whatever its phase. An unknown job is one that has just ended: nothing to do."""
        for job in (*self._queue, *self._running.values()):
            if job.request.job_id == job_id:
                self._finish(job, "cancelled")
                self._flush()
                self._admit()
                return

    def step(self) -> None:
        """Decode one batch and report what came of it."""
        self._admit()
        chunks = self._lanes.plan(
            batch_tokens=self._limits.batch_tokens,
            prefill_tokens=self._prefill_budget(),
            outputs=self._limits.outputs,
        )
        if not chunks:
            return
        began_at_s = self._clock()
        outcome = self._decode([chunk for _, chunk in chunks])
        if outcome is not DecodeOutcome.DONE:
            self._fail(chunks, outcome)
        else:
            self._lanes.commit(chunks)
            place = 0
            for run, chunk in chunks:
                place += len(chunk.tokens)
                if not run.remaining:
                    self._draw(self._running[run], place - 1)
            self._learn_rate(sum(len(chunk.tokens) for _, chunk in chunks), self._clock() - began_at_s)
        self._flush()

    def _decode(self, chunks: list[Chunk]) -> DecodeOutcome:
        while True:
            outcome = self._cache.decode(chunks)
            if outcome is not DecodeOutcome.NO_CELLS or (lane := self._lanes.evict()) is None:
                return outcome
            self._cache.trim(lane, 0)

    def _admit(self) -> None:
        while self._queue and len(self._running) < self._limits.slots:
            job = self._queue[0]
            placed = self._lanes.place(
                job.prompt, reserve=self._predicted_cells(job), logits_from=len(job.prompt) - 1
            )
            if placed is None:
                return
            self._queue.popleft()
            job.run, placement = placed
            self._settle(job.run, placement)
            self._running[job.run] = job
            job.started_at_s = self._clock()
            job.cached_tokens = job.run.filled
            self._emit(
                Started(
                    job_id=job.request.job_id,
                    prompt_tokens=len(job.prompt),
                    cached_tokens=job.cached_tokens,
                )
            )

    def _predicted_cells(self, job: _Job) -> int:
        if job.request.max_tokens is not None:
            return len(job.prompt) + job.request.max_tokens
        fair = self._limits.context_tokens // self._limits.slots
        return min(max(fair, len(job.prompt) + _LEAST_PREDICTED_TOKENS), self._limits.job_tokens)

    def _settle(self, run: Run, placement: Placement) -> None:
        """Make the cache agree with a placement."""
        if placement.lane != placement.source:
            self._cache.trim(placement.lane, 0)
            if placement.keep:
                self._cache.copy(placement.source, placement.lane, placement.keep)
        elif not self._cache.trim(placement.lane, placement.keep):
            self._cache.trim(placement.lane, 0)
            run.filled = 0

    def _draw(self, job: _Job, place: int) -> None:
        """Draw a job's next token from the logits at `place`, and end the job if that was its last."""
        assert job.run is not None  # noqa: S101 - a job that decodes has a run
        token = job.draw.sample(place)
        job.decoded_tokens += 1
        if job.first_at_s is None:
            job.first_at_s = self._clock()
        if self._vocabulary.is_end(token):
            self._finish(job, "stop")
            return
        self._pieces.setdefault(job.request.job_id, []).extend(
            job.text.feed(self._vocabulary.piece(token), *self._likelihood(job, token, place))
        )
        if job.text.stopped:
            self._finish(job, "stop")
        elif (
            job.decoded_tokens == job.request.max_tokens
            or len(job.prompt) + job.decoded_tokens >= self._limits.job_tokens
            or not self._lanes.grow(job.run)
        ):
            self._finish(job, "length")
        else:
            job.run.tokens.append(token)

    def _likelihood(
        self, job: _Job, token: int, place: int
    ) -> tuple[float | None, tuple[TokenAlternative, ...]]:
        wanted = job.request.logprobs
        if wanted is None:
            return None, ()
        logits = self._cache.logits(place)
        alternatives = tuple(
            TokenAlternative(self._vocabulary.piece(other).decode("utf-8", "replace"), value)
            for other, value in most_likely(logits, wanted)
        )
        return logprob(logits, token), alternatives

    def _finish(self, job: _Job, reason: str) -> None:
        now_s = self._clock()
        if rest := job.text.finish():
            self._pieces.setdefault(job.request.job_id, []).extend(rest)
        started_s, first_s = job.started_at_s, job.first_at_s
        self._ended.append(
            Finished(
                job_id=job.request.job_id,
                reason=reason,
                prompt_tokens=len(job.prompt),
                cached_tokens=job.cached_tokens,
                decoded_tokens=job.decoded_tokens,
                wait_s=(now_s if started_s is None else started_s) - job.queued_at_s,
                prefill_s=None if started_s is None else (now_s if first_s is None else first_s) - started_s,
                decode_s=None if first_s is None else now_s - first_s,
            )
        )
        self._release(job, keep_cached=True)

    def _fail(self, chunks: Sequence[tuple[Run, Chunk]], outcome: DecodeOutcome) -> None:
        """End the jobs of a batch that could not be decoded; the others go on."""
        codes = {DecodeOutcome.FAILED: JobErrorCode.INTERNAL}
        messages = {
            DecodeOutcome.NO_CELLS: f"The cache of {self._limits.context_tokens} tokens is full. Raise context_tokens.",
            DecodeOutcome.OUT_OF_MEMORY: "llama.cpp found no memory for this batch. Lower batch_tokens or slots.",
            DecodeOutcome.FAILED: "llama.cpp could not decode this batch; its log names the cause.",
        }
        for run, _ in chunks:
            job = self._running[run]
            self._ended.append(
                JobFailed(
                    job_id=job.request.job_id,
                    code=codes.get(outcome, JobErrorCode.OUT_OF_MEMORY),
                    message=messages[outcome],
                    prompt_tokens=len(job.prompt),
                    decoded_tokens=job.decoded_tokens,
                )
            )
            self._release(job, keep_cached=False)
            self._cache.trim(run.lane, 0)

    def _release(self, job: _Job, *, keep_cached: bool) -> None:
        job.draw.close()
        if job.run is None:
            self._queue.remove(job)
            return
        del self._running[job.run]
        self._lanes.finish(job.run, keep_cached=keep_cached)

    def _flush(self) -> None:
        """Tokens first, then the ends of jobs."""
        jobs = tuple(
            JobTokens(job_id=job_id, pieces=tuple(pieces))
            for job_id, pieces in self._pieces.items()
            if pieces
        )
        self._pieces.clear()
        if jobs:
            self._emit(Decoded(jobs=jobs))
        for event in self._ended:
            self._emit(event)
        self._ended.clear()

    def _prefill_budget(self) -> int:
        if self._prefill_tokens_per_s is None:
            return self._limits.batch_tokens
        shared = any(job.first_at_s is not None for job in self._running.values())
        tokens = int(self._prefill_tokens_per_s * (_SHARED_STEP_S if shared else _STEP_S))
        return max(_LEAST_PREFILL_TOKENS, min(tokens, self._limits.batch_tokens))

    def _learn_rate(self, tokens: int, seconds: float) -> None:
        """Small batches say little about prompts: only those at least half prompt-sized count."""
        if tokens < _LEAST_PREFILL_TOKENS or seconds <= 0:
            return
        rate, known = tokens / seconds, self._prefill_tokens_per_s
        self._prefill_tokens_per_s = rate if known is None else known + _RATE_WEIGHT * (rate - known)
