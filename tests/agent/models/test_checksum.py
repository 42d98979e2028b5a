"""Checksums of model files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from moe2.agent.models.files import ChecksumStore


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rewrite(path: Path, content: bytes) -> None:
    """Other content under the same size and modification time."""
    facts = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_files_checksum_is_its_sha256(tmp_path: Path) -> None:
    """Of all its bytes, beyond the size of one chunk."""
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "m.gguf").write_bytes(content)
    assert ChecksumStore(tmp_path).sha256(tmp_path / "m.gguf") == sum_of(content)


def test_a_checksum_is_computed_once(tmp_path: Path) -> None:
    """A restarted agent does not read the file again while it is unchanged: it says what was stored."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    ChecksumStore(tmp_path).sha256(path)
    stored = tmp_path / "checksums.json"
    stored.write_text(stored.read_text().replace(sum_of(b"one"), "as stored"))
    assert ChecksumStore(tmp_path).sha256(path) == "as stored"


def test_a_file_that_was_changed_under_its_old_time_has_a_new_checksum(tmp_path: Path) -> None:
    """Programs set size and modification time as they like, but not the time of the change."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    store = ChecksumStore(tmp_path)
    store.sha256(path)
    rewrite(path, b"two")
    assert store.known(path) is None
    assert store.sha256(path) == sum_of(b"two") == store.known(path)


def test_a_changed_file_has_a_new_checksum(tmp_path: Path) -> None:
    """Its size gives it away, or its time."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    store = ChecksumStore(tmp_path)
    store.sha256(path)
    path.write_bytes(b"three")
    assert store.sha256(path) == sum_of(b"three")
    os.utime(path, ns=(0, 0))
    rewrite(path, b"other")
    os.utime(path, ns=(1, 1))
    assert store.sha256(path) == sum_of(b"other")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"m": {"size_bytes": "x"}}'])
def test_a_broken_store_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    """It is written anew."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    (tmp_path / "checksums.json").write_bytes(content)
    assert ChecksumStore(tmp_path).sha256(path) == sum_of(b"one")


def test_a_store_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    """The checksum is known all the same."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    assert ChecksumStore(tmp_path / "absent").sha256(path) == sum_of(b"one")


def test_a_missing_file_has_no_checksum(tmp_path: Path) -> None:
    """The caller learns why."""
    with pytest.raises(FileNotFoundError):
        ChecksumStore(tmp_path).sha256(tmp_path / "absent.gguf")


def test_a_split_models_checksum_covers_all_parts(tmp_path: Path) -> None:
    """One after the other; a change of any part is a change."""
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        part.write_bytes(b"part %d" % number)
    store = ChecksumStore(tmp_path)
    assert store.sha256(parts[0]) == sum_of(b"part 0part 1")
    parts[1].write_bytes(b"other part")
    assert store.sha256(parts[0]) == sum_of(b"part 0other part")
