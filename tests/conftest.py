"""What every test shares: child processes import this tree, and debug logs stay out of failure reports."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from moe2.coordinator.runtime import EventLoop

ROOT = Path(__file__).parent.parent
# All tests of these modules are slow, and so are their imports: torch with its optimisers, schemathesis.
IMPORTED_SLOWLY = ("evaluate/test_study.py", "training/test_train.py", "fuzz/test_openapi_live.py")

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
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The inner loop does not import what it would only leave out."""
    left_out = config.option.markexpr == "not slow" and str(collection_path).endswith(IMPORTED_SLOWLY)
    return True if left_out else None


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Whatever runs a coordinator runs it on the loop that users have; agents and what is common run on asyncio's."""
    in_coordinator = {"coordinator", "scenarios"} & set(item.path.relative_to(ROOT).parts)
    return {"uvloop": EventLoop} if in_coordinator else {"asyncio": asyncio.new_event_loop}
