"""Fixtures of the scenarios: a controlled fake expert, a log that keeps quiet, a browser, a PostgreSQL server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.fakes.browser import Browser, chromium
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


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """For runs of thousands of requests."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(wrapper_class=before)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser, one for the tests of a file."""
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started
