"""Checksums of files, by the caller and by a process of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe2.common import checksums
from moe2.common.checksums import LOWEST, Checksums, checksums_of, lowered


@pytest.fixture(params=["caller", "child"])
def _reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read by the caller, or all of them by a child, which the caller must not have to stand in for."""
    if request.param == "child":
        monkeypatch.setattr(checksums, "SMALL_BYTES", -1)
        monkeypatch.setattr(checksums, "_lines", lambda *_: pytest.fail("No child has read."))


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("sizes", [(0,), ((1 << 20) + 7,), (5, 0, (2 << 20) + 1)])
def test_each_file_has_its_own_checksum_and_all_have_one(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """They are those of hashlib, of names with blanks and line ends, too."""
    contents = [os.urandom(size) for size in sizes]
    paths = [tmp_path / f"a part\n{number}.gguf" for number in range(len(sizes))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    parts = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    assert checksums_of(paths) == Checksums(parts, hashlib.sha256(b"".join(contents)).hexdigest())


@pytest.mark.parametrize("argv", [("/no/such/program",), (sys.executable, "-c", "print('half'); raise SystemExit(1)")])
def test_where_no_child_reads_to_the_end_the_caller_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    """A child that cannot be started, or is ended, costs time and nothing else."""
    monkeypatch.setattr(checksums, "SMALL_BYTES", -1)
    monkeypatch.setattr(checksums, "_ARGV", argv)
    (tmp_path / "m").write_bytes(b"one")
    assert checksums_of([tmp_path / "m"]).whole == hashlib.sha256(b"one").hexdigest()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the system's, with the path, also where it goes away after its size was asked for."""
    monkeypatch.setattr(checksums, "SMALL_BYTES", -1)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.gguf"):
        checksums_of([tmp_path / "folder.gguf"])
    with pytest.raises(FileNotFoundError, match=r"gone\.gguf"):
        checksums_of([tmp_path / "gone.gguf"])


def test_a_child_goes_behind_all_others() -> None:
    """It has the lowest priority."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as process:
        assert os.getpriority(os.PRIO_PROCESS, lowered(process).pid) == LOWEST
        process.communicate("\n")


def test_a_child_whose_parent_is_gone_reads_no_further(tmp_path: Path) -> None:
    """It ends after a piece, without a checksum."""
    (tmp_path / "m").write_bytes(b"one")
    argv = [sys.executable, "-m", "moe2.common.checksums", "1", str(tmp_path / "m")]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
