"""A draft model beside a real one in one engine: answers as without, faster where it pays, left out where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmarks.draft_pair import deepen
from moe2.agent.engine.protocol import DraftSpec, Finished, Loaded, ModelSpec
from moe2.agent.engine.vocabularies import vocabularies_of
from moe2.common.generation import Sampling
from moe2.common.link.messages import CancelJob, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import with_metadata
from tests.agent.engine.speculation.test_real_model import run, submit, text
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

STORY = TextPrompt(text="Once upon a time, in a small house by the sea, there lived")


def _spec(model: Path, draft: Path | None) -> ModelSpec:
    spec = ModelSpec(path=str(model), context_tokens=2048, slots=4, threads=1)
    return spec if draft is None else replace(spec, draft=DraftSpec(name="draft", path=str(draft)))


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Child]]:
    """(one without a draft model, one with one that says what the model says, in a quarter of the time)"""
    large = deepen(smollm2_path(), tmp_path_factory.mktemp("pair") / "large.gguf", layers=90)
    with Child() as plain, Child() as drafting:
        for child, draft in ((plain, None), (drafting, smollm2_path())):
            loaded = child.load_spec(replace(_spec(large, draft), speculation=draft is not None))
            assert isinstance(loaded, Loaded)
            assert (loaded.draft, loaded.draft_fault) == (None if draft is None else "draft", None)
        yield plain, drafting


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_tokens": 1},
        {"stop": (",",)},
        {"sampling": Sampling(temperature=0.7, top_p=0.9, seed=7)},
        {"sampling": Sampling(temperature=0, frequency_penalty=0.3)},
        {"grammar": 'root ::= [a-z ]+ "." [a-z ]+ "."'},
    ],
    ids=str,
)
def test_an_answer_is_that_without_a_draft_model(children: tuple[Child, Child], changes: dict[str, object]) -> None:
    """Token for token as far as no near-tie turns, with limits, stop strings, seeds, penalties and forms."""
    fields = {"prompt": STORY, "max_tokens": 48} | changes
    (plain, _), (drafted, end) = (run(child, submit("j", **fields))[0] for child in children)
    assert text(drafted)[:24] == text(plain)[:24]
    assert end.decoded_tokens <= 48


def test_a_draft_model_that_agrees_is_asked_and_right(children: tuple[Child, Child]) -> None:
    """Where the text repeats nothing, its guesses go through the model and hold; they are counted apart."""
    _, end = run(children[1], submit("j", prompt=STORY, max_tokens=120))[0]
    assert end.model_drafted_tokens
    assert end.model_accepted_tokens
    assert end.model_accepted_tokens > 0.5 * end.model_drafted_tokens
    assert end.accepted_tokens is not None
    assert end.accepted_tokens > 30


def test_a_cancelled_answer_leaves_the_draft_model_in_step(children: tuple[Child, Child]) -> None:
    """The next answer begins with the same prompt, is right, and its guesses still hold."""
    plain, drafting = children
    drafting.send(submit("gone", prompt=STORY, max_tokens=800))
    drafting.until(Tokens)
    drafting.send(CancelJob(job_id="gone"))
    assert drafting.until(Finished, "gone").reason == "cancelled"
    jobs = [submit(str(at), prompt=STORY, max_tokens=40 + 10 * at) for at in range(3)]
    expected, found = run(plain, *jobs), run(drafting, *jobs)
    assert [text(pieces)[:24] for pieces, _ in found] == [text(pieces)[:24] for pieces, _ in expected]
    assert sum(end.model_accepted_tokens or 0 for _, end in found) > 0


def test_a_draft_model_as_slow_as_its_model_is_never_asked() -> None:
    """The same file twice: always right, and no gain."""
    with Child() as child:
        loaded = child.load_spec(_spec(smollm2_path(), smollm2_path()))
        assert isinstance(loaded, Loaded)
        assert loaded.draft == "draft"
        assert run(child, submit("j", prompt=STORY, max_tokens=60))[0][1].model_drafted_tokens is None


def test_a_draft_model_that_cannot_guess_is_left_out_and_named(tmp_path: Path) -> None:
    """Another vocabulary, a file that is missing, a model that is not served here: the model is served without."""
    other = with_metadata(smollm2_path(), tmp_path / "other.gguf", "tokenizer.ggml.eot_token_id", 5)
    own, changed = vocabularies_of((smollm2_path(), other))
    assert own is not None
    assert changed not in (None, own)
    for draft, fault in (
        (DraftSpec(name="d", path=str(other)), "another vocabulary"),
        (DraftSpec(name="d", path=str(tmp_path / "none.gguf")), "no model file"),
        (DraftSpec(name="d"), "not served on this host"),
    ):
        with Child() as child:
            loaded = child.load_spec(replace(_spec(smollm2_path(), None), draft=draft))
            assert isinstance(loaded, Loaded)
            assert loaded.draft is None
            assert loaded.draft_fault is not None
            assert fault in loaded.draft_fault
            assert run(child, submit("j", max_tokens=5))[0][1].decoded_tokens == 5


def test_both_models_count_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one of them only, the draft model is left out, with figures."""
    from moe2.agent.engine import admission
    from moe2.agent.engine.companion import draft_spec
    from moe2.agent.engine.model import ModelError, start_backend

    spec = _spec(smollm2_path(), smollm2_path())
    stop = start_backend(lambda _: None)
    try:
        monkeypatch.setattr(admission, "host_free_bytes", lambda: int(1.5 * smollm2_path().stat().st_size))
        admission.refuse_beyond_memory(replace(spec, context_tokens=256, draft=None))
        with pytest.raises(ModelError, match="beside"):
            draft_spec(replace(spec, context_tokens=256))
    finally:
        stop()
