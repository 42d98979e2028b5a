"""What waits to be sent to the coordinator."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.link.outbox import MAX_PIECES, Outbox
from moe2.common.link.messages import JobDone, JobPieces, JobUsage, TokenAlternative, TokenPiece, Tokens
from moe2.common.link.session import JobMessage
from moe2.common.link.wire import MAX_PIECES_PER_FRAME, wire_codec

MIN_FRAME_LIMIT = 65_536


def pieces(job_id: str, *texts: str) -> tuple[JobPieces, ...]:
    return (JobPieces(job_id, tuple(TokenPiece(text) for text in texts)),)


def done(job_id: str) -> JobDone:
    return JobDone(job_id=job_id, reason="stop", usage=JobUsage())


def drained(outbox: Outbox) -> list[JobMessage]:
    messages = []
    while (message := outbox.take()) is not None:
        messages.append(message)
    return messages


def test_an_empty_outbox_has_nothing() -> None:
    """And says so."""
    outbox = Outbox()
    assert not outbox
    assert outbox.take() is None


def test_tokens_that_wait_share_a_frame() -> None:
    """Steps of all jobs that came while the link was busy."""
    outbox = Outbox()
    outbox.put_tokens(pieces("1", "a"))
    outbox.put_tokens(pieces("2", "x"))
    outbox.put_tokens(pieces("1", "b", "c"))
    assert outbox
    assert drained(outbox) == [Tokens(jobs=(*pieces("1", "a", "b", "c"), *pieces("2", "x")))]


def test_tokens_go_out_one_by_one_while_the_link_is_fast() -> None:
    """Nothing is held back to be merged."""
    outbox = Outbox()
    for text in "ab":
        outbox.put_tokens(pieces("1", text))
        assert drained(outbox) == [Tokens(jobs=pieces("1", text))]


def test_an_ending_never_overtakes_its_tokens() -> None:
    """Nor do later tokens join a frame from before it."""
    outbox = Outbox()
    outbox.put_tokens(pieces("1", "a"))
    outbox.put(done("1"))
    outbox.put_tokens(pieces("2", "b"))
    assert drained(outbox) == [Tokens(jobs=pieces("1", "a")), done("1"), Tokens(jobs=pieces("2", "b"))]


def test_nothing_is_left_of_a_link_that_is_gone() -> None:
    """Messages of one session mean nothing in the next."""
    outbox = Outbox()
    outbox.put(done("1"))
    outbox.put_tokens(pieces("2", "b"))
    outbox.clear()
    assert not outbox
    assert outbox.take() is None


def test_merged_frames_stay_below_the_smallest_frame_limit() -> None:
    """Also where each token carries twenty alternatives."""
    rich = TokenPiece(" token", -0.5, tuple(TokenAlternative(" other", -1.5) for _ in range(20)))
    outbox = Outbox()
    for _ in range(MAX_PIECES):
        outbox.put_tokens((JobPieces("req-0123456789abcdef.0", (rich,)),))
    messages = drained(outbox)
    codec = wire_codec(max_frame_bytes=MIN_FRAME_LIMIT)
    assert sum(len(codec.encode(message)) for message in messages) > MIN_FRAME_LIMIT
    assert sum(len(job.pieces) for message in messages if isinstance(message, Tokens) for job in message.jobs) == (
        MAX_PIECES
    )


def test_tokens_that_come_at_once_are_sent_in_parts() -> None:
    """A prompt is repeated by the batch; no frame has more tokens than a coordinator takes in."""
    outbox = Outbox()
    told = [str(n) for n in range(3 * MAX_PIECES + 1)]
    outbox.put_tokens((*pieces("1", *told), *pieces("2", "x")))
    messages = [message for message in drained(outbox) if isinstance(message, Tokens)]
    sizes = [sum(len(job.pieces) for job in message.jobs) for message in messages]
    assert sizes == [MAX_PIECES, MAX_PIECES, MAX_PIECES, 2]
    assert [
        piece.text for message in messages for job in message.jobs if job.job_id == "1" for piece in job.pieces
    ] == (told)
    assert MAX_PIECES < MAX_PIECES_PER_FRAME


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("tokens"), st.sampled_from("123"), st.text("abc", min_size=1, max_size=3)),
            st.tuples(st.just("done"), st.sampled_from("123"), st.just("")),
            st.tuples(st.just("take"), st.just(""), st.just("")),
        ),
        max_size=40,
    )
)
def test_every_job_sees_its_words_in_order(steps: list[tuple[str, str, str]]) -> None:
    """Whatever is merged and whenever it is taken, nothing is lost, doubled or reordered within a job."""
    outbox = Outbox()
    put: dict[str, list[str]] = {job_id: [] for job_id in "123"}
    taken: list[JobMessage] = []
    for kind, job_id, texts in steps:
        match kind:
            case "tokens":
                outbox.put_tokens(pieces(job_id, *texts))
                put[job_id].extend(texts)
            case "done":
                outbox.put(done(job_id))
                put[job_id].append("DONE")
            case _:
                message = outbox.take()
                taken += [] if message is None else [message]
    seen: dict[str, list[str]] = {job_id: [] for job_id in "123"}
    for message in [*taken, *drained(outbox)]:
        match message:
            case Tokens(jobs=jobs):
                for job in jobs:
                    seen[job.job_id].extend(piece.text for piece in job.pieces)
            case JobDone(job_id=job_id):
                seen[job_id].append("DONE")
    assert seen == put
