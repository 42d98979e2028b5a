"""What every test shares: child processes import this tree, and debug logs stay out of failure reports."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from moe2.coordinator.runtime import EventLoop
from tests.fakes.postgres import Postgres, postgres
from tests.watchdog import Watchdog

# While tests are collected nearly nothing becomes garbage. See pytest_collection_finish.
gc.disable()

ROOT = Path(__file__).parent.parent
SLOW_AS_A_WHOLE = re.compile(r"^pytestmark = (\[[^\]]*)?pytest\.mark\.slow\b", re.MULTILINE)

os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT / "dev"), str(ROOT)))
# Bytecode is kept even where the environment says otherwise: each of the hundreds of child processes would compile the
# tree anew, which takes four times as long as to start, and each worker would rewrite every test module's assertions.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell's background jobs ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
# Tests are never timed: these machines are noisy.
settings.register_profile("whole", deadline=None)
settings.register_profile("inner loop", deadline=None, max_examples=25)


def is_inner_loop(config: pytest.Config) -> bool:
    """Whether the tests run as somebody writes code, `-m "not slow"`, and not whole before a push."""
    return bool(config.option.markexpr == "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Properties that do not say how many examples they need try 100, and fewer in the inner loop."""
    settings.load_profile("inner loop" if is_inner_loop(config) else "whole")
    config.pluginmanager.register(Watchdog())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The inner loop does not import modules that are slow as a whole, nor torch and schemathesis with them."""
    if not is_inner_loop(config) or not collection_path.match("test_*.py"):
        return None
    return True if SLOW_AS_A_WHOLE.search(collection_path.read_text()) else None


def pytest_collection_finish() -> None:
    """What was collected stays, so that no later search for garbage has to look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Whatever runs a coordinator runs it on the loop that users have; agents and what is common run on asyncio's."""
    in_coordinator = {"coordinator", "scenarios"} & set(item.path.relative_to(ROOT).parts)
    return {"uvloop": EventLoop} if in_coordinator else {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own, which every test leaves running."""
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres) -> str:
    """The address of a new database with the tables of this release."""
    return server.new_tables()
