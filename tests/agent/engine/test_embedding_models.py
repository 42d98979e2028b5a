"""Embedding models in a real engine: a decoder that was converted for vectors, and an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from moe2.agent.engine.protocol import Finished, JobFailed, Loaded
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, Submit, Vectors
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import with_metadata, write_bert
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

WORDS = ("the", "cat", "sleeps", "on", "a", "sofa", "rates", "rose")


@pytest.fixture
def child() -> Iterator[Child]:
    with Child() as running:
        yield running


def loaded(child: Child, path: Path, **spec: int) -> Loaded:
    event = child.load(str(path), **{"slots": 2, "context_tokens": 512, **spec})
    assert isinstance(event, Loaded), event
    return event


def vectors_of(child: Child, *texts: str | tuple[int, ...], job_id: str = "job") -> npt.NDArray[np.float32]:
    prompts = tuple(
        TextPrompt(text=text) if isinstance(text, str) else TextPrompt(text="", tokens=text) for text in texts
    )
    child.send(EmbedJob(job_id=job_id, request_id="r", model="m", texts=prompts))
    found: list[bytes] = []
    while not isinstance(event := child.next(), Finished):
        assert not isinstance(event, JobFailed), event
        if isinstance(event, Vectors):
            found += event.vectors
    return np.array([np.frombuffer(vector, "<f4") for vector in found])


def test_like_texts_have_like_vectors(tmp_path: Path, child: Child) -> None:
    """Of length 1, as many as texts, and the same alone as in company."""
    path = with_metadata(smollm2_path(), tmp_path / "model.gguf", "llama.pooling_type", 1)
    assert loaded(child, path).facts.vector_size == 576
    texts = (
        "The cat sleeps on the warm sofa.",
        "A cat is sleeping on a warm couch.",
        "Interest rates rose by two percent in March.",
    )
    vectors = vectors_of(child, *texts)
    assert vectors.shape == (3, 576)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    like, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert like > unlike
    alone = vectors_of(child, texts[0], job_id="alone")
    assert alone[0] @ vectors[0] == pytest.approx(1.0, abs=1e-3)


def test_an_encoder_embeds(tmp_path: Path, child: Child) -> None:
    """Hundreds of texts, in several batches; whose vectors depend on what they say, and on later words, too."""
    facts = loaded(child, write_bert(tmp_path / "bert.gguf", words=WORDS)).facts
    assert (facts.architecture, facts.vector_size, facts.has_chat_template) == ("bert", 32, False)
    texts = ["the cat sleeps on a sofa", "the cat sleeps on a", "rates rose", *["the cat"] * 200]
    vectors = vectors_of(child, *texts)
    assert vectors.shape == (203, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] < 0.9999
    assert vectors[3] @ vectors[202] == pytest.approx(1.0, abs=1e-5)
    assert vectors_of(child, (2, 5, 6, 3), job_id="ids")[0] @ vectors[3] == pytest.approx(1.0, abs=1e-5)


def test_what_an_embedding_model_cannot_do_is_refused(tmp_path: Path, child: Child) -> None:
    """Texts that are too long or empty, tokens that it does not know, and writing; the engine lives."""
    assert loaded(child, write_bert(tmp_path / "bert.gguf", words=WORDS)).context_tokens == 64
    child.send(Submit(job_id="write", request_id="r", model="m", prompt=TextPrompt(text="the cat")))
    assert child.until(JobFailed, "write").code == JobErrorCode.UNKNOWN_EXPERT
    for number, (text, code) in enumerate(
        (
            (TextPrompt(text="the " * 100), JobErrorCode.CONTEXT_EXCEEDED),
            (TextPrompt(text="", tokens=(99,)), JobErrorCode.INVALID_REQUEST),
        )
    ):
        child.send(EmbedJob(job_id=f"odd{number}", request_id="r", model="m", texts=(text,)))
        assert child.until(JobFailed, f"odd{number}").code == code
    assert vectors_of(child, "the cat").shape == (1, 32)
