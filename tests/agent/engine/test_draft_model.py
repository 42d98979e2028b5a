"""A draft model beside a real one in one engine: answers as without, faster where it pays, left out where it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from moe2.agent.engine.decoding.decoder import Decoder
from moe2.agent.engine.llama.vocabularies import vocabularies_of
from moe2.agent.engine.protocol import DraftSpec, Event, Finished, Loaded, ModelSpec
from moe2.agent.engine.session import open_session
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import with_metadata
from tests.agent.engine.speculation.test_real_model import run, submit
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

STORY = TextPrompt(text="Once upon a time, in a small house by the sea, there lived")


def _spec(model: Path, draft: Path | None) -> ModelSpec:
    spec = ModelSpec(path=str(model), context_tokens=2048, slots=4, threads=1)
    return spec if draft is None else replace(spec, draft=DraftSpec(name="draft", path=str(draft)))


class Session:
    """An engine in this process."""

    def __init__(self, decoder: Decoder, events: list[Event]) -> None:
        self.decoder = decoder
        self._events = events

    def run(self, *jobs: Submit) -> list[tuple[str, Finished]]:
        """(text, end) of each job, all of them run together."""
        for job in jobs:
            self.decoder.submit(job)
        while self.decoder.has_work:
            self.decoder.step()
        texts = {job.job_id: "" for job in jobs}
        ends: dict[str, Finished] = {}
        for event in self._events:
            if isinstance(event, Tokens):
                for each in event.jobs:
                    texts[each.job_id] = texts.get(each.job_id, "") + "".join(piece.text for piece in each.pieces)
            elif isinstance(event, Finished):
                ends[event.job_id] = event
        self._events.clear()
        return [(texts[job.job_id], ends[job.job_id]) for job in jobs]


@contextmanager
def _session(*, drafts: bool) -> Iterator[Session]:
    """A model that guesses nothing, or drafts for itself and believes that this takes no time: else it would
    never be asked. Its clocks hardly move, so that it learns nothing else, however busy this host is."""
    events: list[Event] = []
    spec = replace(_spec(smollm2_path(), smollm2_path() if drafts else None), speculation=drafts)
    with open_session(
        spec,
        on_progress=lambda _: None,
        emit=events.append,
        log=lambda _: None,
        clock=time.monotonic,
        wake=lambda _: None,
    ) as decoder:
        assert isinstance(decoder, Decoder)
        if drafts:
            assert decoder._guessing is not None
            drafter = decoder._guessing._drafter
            assert drafter is not None
            decoder._guessing.speculation.costs = StepCosts(step_s=1.0, token_s=0.02)
            decoder._guessing.speculation.drafts.gained_s = 1e6
            drafter.costs = StepCosts(step_s=1e-9, token_s=1e-9)
            decoder._work_clock = drafter._clock = lambda: 0.0
            decoder._guessing._clock = map((1e-9).__mul__, count()).__next__
        events.clear()
        yield Session(decoder, events)


_CHANGES: dict[str, dict[str, object]] = {
    "story": {"prompt": STORY},
    "copy": {},
    "stop": {"stop": (",",)},
    "seed": {"sampling": Sampling(temperature=0.3, top_p=0.5, seed=7)},
    "penalty": {"sampling": Sampling(temperature=0, frequency_penalty=0.05)},
}
_AFTER = [submit(str(at), prompt=STORY, max_tokens=20 + 10 * at) for at in range(3)]


@dataclass
class Answers:
    """What both sessions answered: each change on its own, and after a cancelled answer three at once."""

    each: dict[str, tuple[str, Finished]]
    after: list[tuple[str, Finished]]


def _answers(*, drafts: bool) -> Answers:
    with _session(drafts=drafts) as session:
        each = {
            name: session.run(submit(name, **{"max_tokens": 40, **changes}))[0] for name, changes in _CHANGES.items()
        }
        session.decoder.submit(submit("gone", prompt=STORY, max_tokens=800))
        for _ in range(6):
            session.decoder.step()
        session.decoder.cancel("gone")
        return Answers(each, session.run(*_AFTER))


@pytest.fixture(scope="module")
def both() -> tuple[Answers, Answers]:
    """(without guesses, with a draft model). One engine is gone before the other comes: the process has one log."""
    return _answers(drafts=False), _answers(drafts=True)


@pytest.mark.parametrize("name", _CHANGES)
def test_an_answer_is_that_without_a_draft_model(both: tuple[Answers, Answers], name: str) -> None:
    """Token for token, with limits, stop strings, seeds and penalties; the draft model was asked, and right."""
    (expected, _), (found, end) = (answers.each[name] for answers in both)
    assert found == expected
    assert end.decoded_tokens <= 40
    if name == "story":
        assert end.model_drafted_tokens
        assert (end.model_accepted_tokens or 0) > 0.5 * end.model_drafted_tokens


def test_a_cancelled_answer_leaves_the_draft_model_in_step(both: tuple[Answers, Answers]) -> None:
    """The next answers begin with the same prompt, are right, and its guesses still hold."""
    expected, found = (answers.after for answers in both)
    assert [text[:24] for text, _ in found] == [text[:24] for text, _ in expected]
    drafted = sum(end.model_drafted_tokens or 0 for _, end in found)
    assert drafted > 0
    assert sum(end.model_accepted_tokens or 0 for _, end in found) > 0.5 * drafted


def test_a_draft_model_as_slow_as_its_model_is_never_asked() -> None:
    """The same file twice: always right, and no gain."""
    with Child() as child:
        loaded = child.load_spec(_spec(smollm2_path(), smollm2_path()))
        assert isinstance(loaded, Loaded)
        assert loaded.draft == "draft"
        assert run(child, submit("j", prompt=STORY, max_tokens=60))[0][1].model_drafted_tokens is None


def test_a_draft_model_that_cannot_guess_is_left_out_and_named(tmp_path: Path) -> None:
    """Another vocabulary, a model that is not served here: the model is served without."""
    other = with_metadata(smollm2_path(), tmp_path / "other.gguf", "tokenizer.ggml.eot_token_id", 5)
    own, changed = vocabularies_of((smollm2_path(), other))
    assert own is not None
    assert changed not in (None, own)
    for draft, fault in (
        (DraftSpec(name="d", path=str(other)), "another vocabulary"),
        (DraftSpec(name="d"), "not served on this host"),
    ):
        with Child() as child:
            loaded = child.load_spec(replace(_spec(smollm2_path(), None), draft=draft))
            assert isinstance(loaded, Loaded)
            assert loaded.draft is None
            assert loaded.draft_fault is not None
            assert fault in loaded.draft_fault
            assert run(child, submit("j", max_tokens=5))[0][1].decoded_tokens == 5


def test_a_draft_model_whose_file_is_missing_is_named(tmp_path: Path) -> None:
    """It is found out before anything is loaded."""
    from moe2.agent.engine.llama.model import ModelError
    from moe2.agent.engine.loading.companion import draft_spec

    missing = DraftSpec(name="d", path=str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="no model file"):
        draft_spec(replace(_spec(smollm2_path(), None), draft=missing))


def test_both_models_count_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one of them only, the draft model is left out, with figures."""
    from moe2.agent.engine.llama import admission
    from moe2.agent.engine.llama.model import ModelError, start_backend
    from moe2.agent.engine.loading.companion import draft_spec

    spec = _spec(smollm2_path(), smollm2_path())
    stop = start_backend(lambda _: None)
    try:
        monkeypatch.setattr(admission, "host_free_bytes", lambda: int(1.5 * smollm2_path().stat().st_size))
        admission.refuse_beyond_memory(replace(spec, context_tokens=256, draft=None))
        with pytest.raises(ModelError, match="beside"):
            draft_spec(replace(spec, context_tokens=256))
    finally:
        stop()
