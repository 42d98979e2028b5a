"""Jobs whose grammar is still compiled, or cannot be followed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drawing import Draw
from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.protocol import Finished, JobFailed
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import Submit, Tokens
from tests.agent.engine.decoding.letterjobs import expected_text, letter_job
from tests.agent.engine.simulation import Engine, SimulatedCache


class _Bound:
    """A draw that waits for its test to say what may be drawn."""

    def __init__(self, cache: SimulatedCache) -> None:
        self._cache = cache
        self.is_ready = False
        self.answers: list[int | RequestError | None] = []
        self.closed = False

    def sample(self, place: int) -> int | None:
        return self.sample_kept(self._cache.logits(place))

    def sample_kept(self, logits: Logits) -> int | None:
        self.is_ready = False
        answer = self.answers.pop(0)
        if isinstance(answer, RequestError):
            raise answer
        return int(np.argmax(logits)) if answer == GREEDY else answer

    def close(self) -> None:
        self.closed = True

    def say(self, engine: Engine, answer: int | RequestError | None) -> None:
        """The draw is ready, and the decoder is told."""
        self.answers.append(answer)
        self.is_ready = True
        engine.decoder.resume("bound")


GREEDY = -1
_NO_TEXT = RequestError("No text can follow.", code=JobErrorCode.INVALID_GRAMMAR)


def _with_bound() -> tuple[Engine, _Bound]:
    """An engine of one slot to which the job "bound" has been sent."""
    draws: dict[str, _Bound] = {}

    def new_draw(request: Submit, cache: SimulatedCache) -> Draw:
        draw = draws[request.job_id] = _Bound(cache)
        if request.job_id != "bound":
            draw.is_ready = True
            draw.answers.append(None)
        return draw

    engine = Engine(slots=1, new_draw=new_draw)
    engine.decoder.submit(letter_job("bound", "ab"))
    return engine, draws["bound"]


def test_the_end_is_an_alternative_with_a_name() -> None:
    """Else it could not be told from a token without text; it has no bytes."""
    engine = Engine(endless=True)
    engine.decoder.submit(msgspec.structs.replace(letter_job("j", "ab"), logprobs=20, max_tokens=4))
    engine.run()
    pieces = [p for event in engine.events if isinstance(event, Tokens) for job in event.jobs for p in job.pieces]
    names = [[(other.text, other.hex) for other in piece.alternatives] for piece in pieces]
    assert len(names) == 4
    assert any(("<end>", None) in each for each in names)
    assert all(own == "" for each in names for text, own in each if text != "<end>")


def test_a_job_that_waits_for_its_grammar_takes_no_slot() -> None:
    """Another one that came later is answered meanwhile."""
    engine, draw = _with_bound()
    engine.decoder.submit(letter_job("other", "ab"))
    engine.run()
    assert isinstance(engine.end("other"), Finished)
    draw.say(engine, None)
    engine.run()
    assert isinstance(engine.end("bound"), Finished)


def test_a_job_goes_on_from_what_the_model_said_when_its_mask_comes_late() -> None:
    """The logits are kept, although other batches follow; nothing is drawn twice."""
    engine, draw = _with_bound()
    draw.say(engine, GREEDY)
    engine.run()
    engine.cache.decode([])
    draw.say(engine, GREEDY)
    engine.run()
    draw.say(engine, None)
    engine.run()
    end = engine.end("bound")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens, engine.text("bound")) == ("stop", 2, expected_text("ab", 2))


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_grammar_that_cannot_be_followed_ends_its_job_alone(drawn: int) -> None:
    """Before the job starts to write, and in the middle of its answer."""
    engine, draw = _with_bound()
    answers: list[int | RequestError] = [*[GREEDY] * drawn, _NO_TEXT]
    for answer in answers:
        draw.say(engine, answer)
        engine.run()
    failed = engine.end("bound")
    assert isinstance(failed, JobFailed)
    assert (failed.code, failed.decoded_tokens, draw.closed) == (JobErrorCode.INVALID_GRAMMAR, drawn, True)
    engine.decoder.submit(letter_job("after", "ab"))
    engine.run()
    assert isinstance(engine.end("after"), Finished)


def test_a_job_can_be_cancelled_while_it_waits_for_its_grammar() -> None:
    """Its draw is closed, and a late answer changes nothing."""
    engine, draw = _with_bound()
    engine.decoder.cancel("bound")
    draw.say(engine, None)
    end = engine.end("bound")
    assert isinstance(end, Finished)
    assert (end.reason, draw.closed) == ("cancelled", True)
