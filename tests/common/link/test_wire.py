"""Bytes to messages and back."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.errors import ProtocolError
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    JobFailed,
    JobPieces,
    Ping,
    Pong,
    Submit,
    TokenAlternative,
    TokenPiece,
    Tokens,
    WireMessage,
)
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.wire import (
    MAX_PIECES_PER_FRAME,
    SMALL_FRAME_BYTES,
    FrameSplitter,
    UnreadableMessage,
    length_prefixed,
    wire_codec,
)
from tests.common.samples import SAMPLES

GOLDEN = dict(
    line.split(maxsplit=1) for line in (Path(__file__).parent / "golden" / "wire.hex").read_text().splitlines()
)
OPS = {member.__struct_config__.tag for member in WireMessage.__args__}

# Whatever msgpack can say: keys of any hashable kind, big integers, bytes, extensions.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
)
KEYS = st.text(max_size=6) | st.integers(-5, 5) | st.binary(max_size=3) | st.none() | st.booleans()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def test_every_op_has_a_golden_frame() -> None:
    """A message without golden bytes could change unnoticed."""
    assert {name.partition(".")[0] for name in SAMPLES} == OPS
    assert set(GOLDEN) == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_messages_have_their_golden_bytes(name: str) -> None:
    """What is sent stays what peers of this protocol version expect."""
    frame = wire_codec().encode(SAMPLES[name]).hex()
    assert frame == GOLDEN[name], (
        f"The bytes of {name!r} changed. Peers in the field speak protocol {PROTOCOL_VERSION}: if a field was renamed, "
        f"retyped or given a new meaning, raise PROTOCOL_VERSION; then write the new bytes into golden/wire.hex:\n"
        f"{name} {frame}"
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes_are_understood(name: str) -> None:
    """What peers of this protocol version send is read with nothing lost."""
    message = wire_codec().decode(bytes.fromhex(GOLDEN[name]))
    assert message == SAMPLES[name], f"{name!r} as peers of protocol {PROTOCOL_VERSION} send it is no longer understood"


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_fields_are_ignored(name: str) -> None:
    """A newer peer may add fields."""
    content = {**msgspec.to_builtins(SAMPLES[name]), "added_later": {"deep": [1, None]}}
    assert wire_codec().decode(msgpack.packb(content)) == SAMPLES[name]


def test_unknown_op_is_an_unreadable_message() -> None:
    """It names the op, so that the session can answer it and go on."""
    with pytest.raises(UnreadableMessage) as raised:
        wire_codec().decode(msgpack.packb({"op": "teleport", "seq": 1}))
    assert (raised.value.code, raised.value.op) == ("unknown_op", "teleport")


@pytest.mark.parametrize(
    "content",
    [
        {"op": "ping"},
        {"op": "ping", "seq": "one"},
        {"op": "ping", "seq": 1.5},
        {"op": "submit", "job_id": "j", "request_id": "r", "model": "m", "prompt": {"kind": "image"}},
        {"op": "tokens", "jobs": [["j", [["text", "loud"]]]]},
    ],
)
def test_a_known_op_with_wrong_fields_is_an_unreadable_message(content: dict[str, Any]) -> None:
    """It names the op and says what is wrong with which field."""
    with pytest.raises(UnreadableMessage) as raised:
        wire_codec().decode(msgpack.packb(content))
    assert (raised.value.code, raised.value.op) == ("invalid_message", content["op"])
    assert raised.value.message.startswith(f"Invalid {content['op']!r}: ")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\xff" * 16,
        msgpack.packb([1, 2]),
        msgpack.packb({"seq": 1}),
        msgpack.packb({"op": 7}),
        msgpack.packb({"op": "ping", "seq": 1}) + b"\x00",
        b"\xa2\xff\xfe",
        b"\x91" * 100_000 + b"\x01",
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=[
        "empty",
        "reserved byte",
        "cut off",
        "garbage",
        "no map",
        "no op",
        "op no string",
        "trailing bytes",
        "invalid utf-8",
        "deeply nested",
        "list as key",
        "map as key",
        "map of billions",
    ],
)
def test_malformed_frames_are_refused(frame: bytes) -> None:
    """Whatever breaks the frame itself has one code."""
    with pytest.raises(ProtocolError) as raised:
        wire_codec().decode(frame)
    assert raised.value.code == "malformed_frame"


def test_a_frame_over_the_limit_is_not_even_unpacked() -> None:
    """The limit holds for what is received."""
    frame = wire_codec().encode(Ping(seq=1))
    with pytest.raises(ProtocolError) as raised:
        wire_codec(max_frame_bytes=len(frame) - 1).decode(frame)
    assert raised.value.code == "frame_too_large"
    assert wire_codec(max_frame_bytes=len(frame)).decode(frame) == Ping(seq=1)


def test_a_message_over_the_limit_is_not_sent() -> None:
    """The limit holds for what is sent, and the error says what to do."""
    message = Submit(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="x" * 1000))
    with pytest.raises(ProtocolError, match="max_frame_bytes") as raised:
        wire_codec(max_frame_bytes=1000).encode(message)
    assert raised.value.code == "frame_too_large"


@pytest.mark.parametrize(
    "content",
    [
        {"op": "x" * 100_000},
        {"op": "submit", "job_id": "j", "request_id": "r", "model": "m", "prompt": {"kind": "x" * 100_000}},
    ],
)
def test_complaints_do_not_repeat_a_huge_value(content: dict[str, Any]) -> None:
    """The complaint is sent back to the peer and logged, so it has to stay small."""
    with pytest.raises(UnreadableMessage) as raised:
        wire_codec().decode(msgpack.packb(content))
    assert len(raised.value.message) < 600
    assert len(raised.value.op) <= 64


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_protocol_errors(frame: bytes) -> None:
    """A peer's bytes can never crash a daemon."""
    _decode_or_refuse(frame)


@given(VALUES)
def test_random_values_raise_nothing_but_protocol_errors(content: Any) -> None:
    """Nor can well-formed msgpack of the wrong shape."""
    _decode_or_refuse(msgpack.packb(content))


@pytest.mark.slow
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_random_fields_in_known_ops_raise_nothing_but_protocol_errors(name: str, data: st.DataObject) -> None:
    """Nor can a message of which one field holds something else."""
    content = msgspec.to_builtins(SAMPLES[name])
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(VALUES)
    _decode_or_refuse(msgpack.packb(content))


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_frames_raise_nothing_but_protocol_errors(name: str, data: st.DataObject) -> None:
    """Nor can a frame with one byte changed."""
    frame = bytearray(bytes.fromhex(GOLDEN[name]))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(frame))


def _decode_or_refuse(frame: bytes) -> None:
    try:
        message = wire_codec().decode(frame)
    except ProtocolError as error:
        refused_with = error.code
    else:
        assert isinstance(message, WireMessage)
        return
    assert refused_with in ("malformed_frame", "unknown_op", "invalid_message")


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), max_size=40))
def test_a_stream_is_cut_into_its_frames_however_it_arrives(frames: list[bytes], sizes: list[int]) -> None:
    """The splits of a byte stream mean nothing."""
    stream = b"".join(length_prefixed(frame) for frame in frames)
    splitter, out = FrameSplitter(), []
    for size in [*sizes, len(stream)]:
        chunk, stream = stream[:size], stream[size:]
        out += list(splitter.feed(chunk))
    assert out == frames


def test_a_stream_of_single_bytes_yields_its_frames() -> None:
    """The slowest of all splits."""
    splitter = FrameSplitter()
    stream = length_prefixed(b"abc") + length_prefixed(b"") + length_prefixed(b"d")
    assert [frame for byte in stream for frame in splitter.feed(bytes([byte]))] == [b"abc", b"", b"d"]


def test_a_length_over_the_limit_is_refused_before_its_bytes_arrive() -> None:
    """Nobody can make the reader buffer more than the limit; frames before it are still handed out."""
    splitter = FrameSplitter(max_frame_bytes=10)
    frames = splitter.feed(length_prefixed(b"x" * 10) + (11).to_bytes(4, "big"))
    assert next(frames) == b"x" * 10
    with pytest.raises(ProtocolError) as raised:
        next(frames)
    assert raised.value.code == "frame_too_large"


EMPTY_MAPS = b"\xdd" + (500_000).to_bytes(4, "big") + b"\x80" * 500_000
"""An array of half a million empty maps: a byte each on the wire, 64 bytes each in memory."""
NESTED = b"\xdc\x03\xff" + 1023 * (b"\xdc\x01\xe0" + b"\x90" * 480)
"""As many arrays as there may be vectors, each of empty ones."""
SHORTEST = b"\x91\xa0"
"""A token of no characters."""


def _tokens(*n_pieces: int) -> bytes:
    """A frame of tokens, the shortest that there are: so many of each of some jobs."""
    jobs = b"".join(b"\x92\xa1j\xdd" + n.to_bytes(4, "big") + SHORTEST * n for n in n_pieces)
    return _with_field({"op": "tokens"}, "jobs", b"\xdc" + len(n_pieces).to_bytes(2, "big") + jobs)


def _with_field(content: dict[str, Any], name: str, packed: bytes) -> bytes:
    """The message with one more field that is packed already."""
    packed_content: bytes = msgpack.packb(content)
    packed_name: bytes = msgpack.packb(name)
    return bytes([packed_content[0] + 1]) + packed_content[1:] + packed_name + packed


@pytest.mark.parametrize(
    "frame",
    [
        _with_field(
            {"op": "report", "seq": 1, "host": {"hostname": "h", "system": "s", "architecture": "a"}},
            "experts",
            EMPTY_MAPS,
        ),
        _with_field({"op": "tokens"}, "jobs", EMPTY_MAPS),
        _with_field({"op": "next_tokens", "job_id": "j", "step": 0}, "candidates", EMPTY_MAPS),
        _with_field({"op": "job_scored", "job_id": "j", "usage": {}}, "scores", EMPTY_MAPS),
        _with_field({"op": "job_failed", "job_id": "j", "code": "internal", "message": "m"}, "usage", EMPTY_MAPS),
        _with_field({"op": "hello"}, "protocol_min", EMPTY_MAPS),
        _with_field({"op": "vectors", "job_id": "j"}, "vectors", NESTED),
        _tokens(MAX_PIECES_PER_FRAME // 2, MAX_PIECES_PER_FRAME // 2 + 1),
        _tokens(*40 * [MAX_PIECES_PER_FRAME]),
        _with_field({"op": "tokens"}, "jobs", msgpack.packb([["j", 1_700 * [["a", -1.0, 64 * [["a", -1.0]]]]]])),
    ],
)
def test_nothing_is_built_of_a_frame_that_is_mostly_empty_maps(frame: bytes) -> None:
    """A frame that would take a hundred times its size is refused by its length, or by that of its arrays."""
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableMessage):
            wire_codec().decode(frame)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(frame)


def test_a_frame_has_so_many_tokens() -> None:
    """As many as there may be are read, of all jobs together; one more is refused by name."""
    half = MAX_PIECES_PER_FRAME // 2
    read = wire_codec().decode(_tokens(half, half))
    assert isinstance(read, Tokens)
    assert [len(job.pieces) for job in read.jobs] == [half, half]
    with pytest.raises(UnreadableMessage, match=f"{2 * half + 1} tokens are more than the {MAX_PIECES_PER_FRAME}"):
        wire_codec().decode(_tokens(half, half + 1))


def test_a_few_tokens_may_have_much_to_say() -> None:
    """A text of megabytes that was held back for a stop string is one piece."""
    pieces = TokenPiece("a" * 3_000_000), TokenPiece("b", -1.0, (TokenAlternative("c", -2.0),))
    told = Tokens(jobs=(JobPieces("j", pieces),))
    assert wire_codec().decode(wire_codec().encode(told)) == told


def test_an_unknown_field_costs_nothing_whatever_it_holds() -> None:
    """What a newer peer adds is skipped, not built."""
    frame = _with_field({"op": "tokens", "jobs": []}, "added_later", EMPTY_MAPS)
    tracemalloc.start()
    try:
        assert wire_codec().decode(frame) == Tokens(jobs=())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(frame)


@pytest.mark.parametrize("message", [Pong(seq=1), JobFailed(job_id="j", code="internal", message="m")])
def test_small_messages_have_small_frames(message: WireMessage) -> None:
    """A message that says one thing has no use for megabytes."""
    content = {**msgspec.to_builtins(message), "added_later": "x" * SMALL_FRAME_BYTES}
    with pytest.raises(UnreadableMessage, match="more than the 65536"):
        wire_codec().decode(msgpack.packb(content))


@pytest.mark.parametrize(
    ("content", "job_id"),
    [
        ({"op": "job_done", "job_id": "j", "reason": "stop", "usage": {"energy": {"quality": "guessed"}}}, "j"),
        ({"op": "job_done", "job_id": 7, "reason": "stop", "usage": {}}, None),
        ({"op": "job_done", "reason": "stop", "usage": {}}, None),
        ({"op": "job_done", "job_id": "x" * 300, "reason": "stop", "usage": {}}, None),
    ],
)
def test_an_unreadable_message_names_its_job(content: dict[str, Any], job_id: str | None) -> None:
    """The job's end is lost with the message, so whoever waits for it has to be told."""
    with pytest.raises(UnreadableMessage) as raised:
        wire_codec().decode(msgpack.packb(content))
    assert raised.value.job_id == job_id
