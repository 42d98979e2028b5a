"""Content-Encoding of request bodies: which are accepted, and how far they are unpacked."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.http.access.encodings import STEP_BYTES, Encoding, Unpacker, encoding_of
from moe2.coordinator.http.errors import ApiError

ROOMY = 2**22
BODY = bytes(range(256)) * 1000


def whole(encoding: Encoding, packed: bytes, max_bytes: int = ROOMY) -> bytes:
    """Unpacks a body step by step to its end."""
    unpacker = Unpacker(encoding, packed, max_bytes=max_bytes)
    unpack(unpacker)
    return unpacker.body


def unpack(unpacker: Unpacker) -> None:
    """Takes all the steps, none of which is too large."""
    while not unpacker.is_whole:
        assert unpacker.step() <= STEP_BYTES


def bare_deflate(body: bytes) -> bytes:
    """Packs a body as deflate without zlib's frame, as some clients send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ((), None),
        (("identity",), None),
        (("",), None),
        (("gzip",), Encoding.GZIP),
        (("X-GZIP",), Encoding.GZIP),
        ((" Deflate ",), Encoding.DEFLATE),
        (("identity, gzip",), Encoding.GZIP),
    ],
)
def test_accepted_encodings(headers: tuple[str, ...], encoding: Encoding | None) -> None:
    """One known encoding is accepted, however it is spelt, and so is none."""
    assert encoding_of(headers) is encoding


@pytest.mark.parametrize(
    "headers", [("br",), ("zstd",), ("gzip, gzip",), ("gzip", "deflate"), ("compress",), ("x" * 9999,)]
)
def test_other_encodings_are_refused_with_those_accepted(headers: tuple[str, ...]) -> None:
    """Other encodings, and several at once, are answered with 415 and the list of those accepted."""
    with pytest.raises(ApiError, match=r".*") as refusal:
        encoding_of(headers)
    assert (refusal.value.status, refusal.value.code) == (415, "unsupported_encoding")
    assert "gzip, deflate" in refusal.value.message
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (Encoding.GZIP, gzip.compress(BODY)),
        (Encoding.GZIP, gzip.compress(BODY, compresslevel=0)),
        (Encoding.DEFLATE, zlib.compress(BODY)),
        (Encoding.DEFLATE, bare_deflate(BODY)),
    ],
)
def test_a_body_is_unpacked_whole(encoding: Encoding, packed: bytes) -> None:
    """A body is unpacked whole, with and without zlib's frame."""
    assert whole(encoding, packed) == BODY


@given(st.binary(max_size=300_000), st.integers(0, 9))
def test_what_was_packed_comes_back(body: bytes, level: int) -> None:
    """Any packed body comes back in bounded steps."""
    assert whole(Encoding.GZIP, gzip.compress(body, compresslevel=level)) == body


def test_a_bomb_is_left_at_the_limit() -> None:
    """A decompression bomb is unpacked at most one step beyond the limit."""
    unpacker = Unpacker(Encoding.GZIP, gzip.compress(bytes(20_000_000)), max_bytes=100_000)
    with pytest.raises(ApiError) as refusal:
        unpack(unpacker)
    assert (refusal.value.status, refusal.value.code) == (413, "body_too_large")
    assert len(unpacker.body) <= 100_000 + STEP_BYTES


def test_a_body_of_just_the_limit_passes() -> None:
    """A body of just the limit passes, and one byte more does not."""
    packed = gzip.compress(bytes(100_000))
    assert len(whole(Encoding.GZIP, packed, max_bytes=100_000)) == 100_000
    with pytest.raises(ApiError):
        whole(Encoding.GZIP, packed, max_bytes=99_999)


@pytest.mark.parametrize(
    "packed",
    [
        b"{}",
        b"",
        gzip.compress(BODY)[:-9],
        gzip.compress(BODY) + b"more",
        gzip.compress(b"{}") + gzip.compress(b"{}"),
        gzip.compress(BODY)[:-8] + bytes(8),
    ],
    ids=["not packed", "nothing", "cut off", "followed by more", "two members", "wrong sum"],
)
def test_a_damaged_body_is_refused(packed: bytes) -> None:
    """A damaged body is answered with 400; a part of it is never taken for the whole."""
    with pytest.raises(ApiError) as refusal:
        whole(Encoding.GZIP, packed)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_encoding")


@given(st.sampled_from(Encoding), st.binary(max_size=2000))
def test_nonsense_raises_nothing_but_api_errors(encoding: Encoding, packed: bytes) -> None:
    """Whatever a client sends as packed, unpacking ends with a body or an `ApiError`."""
    with suppress(ApiError):
        assert len(whole(encoding, packed)) <= ROOMY
