"""The loop of an embedding model: whole texts in common batches, one vector for each. No llama.cpp, no pipes, no clock.

An encoder looks at all tokens of a text at once, so that a text is never split between batches, and nothing of it is
kept in a cache. Each step takes texts of all jobs in turn: one with many texts does not hold up the others.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.job import Phases
from moe2.agent.engine.prompt.request import RequestError, failed
from moe2.agent.engine.protocol import Event, Finished, Job, JobFailed, Started
from moe2.common.errors import JobErrorCode, Moe2Error
from moe2.common.link.messages import EmbedJob, Vectors

_FRAME_BYTES = 32_768
"""Of vectors in one frame: with base64, below the smallest frame limit, 64 KiB."""
Vector = npt.NDArray[np.floating[Any]]


class Pooling(Enum):
    """How token vectors become one vector of the text."""

    MEAN = auto()
    FIRST = auto()
    LAST = auto()


class VectorCache(Protocol):
    """The place of a batch's vectors (see `context.Context`)."""

    def embedding(self, place: int) -> Vector: ...
    def trim(self, lane: int, keep: int) -> bool: ...


class TextReader(Protocol):
    """Turns a job's texts into tokens. Raises `Moe2Error` for one that cannot be embedded."""

    def embed(self, request: EmbedJob, *, limit: int) -> list[list[int]]: ...


@dataclass(eq=False)
class _Embedding:
    """A job: its texts as tokens, and how many of them have their vector."""

    job_id: str
    texts: list[list[int]]
    phases: Phases
    n_done: int = 0
    fresh: list[bytes] = field(default_factory=list)
    """Vectors that have not been sent yet."""

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def unread_tokens(self) -> int:
        return sum(map(len, self.texts[self.n_done :]))


class Embedder:
    """The decoder's counterpart for a model that yields vectors: jobs in, events out.

    decode: puts a batch through the model, which leaves its vectors in `cache`. lanes: texts of one batch at most.
    text_tokens: of one text at most. batch_tokens: of one batch, not less than `text_tokens`.
    """

    def __init__(
        self,
        *,
        reader: TextReader,
        decode: Callable[[Sequence[Chunk]], DecodeOutcome],
        cache: VectorCache,
        pooling: Pooling,
        lanes: int,
        text_tokens: int,
        batch_tokens: int,
        clock: Callable[[], float],
        emit: Callable[[Event], None],
    ) -> None:
        self._reader = reader
        self._decode = decode
        self._cache = cache
        self._pooling = pooling
        self._lanes = lanes
        self._text_tokens = text_tokens
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._emit = emit
        self._jobs: list[_Embedding] = []

    @property
    def has_work(self) -> bool:
        """True while any job waits for vectors."""
        return bool(self._jobs)

    def submit(self, request: Job, came_at_s: float | None = None) -> None:
        """Check and queue a job, or answer it with `JobFailed` at once. came_at_s: None for now."""
        now_s = self._clock()
        came_at_s = now_s if came_at_s is None else came_at_s
        try:
            self._jobs.append(self._job(request, Phases(came_at_s, started_at_s=now_s)))
        except Exception as error:
            # A text nobody thought of must not take the other jobs with it.
            if not isinstance(error, Moe2Error):
                traceback.print_exc()
            self._emit(failed(request.job_id, error))
            return
        *others, job = self._jobs
        unread = sum(other.unread_tokens for other in others)
        self._emit(
            Started(
                job_id=job.job_id,
                prompt_tokens=job.prompt_tokens,
                unread_tokens=unread,
                batch_wait_s=now_s - came_at_s,
            )
        )

    def cancel(self, job_id: str) -> None:
        """End a job now. An unknown job is one that has just ended: nothing to do."""
        for job in self._jobs:
            if job.job_id == job_id:
                self._jobs.remove(job)
                self._emit(_finished(job, "cancelled", self._clock()))
                return

    def take(self, job_id: str, step: int, token: int | None) -> None:
        """Do nothing: no job here waits for a token."""

    def resume(self, job_id: str) -> None:
        """Do nothing: no job here waits for anything."""

    def step(self) -> None:
        """Put one batch through the model and report what came of it."""
        batch = self._plan()
        if not batch:
            return
        chunks = [Chunk(lane, 0, tokens, 0) for lane, (_, tokens) in enumerate(batch)]
        outcome = self._decode(chunks)
        if outcome is DecodeOutcome.DONE:
            self._read(batch)
        for lane in range(len(batch)):
            self._cache.trim(lane, 0)
        touched = list(dict.fromkeys(job for job, _ in batch))
        if outcome is DecodeOutcome.DONE:
            self._report(touched)
        else:
            self._fail(touched, outcome)

    def _job(self, request: Job, phases: Phases) -> _Embedding:
        if not isinstance(request, EmbedJob):
            raise RequestError(
                "This model yields vectors and writes no text.",
                code=JobErrorCode.UNKNOWN_EXPERT,
                remedy="Use /v1/embeddings, or another model.",
            )
        if any(job.job_id == request.job_id for job in self._jobs):
            raise RequestError(f"Job {request.job_id} is already running.", code=JobErrorCode.INTERNAL)
        return _Embedding(request.job_id, self._reader.embed(request, limit=self._text_tokens), phases)

    def _plan(self) -> list[tuple[_Embedding, list[int]]]:
        """The next batch: texts of all jobs in turn, as many as fit, each job's in their order."""
        batch: list[tuple[_Embedding, list[int]]] = []
        room, taken = self._batch_tokens, dict.fromkeys(self._jobs, 0)
        waiting = list(self._jobs)
        while waiting and len(batch) < self._lanes:
            job = waiting.pop(0)
            place = job.n_done + taken[job]
            if place < len(job.texts) and len(job.texts[place]) <= room:
                batch.append((job, job.texts[place]))
                room -= len(job.texts[place])
                taken[job] += 1
                waiting.append(job)
        return batch

    def _read(self, batch: Sequence[tuple[_Embedding, list[int]]]) -> None:
        place = 0
        for job, tokens in batch:
            rows = [self._cache.embedding(place + offset) for offset in range(len(tokens))]
            job.fresh.append(_unit(_pooled(rows, self._pooling)).astype("<f4").tobytes())
            job.n_done += 1
            place += len(tokens)

    def _report(self, jobs: Sequence[_Embedding]) -> None:
        for job in jobs:
            per_frame = max(1, _FRAME_BYTES // len(job.fresh[0]))
            for start in range(0, len(job.fresh), per_frame):
                self._emit(Vectors(job_id=job.job_id, vectors=tuple(job.fresh[start : start + per_frame])))
            job.fresh.clear()
            if job.n_done == len(job.texts):
                self._jobs.remove(job)
                self._emit(_finished(job, "stop", self._clock()))
            else:
                # Who had its turn comes last in the next batch.
                self._jobs.remove(job)
                self._jobs.append(job)

    def _fail(self, jobs: Sequence[_Embedding], outcome: DecodeOutcome) -> None:
        code = JobErrorCode.INTERNAL if outcome is DecodeOutcome.FAILED else JobErrorCode.OUT_OF_MEMORY
        text = "llama.cpp could not embed this batch; its log names the cause. Lower batch_tokens or context_tokens."
        for job in jobs:
            self._jobs.remove(job)
            self._emit(JobFailed(job_id=job.job_id, code=code, message=text, prompt_tokens=job.prompt_tokens))


def _pooled(rows: Sequence[Vector], pooling: Pooling) -> Vector:
    """One vector of a text, from those of its tokens in their order."""
    match pooling:
        case Pooling.MEAN:
            return np.asarray(np.mean(np.asarray(rows, np.float64), axis=0))
        case Pooling.FIRST:
            return rows[0].astype(np.float64)
        case Pooling.LAST:
            return rows[-1].astype(np.float64)


def _unit(vector: Vector) -> Vector:
    """The vector at length 1."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _finished(job: _Embedding, reason: str, now_s: float) -> Finished:
    wait_s, prefill_s, _ = job.phases.durations_s(now_s)
    return Finished(
        job_id=job.job_id,
        reason=reason,
        prompt_tokens=job.prompt_tokens,
        cached_tokens=0,
        decoded_tokens=0,
        wait_s=wait_s,
        prefill_s=prefill_s,
        decode_s=None,
    )
