"""The sensors of the host that runs the tests; skipped where it has none."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from moe2.agent.energy.catalog import discover
from moe2.agent.energy.monitor import HostMonitor
from moe2.common.energy import Quality

pytestmark = pytest.mark.hardware


async def test_real_sensors_measure_a_request() -> None:
    """Four seconds with the host's own sensors: joules that fit the power, from readings that nobody rejects."""
    results = await asyncio.to_thread(discover)
    if not any(result.sensor for result in results):
        pytest.skip("; ".join(f"{result.name}: {result.detail}" for result in results))
    monitor = HostMonitor(results)
    running = asyncio.create_task(monitor.run())
    await asyncio.sleep(1.0)
    loop = asyncio.get_running_loop()
    monitor.account.request_started("a", 1, loop.time())
    await asyncio.sleep(4.0)
    monitor.account.request_ended("a", loop.time())
    await asyncio.sleep(1.0)
    energy = monitor.settle()["a"]
    powers = monitor.power_w()
    codes = [warning.code for warning in monitor.warnings()]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert energy.quality in (Quality.MEASURED_COUNTER, Quality.MEASURED_INTEGRATED)
    assert energy.joules is not None
    assert all(power_w is not None for power_w in powers.values())
    total_w = sum(power_w or 0.0 for power_w in powers.values())
    assert energy.joules / 4.0 == pytest.approx(total_w, rel=1.0)
    assert "sensor_quarantined" not in codes
