"""Events of the engine that share a frame."""

import pytest

from moe2.agent.engine.merging import BESIDE_THREADS_EVERY_S, TOKENS_EVERY_S, Merging
from moe2.agent.engine.protocol import Event, Finished, Loaded, ModelFacts, Started
from moe2.common.link.messages import JobPieces, TokenPiece, Tokens
from moe2.common.placement import DeviceShare

FACTS = ModelFacts(
    architecture="qwen2",
    file_bytes=1,
    vocabulary_size=2,
    vocabulary_sha256="0",
    has_chat_template=True,
)


def tokens(*texts: str, job_id: str = "a") -> Tokens:
    return Tokens(jobs=(JobPieces(job_id, tuple(TokenPiece(text) for text in texts)),))


def text_of(events: list[Event], job_id: str = "a") -> str:
    pieces = [job.pieces for event in events if isinstance(event, Tokens) for job in event.jobs if job.job_id == job_id]
    return "".join(piece.text for each in pieces for piece in each)


def test_tokens_of_short_steps_share_a_frame_and_lose_nothing() -> None:
    """A step of 7 ms: the first token goes out at once, then those of six steps go together."""
    merging = Merging()
    sent = [merging.put(tokens(text), 0.007 * step) for step, text in enumerate("abcdefghijklm")]
    assert [text_of(list(each)) for each in sent] == ["a", *5 * [""], "bcdefg", *5 * [""], "hijklm"]


def test_tokens_of_slow_steps_go_out_at_once() -> None:
    """Nothing is held back where a step takes as long as the interval."""
    merging = Merging()
    sent = [merging.put(tokens(text), TOKENS_EVERY_S * step) for step, text in enumerate("abc")]
    assert [text_of(list(each)) for each in sent] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("placement", "every_s"),
    [
        ((DeviceShare(device="CPU", layers=25),), BESIDE_THREADS_EVERY_S),
        ((DeviceShare(device="CPU", layers=5), DeviceShare(device="CUDA0", is_gpu=True, layers=20)), TOKENS_EVERY_S),
        ((), TOKENS_EVERY_S),
    ],
)
def test_frames_are_rarer_where_the_processor_decodes(placement: tuple[DeviceShare, ...], every_s: float) -> None:
    """What takes them takes time from the engine there; where nobody knows, as often as where a GPU decodes."""
    merging = Merging()
    merging.put(Loaded(facts=FACTS, load_s=1.0, context_tokens=64, slots=4, placement=placement), 0.0)
    merging.put(tokens("a"), 0.0)
    assert not merging.put(tokens("b"), 0.9 * every_s)
    assert text_of(list(merging.put(tokens("c"), every_s))) == "bc"


def test_what_is_held_back_of_several_jobs_stays_apart() -> None:
    """One frame, with each job's pieces in their order."""
    merging = Merging()
    merging.put(tokens("x"), 0.0)
    for text in "ab":
        assert not merging.put(tokens(text, job_id="a"), 0.001)
        assert not merging.put(tokens(text.upper(), job_id="b"), 0.001)
    [merged] = merging.rest()
    assert (text_of([merged], "a"), text_of([merged], "b")) == ("ab", "AB")
    assert merging.rest() == []


def test_the_end_of_a_job_never_overtakes_its_tokens() -> None:
    """The tokens come first, in the same turn."""
    merging = Merging()
    merging.put(tokens("a"), 0.0)
    merging.put(tokens("b"), 0.001)
    ended = Finished(
        job_id="a",
        reason="stop",
        prompt_tokens=1,
        cached_tokens=0,
        decoded_tokens=2,
        wait_s=0.0,
        prefill_s=0.1,
        decode_s=0.1,
    )
    sent = list(merging.put(ended, 0.002))
    assert text_of(sent[:1]) == "b"
    assert sent[1:] == [ended]


def test_a_first_token_waits_for_nobody() -> None:
    """A job that begins beside a fast one shows its first token at once."""
    merging = Merging()
    merging.put(tokens("a"), 0.0)
    merging.put(Started(job_id="b", prompt_tokens=1), 0.001)
    assert not merging.put(tokens("a"), 0.002)
    assert text_of(list(merging.put(tokens("b", job_id="b"), 0.003)), "b") == "b"
