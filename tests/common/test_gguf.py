"""Headers of GGUF files: what they say, and what hostile ones cannot do."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.memory import cache_bytes
from moe2.common.gguf import GgufError, header_of, parse_head, read_header
from tests.gguf import gguf, text
from tests.models import smollm2_path


def test_header_of_a_real_model_says_what_it_is() -> None:
    """Architecture, licence and trained context stand in SmolLM2's file."""
    header = read_header(smollm2_path())
    assert (header.architecture, header.licence, header.trained_context_tokens) == ("llama", "apache-2.0", 8192)
    assert header.is_whole


def test_head_of_a_file_is_enough_for_its_facts() -> None:
    """A megabyte tells how large a cache will be, though the vocabulary is cut off."""
    head = parse_head(smollm2_path().read_bytes()[:100_000], "head")
    assert not head.is_whole
    assert cache_bytes(head.text, 1024, "f16") == 30 * 1024 * 3 * 128 * 2


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04" * 10, b"<html>"])
def test_other_files_are_refused(content: bytes) -> None:
    """What does not begin with the magic is no GGUF file."""
    with pytest.raises(GgufError, match="not a GGUF file"):
        parse_head(content, "x")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60),
        struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 0),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 60),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<IQ", 8, 1 << 60),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 60),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<I", 77),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
    ],
)
def test_impossible_claims_are_refused(content: bytes) -> None:
    """A length or a kind that no file has ends the reading, before anything is allocated for it."""
    with pytest.raises(GgufError):
        parse_head(content, "x")


@given(cut=st.integers(4, len(gguf())), junk=st.binary(max_size=64))
def test_any_beginning_can_be_read(cut: int, junk: bytes) -> None:
    """A file that ends anywhere, or goes on with anything, gives a header or says that it is broken."""
    assert parse_head(gguf()[:cut], "x").is_whole == (cut == len(gguf()))
    with contextlib.suppress(GgufError):
        header_of(io.BytesIO(gguf()[:cut] + junk), "x")
