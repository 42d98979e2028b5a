"""The loop of an embedding model, over a simulated one whose vectors of tokens are its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.embedding import Embedder, Pooling
from moe2.agent.engine.prompt.request import RequestReader
from moe2.agent.engine.protocol import Event, Finished, JobFailed, Started
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, Submit, Vectors
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import VOCABULARY_SIZE, Letters, SimulatedCache, logits_after


def tokens_of(text: str) -> list[int]:
    return Letters().tokenize(text, add_special=True, parse_special=False)


class Bench:
    """An embedder with its simulated model; `batches` are the texts of each batch."""

    def __init__(
        self, *, pooling: Pooling = Pooling.MEAN, lanes: int = 4, text_tokens: int = 16, batch_tokens: int = 16
    ) -> None:
        self.events: list[Event] = []
        self.batches: list[list[list[int]]] = []
        self.cache = SimulatedCache(batch_tokens)
        self.embedder = Embedder(
            reader=RequestReader(Letters(), None, vocabulary_size=VOCABULARY_SIZE),
            decode=self._decode,
            cache=self.cache,
            pooling=pooling,
            lanes=lanes,
            text_tokens=text_tokens,
            batch_tokens=batch_tokens,
            clock=lambda: 1.0,
            emit=self.events.append,
        )

    def submit(self, job_id: str, *texts: str | tuple[int, ...]) -> None:
        prompts = tuple(
            TextPrompt(text=text) if isinstance(text, str) else TextPrompt(text="", tokens=text) for text in texts
        )
        self.embedder.submit(EmbedJob(job_id=job_id, request_id="r", model="m", texts=prompts))

    def run(self) -> None:
        while self.embedder.has_work:
            self.embedder.step()

    def vectors(self, job_id: str) -> list[npt.NDArray[np.float32]]:
        frames = [event for event in self.events if isinstance(event, Vectors) and event.job_id == job_id]
        return [np.frombuffer(vector, "<f4") for frame in frames for vector in frame.vectors]

    def failure(self, job_id: str) -> JobFailed:
        (failed,) = (event for event in self.events if isinstance(event, JobFailed) and event.job_id == job_id)
        return failed

    def _decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        self.batches.append([list(chunk.tokens) for chunk in chunks])
        return self.cache.decode(chunks)


def unit(text: str, pool: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    tokens = tokens_of(text)
    pooled = pool(np.array([logits_after(tokens[: n + 1]) for n in range(len(tokens))]))
    return np.asarray(pooled / np.linalg.norm(pooled))


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (Pooling.MEAN, lambda rows: rows.mean(axis=0)),
        (Pooling.FIRST, lambda rows: rows[0]),
        (Pooling.LAST, lambda rows: rows[-1]),
    ],
)
def test_a_vector_is_pooled_from_all_tokens(
    pooling: Pooling, pool: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
) -> None:
    """As the file asks, at length 1, and each text's own, also where several share a batch."""
    bench = Bench(pooling=pooling)
    bench.submit("job", "abcab", "ca")
    bench.run()
    for found, text in zip(bench.vectors("job"), ("abcab", "ca"), strict=True):
        assert found == pytest.approx(unit(text, pool), abs=1e-5)


def test_texts_are_never_split_and_each_jobs_stay_in_order() -> None:
    """A text that does not fit any more waits for the next batch, with all that follow it."""
    bench = Bench(batch_tokens=16)
    texts = ("a" * 10, "b" * 10, "c" * 3, "d" * 6)
    bench.submit("job", *texts)
    bench.run()
    assert [[len(tokens) for tokens in batch] for batch in bench.batches] == [[10], [10, 3], [6]]
    assert len(bench.vectors("job")) == 4
    assert isinstance(bench.events[-1], Finished)
    assert bench.events[-1].prompt_tokens == 29


def test_a_large_job_does_not_hold_up_a_small_one() -> None:
    """Jobs take turns, text by text."""
    bench = Bench(lanes=4, batch_tokens=16)
    bench.submit("large", *["aaaa"] * 100)
    bench.submit("small", "bb")
    bench.embedder.step()
    ended = [event.job_id for event in bench.events if isinstance(event, Finished)]
    assert ended == ["small"]
    bench.run()
    assert len(bench.vectors("large")) == 100


def test_tokens_may_be_given() -> None:
    """Ids are taken as they are; one that the vocabulary does not have is named."""
    bench = Bench()
    bench.submit("ids", tuple(tokens_of("abc")))
    bench.run()
    assert bench.vectors("ids")[0] == pytest.approx(unit("abc", lambda rows: rows.mean(axis=0)), abs=1e-5)
    bench.submit("odd", (VOCABULARY_SIZE,))
    assert str(VOCABULARY_SIZE) in bench.failure("odd").message


@pytest.mark.parametrize("text", ["a" * 17, "a" * 100_000])
def test_a_text_that_is_too_long_is_named(text: str) -> None:
    """By its place, with what would fit; nothing of the job runs."""
    bench = Bench(text_tokens=16)
    bench.submit("job", "a", text)
    failed = bench.failure("job")
    assert failed.code == JobErrorCode.CONTEXT_EXCEEDED
    assert "Text 1" in failed.message
    assert "16 tokens" in failed.message
    assert not bench.embedder.has_work


def test_the_longest_text_fits() -> None:
    """A vector needs no room for an answer: a text may fill the context."""
    bench = Bench(text_tokens=16)
    bench.submit("job", "a" * 16)
    bench.run()
    assert len(bench.vectors("job")) == 1


def test_a_job_that_writes_is_refused() -> None:
    """With a code that sends the request to another expert."""
    bench = Bench()
    bench.embedder.submit(Submit(job_id="job", request_id="r", model="m", prompt=TextPrompt(text="a")))
    assert bench.failure("job").code == JobErrorCode.UNKNOWN_EXPERT


def test_a_cancelled_job_ends_at_once() -> None:
    """In the middle as before the beginning; the others go on."""
    bench = Bench(lanes=1)
    bench.submit("one", "a", "b")
    bench.submit("two", "c")
    bench.embedder.step()
    bench.embedder.cancel("one")
    bench.embedder.cancel("unknown")
    bench.run()
    ended = {event.job_id: event.reason for event in bench.events if isinstance(event, Finished)}
    assert ended == {"one": "cancelled", "two": "stop"}


def test_a_batch_that_fails_costs_its_own_jobs() -> None:
    """Those that were not in it go on, with an empty cache."""
    bench = Bench(lanes=1)
    bench.submit("one", "a")
    bench.submit("two", "b")
    bench.cache.fails_with = DecodeOutcome.OUT_OF_MEMORY
    bench.embedder.step()
    bench.cache.fails_with = None
    bench.run()
    assert bench.failure("one").code == JobErrorCode.OUT_OF_MEMORY
    assert len(bench.vectors("two")) == 1
    assert bench.cache.used == 0


def test_frames_stay_small() -> None:
    """However many texts share a batch, no frame exceeds what the tightest link takes."""
    bench = Bench(lanes=64, text_tokens=4, batch_tokens=4000)
    bench.submit("job", *["a"] * 1000)
    bench.run()
    assert len(bench.vectors("job")) == 1000
    assert all(sum(map(len, event.vectors)) <= 32_768 for event in bench.events if isinstance(event, Vectors))
    assert isinstance(bench.events[0], Started)
