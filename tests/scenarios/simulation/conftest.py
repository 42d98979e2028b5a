"""Options of the simulation."""

from __future__ import annotations

import os

import pytest

SEED_VARIABLE = "MOE2_SIMULATION_SEED"


@pytest.fixture
def first_seed() -> int:
    """The seed to begin with: `MOE2_SIMULATION_SEED=7 pytest ...` repeats the run that printed 7."""
    return int(os.environ.get(SEED_VARIABLE, "1"))


@pytest.fixture(autouse=True)
def _silence(quiet_log: None) -> None:
    pass
