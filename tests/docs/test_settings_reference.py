"""docs/settings.md is what the settings types say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate_settings.py"))


@pytest.mark.slow
def test_the_reference_is_up_to_date() -> None:
    """Written anew by `PYTHONPATH=dev python docs/generate_settings.py`."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == GENERATOR["document"]()


@pytest.mark.slow
def test_every_setting_is_explained() -> None:
    """By the docstring below it, which is the last column."""
    rows = [line for line in GENERATOR["document"]().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if not row.rsplit("|", 2)[1].strip()] == []
