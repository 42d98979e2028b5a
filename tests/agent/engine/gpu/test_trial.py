"""llama.cpp, asked about GPUs in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moe2.agent.engine.gpu.trial import try_engine

pytestmark = pytest.mark.slow


def test_the_real_library_says_what_it_was_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU backend it cannot offload; with one it may."""
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    found = try_engine()
    assert found.backends is not None
    assert found.backends or not found.offloads
    assert "CPU" not in found.backends


def test_a_library_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the words of whoever could not load it."""
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", ":".join((str(tmp_path), *filter(None, sys.path))))
    found = try_engine()
    assert (found.backends, found.offloads) == (None, False)
    assert "libcudart.so.12" in found.said
