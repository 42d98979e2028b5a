"""What tests of the fleet share."""

from __future__ import annotations

import pytest

from moe2.coordinator.fleet.table import CapabilityTable
from tests.coordinator.fleet.tables import EVICT_S, STALE_S


@pytest.fixture
def table() -> CapabilityTable:
    return CapabilityTable(stale_s=STALE_S, evict_s=EVICT_S)
