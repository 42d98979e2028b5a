"""Options of the simulation, and silence: thousands of requests log thousands of lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

SEED_VARIABLE = "MOE2_SIMULATION_SEED"


@pytest.fixture
def first_seed() -> int:
    """The seed to begin with: `MOE2_SIMULATION_SEED=7 pytest ...` repeats the run that printed 7."""
    return int(os.environ.get(SEED_VARIABLE, "1"))


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(wrapper_class=before)
