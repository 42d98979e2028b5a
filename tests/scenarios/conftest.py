"""Fixtures of the scenarios: a controlled fake expert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.control import ExpertControl, expert_control
from tests.fakes.fleet import FAKE_EXPERT


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ExpertControl]:
    """The gates of every fake expert started with `controlled`'s command."""
    async with expert_control(tmp_path / "control.sock") as gates:
        yield gates


@pytest.fixture
def controlled(tmp_path: Path) -> tuple[str, ...]:
    """The command of a fake expert that asks before each step."""
    return (*FAKE_EXPERT, "--control", str(tmp_path / "control.sock"))
