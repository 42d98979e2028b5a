"""The host's energy as the daemon uses it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from moe2.agent.energy.account import Activity
from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSettings, discover
from moe2.agent.energy.conditions import Conditions
from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.energy.profiles import PROFILES, find_profile
from moe2.agent.energy.sensor import Reading
from moe2.common.energy import Quality, Scope
from tests.fakes.clock import ManualClock
from tests.fakes.sensors import ScriptedSensor

_REFUSED = ProbeResult("rapl", ProbeState.DENIED, "energy_uj may not be read.", "Use a tmpfiles rule.")
_MISSING = ProbeResult("ina3221", ProbeState.ABSENT, "no Jetson.")


def _simulated(clock: ManualClock) -> HostMonitor:
    results = discover(SensorSettings(simulated=find_profile("agx-orin-30w")))
    return HostMonitor(results, clock=clock, conditions=Conditions())


def test_a_paced_host_is_learned_for_apart() -> None:
    """Its seconds are neither a real host's nor those of one whose power alone is simulated."""
    modes = [find_profile("agx-orin-30w", paced=paced).marked_power_mode for paced in (False, True)]
    assert modes == ["MODE_30W (simulated)", "MODE_30W (simulated, paced)"]


def _advance(monitor: HostMonitor, clock: ManualClock, seconds: float) -> None:
    """Let the simulated sensor be read ten times a second."""
    (channel,) = monitor.sampler.channels
    for _ in range(round(seconds * 10)):
        power_w = PROFILES["agx-orin-30w"].power_w(monitor.account.activity)
        channel.read(Reading(at_s=clock.advance(0.1), power_w=power_w), clock())


def test_simulated_host_gives_simulated_joules() -> None:
    """Idle at 8.8 W, then a request decoding at 18 W: its joules follow the profile and are called simulated."""
    clock = ManualClock()
    monitor = _simulated(clock)
    monitor.models_loaded(frozenset({"model"}))
    for _ in range(20):
        _advance(monitor, clock, 1.0)
        monitor.settle()
    monitor.account.request_started("a", 10, clock())
    monitor.account.first_token("a", clock())
    _advance(monitor, clock, 5.0)
    monitor.account.request_ended("a", clock())
    energy = monitor.settle()["a"]
    assert energy.quality is Quality.SIMULATED
    assert energy.source == "profile:agx-orin-30w"
    assert energy.scope is Scope.MODULE_RAILS
    assert energy.joules == pytest.approx(5 * 18.0, rel=0.01)
    assert energy.marginal_joules == pytest.approx(5 * (18.0 - 8.8), rel=0.02)


def test_host_without_sensors_says_why_in_every_request() -> None:
    """The refusal and its remedy stand where the joules would."""
    clock = ManualClock()
    monitor = HostMonitor([_MISSING, _REFUSED], clock=clock, conditions=Conditions())
    monitor.account.request_started("a", 1, clock())
    monitor.account.request_ended("a", clock())
    energy = monitor.settle()["a"]
    assert energy.joules is None
    assert energy.reason is not None
    assert "tmpfiles" in energy.reason


def test_refused_sensors_are_reported_and_warned_of() -> None:
    """Status shows all that was looked for; only the refusal is a warning."""
    monitor = HostMonitor([_MISSING, _REFUSED], clock=ManualClock(), conditions=Conditions())
    assert {report.name: report.state for report in monitor.reports()} == {"ina3221": "absent", "rapl": "denied"}
    assert [warning.code for warning in monitor.warnings()] == ["sensor_denied"]
    assert monitor.power_w() == {}


async def test_monitor_runs_and_stops(tmp_path: Path) -> None:
    """Running it reads the sensors; cancelling it ends their threads and releases them."""
    read = threading.Event()

    def answer() -> Reading:
        read.set()
        return Reading(at_s=0.0, power_w=20.0)

    sensor = ScriptedSensor("a", answer)
    monitor = HostMonitor([ProbeResult("a", ProbeState.PRESENT, "", sensor=sensor)], root=tmp_path)
    running = asyncio.create_task(monitor.run())
    await asyncio.to_thread(read.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sensor.closed


@pytest.mark.parametrize("profile_id", sorted(PROFILES))
def test_profiles_are_documented_and_plausible(profile_id: str) -> None:
    """Every figure names its source; working draws more than idling."""
    profile = PROFILES[profile_id]
    figures = (
        profile.idle_w,
        profile.prefill_w,
        profile.decode_w,
        profile.prefill_tokens_per_s,
        profile.decode_tokens_per_s,
    )
    assert all(figure.source and figure.value > 0 for figure in figures)
    idle_w = profile.power_w(Activity())
    assert idle_w < profile.power_w(Activity(prefilling=1))
    assert idle_w < profile.power_w(Activity(decoding=3))
