"""Model files and settings that cannot work: a clear code, a cause and a remedy, never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.engine.protocol import Loaded, LoadFailed
from tests.agent.engine.child import Child
from tests.models import smollm2_path

pytestmark = pytest.mark.slow


def _load(path: Path, **settings: int) -> Loaded | LoadFailed:
    with Child() as child:
        return child.load(str(path), **settings)


def _failure(path: Path, **settings: int) -> LoadFailed:
    answer = _load(path, **settings)
    assert isinstance(answer, LoadFailed)
    return answer


def _head(tmp_path: Path, size: int) -> Path:
    """The real model's first bytes, as a broken download leaves them."""
    path = tmp_path / "model.gguf"
    with smollm2_path().open("rb") as whole:
        path.write_bytes(whole.read(size))
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    failed = _failure(tmp_path / "absent.gguf")
    assert failed.code == "model_missing"
    assert "absent.gguf" in failed.message


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    """The system's own reason is told."""
    assert _failure(tmp_path).code == "model_unreadable"


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"GGUF"])
def test_what_is_no_gguf_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """An empty file, an error page saved as a model, a bare magic number."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert _failure(path).code == "model_corrupt"


@pytest.mark.parametrize("size", [1_000, 800_000, 50_000_000])
def test_a_truncated_file_is_corrupt_and_says_to_download_it_again(tmp_path: Path, size: int) -> None:
    """Cut within the header, the metadata or the weights."""
    failed = _failure(_head(tmp_path, size))
    assert failed.code == "model_corrupt"
    assert "Download it again" in failed.message


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    """A model newer than the installed llama.cpp asks for a newer one."""
    path = tmp_path / "model.gguf"
    path.write_bytes(smollm2_path().read_bytes().replace(b"llama", b"lxama"))
    failed = _failure(path)
    assert failed.code == "unsupported_model"
    assert "lxama" in failed.message


def test_a_cache_beyond_the_hosts_memory_is_refused_with_the_numbers() -> None:
    """The message tells what is needed, what is there and what would fit."""
    failed = _failure(smollm2_path(), context_tokens=100_000_000)
    assert failed.code == "out_of_memory"
    assert "GiB" in failed.message
    assert "Lower context_tokens to at most" in failed.message


def test_impossible_settings_are_refused_by_name() -> None:
    """The setting, its value and its range."""
    failed = _failure(smollm2_path(), slots=300)
    assert failed.code == "invalid_spec"
    assert "slots is 300" in failed.message


def test_the_smallest_context_still_loads() -> None:
    """llama.cpp rounds up; the child reports what it really is."""
    loaded = _load(smollm2_path(), slots=1, context_tokens=1)
    assert isinstance(loaded, Loaded)
    assert loaded.context_tokens >= 1
