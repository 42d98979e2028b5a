"""Streaming text: whole characters, stop strings over token borders, log-probabilities kept."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.messages import TokenPiece
from moe2.common.textstream import Likelihood, TextStream


def _cut(content: bytes, borders: list[int]) -> list[bytes]:
    edges = [0, *sorted(border % (len(content) + 1) for border in borders), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


def _run(stream: TextStream, tokens: list[bytes]) -> tuple[str, int]:
    """(all text, tokens fed until it stopped)."""
    pieces: list[TokenPiece] = []
    fed = 0
    for token in tokens:
        pieces += stream.feed(token)
        fed += 1
        if stream.stopped:
            break
    pieces += stream.finish()
    return "".join(piece.text for piece in pieces), fed


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_any_cut_of_a_text_streams_back_to_it(text: str, borders: list[int]) -> None:
    """Tokens that split characters never split them in the stream."""
    assert _run(TextStream(), _cut(text.encode(), borders))[0] == text


@given(st.text("ab", max_size=30), st.lists(st.integers(0, 1000)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, borders: list[int], stop: list[str]
) -> None:
    """What comes out never holds a stop string, and nothing before the first complete one is lost."""
    tokens = _cut(text.encode(), borders)
    streamed, fed = _run(TextStream(stop), tokens)
    seen = b"".join(tokens[:fed]).decode()
    cuts = [at for each in stop if (at := seen.find(each)) >= 0]
    assert streamed == (seen[: min(cuts)] if cuts else text)


@given(st.binary(), st.lists(st.integers(0, 1000)))
def test_invalid_utf8_becomes_replacement_characters(content: bytes, borders: list[int]) -> None:
    """Bytes that are no text stream like a whole decode with replacement."""
    assert _run(TextStream(), _cut(content, borders))[0] == content.decode("utf-8", "replace")


def test_a_piece_that_may_begin_a_stop_string_is_held_back() -> None:
    """Nothing of a possible stop string is shown before it is decided."""
    stream = TextStream(["END"])
    assert stream.feed(b"to the E") == ()


def test_a_held_piece_keeps_its_log_probability() -> None:
    """Pieces released later still carry what they were drawn with."""
    stream = TextStream(["END"])
    stream.feed(b"E", Likelihood(-0.5))
    assert [(piece.text, piece.logprob) for piece in stream.feed(b"x", Likelihood(-0.25))] == [
        ("E", -0.5),
        ("x", -0.25),
    ]


def test_an_unfinished_character_is_shown_as_replaced() -> None:
    """A stream that ends within a character says so instead of dropping bytes."""
    stream = TextStream()
    stream.feed("é".encode()[:1])
    assert [piece.text for piece in stream.finish()] == ["\ufffd"]


@pytest.mark.parametrize("stop", [(), ("END",)])
def test_a_character_that_is_cut_in_half_is_dropped(stop: tuple[str, ...]) -> None:
    """An answer that reaches its limit there ends before the character."""
    stream = TextStream(stop)
    pieces = [*stream.feed("aé".encode()[:2]), *stream.finish(is_cut=True)]
    assert "".join(piece.text for piece in pieces) == "a"


def test_a_scored_token_tells_its_own_bytes_where_they_are_no_text() -> None:
    """A character's text belongs to the token that completes it; each token has its bytes."""
    stream = TextStream()
    pieces = [piece for token in (b"a", b"\xc3", b"\xa9") for piece in stream.feed(token, Likelihood(-0.5))]
    assert [(piece.text, piece.hex) for piece in pieces] == [("a", ""), ("", "c3"), ("é", "a9")]


def test_the_stop_string_is_named() -> None:
    """The one that comes first; of several at the same place the longest."""
    stream = TextStream(("END", "EN", "x"))
    assert stream.feed(b"an EN") == (TokenPiece("an "),)
    assert stream.stopped_by == "EN"
    stream = TextStream(("b", "abc"))
    stream.feed(b"abc")
    assert stream.stopped_by == "abc"
