"""Headers of GGUF files: what they say, and what hostile ones cannot do."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.llama.memory import cache_bytes
from moe2.common.gguf import GgufError, check_whole, header_of, needed_bytes, parse_head, read_header
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


@pytest.mark.parametrize("read", [read_header, check_whole])
def test_what_may_never_end_is_no_model(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A pipe that nobody writes into is refused, and not waited for."""
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(GgufError, match=r"m\.gguf is no regular file"):
        read(tmp_path / "m.gguf")


def test_a_whole_file_is_as_long_as_its_tensors_need() -> None:
    """The real model's last tensor ends with the file."""
    path = smollm2_path()
    with path.open("rb") as file:
        assert needed_bytes(file, "m") == path.stat().st_size
    check_whole(path)


@pytest.mark.parametrize("keep", [0.00001, 0.01, 0.5, 0.999999])
def test_a_file_that_was_cut_off_is_told_as_one(tmp_path: Path, keep: float) -> None:
    """Within its metadata, its list of tensors, or its tensors; by a single byte, too."""
    content = smollm2_path().read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: min(len(content) - 1, int(keep * len(content)))])
    with pytest.raises(GgufError, match="is cut off") as error:
        check_whole(cut)
    assert error.value.remedy == "Copy or download it again."


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (struct.pack("<I", 9), "9 dimensions"),
        (struct.pack("<IQIQ", 1, 2**63, 2, 0), "is cut off"),
        (struct.pack("<IQIQ", 1, 64, 99, 2**40), "is cut off"),
        (struct.pack("<I", 0), "header is not whole"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path: Path, tensors: bytes, told: str) -> None:
    """Claims of a hostile file cost no time and no memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text("t") + tensors)
    with pytest.raises(GgufError, match=told):
        check_whole(path)
