"""What every test shares: child processes import this tree, and debug logs stay out of failure reports."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

ROOT = Path(__file__).parent.parent
# All tests of these modules are slow, and so are their imports: torch with its optimisers, schemathesis.
IMPORTED_SLOWLY = ("evaluation/test_study.py", "gating/test_training.py", "fuzz/test_openapi_live.py")

os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT / "dev"), str(ROOT)))
# Bytecode is kept even where the environment says otherwise: each of the hundreds of child processes would compile the
# tree anew, which takes four times as long as to start, and each worker would rewrite every test module's assertions.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
# Tests are never timed: these machines are noisy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The inner loop does not import what it would only leave out."""
    left_out = config.option.markexpr == "not slow" and str(collection_path).endswith(IMPORTED_SLOWLY)
    return True if left_out else None
