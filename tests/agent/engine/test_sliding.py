"""A model with sliding attention, at a short and at a long context."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.engine.protocol import Finished, Loaded, ModelSpec
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import EAGER, Child
from tests.agent.engine.slidingmodel import write_sliding_model
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

TEXT = "One two three four five six seven eight nine ten. " * 20


def ask(child: Child, job_id: str, text: str) -> tuple[str, Finished]:
    prompt = TextPrompt(text=text)
    sampling = Sampling(temperature=0)
    child.send(Submit(job_id=job_id, request_id="r", model="m", prompt=prompt, sampling=sampling, max_tokens=8))
    texts, ends = child.collect(1)
    end = ends[job_id]
    assert isinstance(end, Finished)
    return texts[job_id], end


def test_a_long_context_is_held_by_windows_and_answers_the_same(tmp_path: Path) -> None:
    """A conversation still goes on from the cache; the same prompt again is read anew, as it would have to be cut."""
    path = write_sliding_model(smollm2_path(), tmp_path / "sliding.gguf", window=64, context_tokens=32_768)
    answers: list[list[str]] = []
    cached: list[list[int]] = []
    for context_tokens in (1024, 32_768):
        with Child() as child:
            spec = ModelSpec(path=str(path), context_tokens=context_tokens, slots=2, threads=1, prefix_cache_mb=0)
            assert isinstance(child.load_spec(spec), Loaded)
            first, _ = ask(child, "first", TEXT)
            again, repeated = ask(child, "again", TEXT)
            onwards, continued = ask(child, "onwards", TEXT + again + " and more")
            answers.append([first, again, onwards])
            cached.append([repeated.cached_tokens, continued.cached_tokens])
    assert answers[0] == answers[1]
    assert [len(set(each[:2])) for each in answers] == [1, 1]
    (cut, kept), (anew, kept_too) = cached
    assert cut == repeated.prompt_tokens - 1
    assert anew == 0
    assert kept == kept_too > cut


@pytest.mark.parametrize("context_tokens", [1024, 32_768], ids=["whole", "windowed"])
def test_guesses_are_given_back_also_by_a_window(tmp_path: Path, context_tokens: int) -> None:
    """Long answers, with guesses that hold and guesses that do not, are those without guesses."""
    path = write_sliding_model(smollm2_path(), tmp_path / "sliding.gguf", window=64, context_tokens=32_768)
    found: list[list[str]] = []
    drafted = accepted = 0
    for speculation in (False, True):
        with Child(EAGER) as child:
            spec = ModelSpec(path=str(path), context_tokens=context_tokens, slots=2, threads=1, speculation=speculation)
            assert isinstance(child.load_spec(spec), Loaded)
            texts: list[str] = []
            for at, text in enumerate((TEXT, "Once upon a time", "a b a b a b a b")):
                job_id = f"job{at}"
                prompt = TextPrompt(text=text)
                child.send(
                    Submit(
                        job_id=job_id,
                        request_id="r",
                        model="m",
                        prompt=prompt,
                        sampling=Sampling(temperature=1.0 if at else 0, top_k=2, seed=at),
                        max_tokens=200,
                    )
                )
                answers, ends = child.collect(1)
                end = ends[job_id]
                assert isinstance(end, Finished)
                texts.append(answers[job_id])
                drafted, accepted = drafted + (end.drafted_tokens or 0), accepted + (end.accepted_tokens or 0)
            found.append(texts)
    assert found[0] == found[1]
    assert drafted > accepted > 0
