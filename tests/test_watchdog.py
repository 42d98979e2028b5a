"""A test that hangs ends its process, and says where it hung."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from tests.watchdog import Watchdog
def pytest_configure(config):
    config.pluginmanager.register(Watchdog())
"""
TESTS = """
import time
def test_quick(): pass
def test_hangs(): time.sleep(300)
"""


@pytest.mark.slow
def test_a_test_that_hangs_is_shown_and_ends_the_run(tmp_path: Path) -> None:
    """The one before it in time passes."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_two.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-v", "--timeout", "2"]
    run = subprocess.run(
        [*command, "--timeout-method", "thread", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 1
    assert "test_quick PASSED" in run.stdout
    assert "Timeout" in run.stdout + run.stderr
    assert "in test_hangs" in run.stdout + run.stderr
