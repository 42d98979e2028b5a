"""The host's energy as the daemon uses it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from moe2.agent.energy import monitor as monitor_module
from moe2.agent.energy.account import Activity
from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSearch, SensorSettings, discover
from moe2.agent.energy.conditions import Conditions
from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.energy.ownership import DeviceLocks
from moe2.agent.energy.profiles import PROFILES, find_profile
from moe2.agent.energy.sensor import Reading
from moe2.agent.energy.wall import Plug, WallSensor
from moe2.common.energy import Quality, Scope
from tests.fakes import sysfs
from tests.fakes.clock import ManualClock
from tests.fakes.plug import plugged_in
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


def _sampled(clock: ManualClock) -> HostMonitor:
    """One sensor that was last read at the clock's present time, with 20 W."""
    sensor = ScriptedSensor("a", lambda: Reading(at_s=clock(), power_w=20.0))
    results = [ProbeResult("a", ProbeState.PRESENT, "", sensor=sensor)]
    monitor = HostMonitor(results, clock=clock, conditions=Conditions())
    (channel,) = monitor.sampler.channels
    channel.read(Reading(at_s=clock(), power_w=20.0), clock())
    return monitor


def test_a_reading_that_is_late_on_a_busy_host_still_counts() -> None:
    """The sensor is well, only its thread got no turn: the request's energy waits for it."""
    clock = ManualClock()
    monitor = _sampled(clock)
    monitor.account.request_started("a", 1, clock.advance(0.01))
    monitor.account.request_ended("a", clock.advance(0.01))
    clock.advance(0.45)
    assert monitor.settle() == {}
    (channel,) = monitor.sampler.channels
    channel.read(Reading(at_s=clock(), power_w=20.0), clock())
    assert monitor.settle()["a"].joules == pytest.approx(0.2)


def test_a_sensor_out_of_order_holds_no_answer_up_for_long() -> None:
    """A hung one is waited for a third of a second, a late one a second; then the energy is unmeasured."""
    patience_s = {}
    for hung in (True, False):
        clock = ManualClock()
        monitor = _sampled(clock)
        if hung:
            monitor.sampler.channels[0].hung(clock())
        monitor.account.request_started("a", 1, clock.advance(0.01))
        ended_s = clock.advance(0.01)
        monitor.account.request_ended("a", ended_s)
        while not (settled := monitor.settle()):
            clock.advance(0.05)
        patience_s[hung] = clock() - ended_s
        assert settled["a"].joules is None
    assert patience_s == {True: pytest.approx(0.3, abs=0.06), False: pytest.approx(1.0, abs=0.06)}


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


async def test_a_new_power_mode_and_a_throttle_are_named_warnings(tmp_path: Path) -> None:
    """Seen by the running monitor, not only by the log of conditions; the mode that it tells is the new one."""
    alert = "sys/class/thermal/cooling_device0"
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0000")
    monitor = HostMonitor([], root=tmp_path, clock=ManualClock())
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002")
    sysfs.write(tmp_path, f"{alert}/type", "gpu-throttle-alert")
    sysfs.write(tmp_path, f"{alert}/cur_state", 1)
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(60):
        while not monitor.warnings():
            await asyncio.sleep(0)
    assert [warning.code for warning in monitor.warnings()] == ["throttled", "power_mode_changed"]
    assert monitor.power_mode == "nvpmodel 2"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


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


async def test_a_sensor_that_appears_while_the_agent_runs_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver came after the start: found by a later look, read, and measured with."""
    monkeypatch.setattr(monitor_module, "_FIRST_SEARCH_S", 0.01)
    search = SensorSearch(SensorSettings(root=tmp_path, families=("ina3221",)))
    monitor = HostMonitor(search.look(), root=tmp_path, search=search)
    assert [report.state for report in monitor.reports()] == ["absent"]
    running = asyncio.create_task(monitor.run())
    await asyncio.sleep(0)
    sysfs.orin_nx(tmp_path)
    async with asyncio.timeout(60):
        while not any(monitor.power_w().values()):
            await asyncio.sleep(0)
    assert monitor.power_w() == {"ina3221": pytest.approx(16.57, abs=0.01)}
    assert [report.state for report in monitor.reports()] == ["present"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.slow
async def test_a_driver_bound_anew_under_another_number_is_followed(tmp_path: Path) -> None:
    """hwmon1 became hwmon6 while the agent ran: the next readings come from there."""
    folder = sysfs.orin_nx(tmp_path)
    monitor = HostMonitor(discover(SensorSettings(root=tmp_path, families=("ina3221",))), root=tmp_path)
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(60):
        while not any(monitor.power_w().values()):
            await asyncio.sleep(0)
        copy = folder.with_name("hwmon6")
        folder.rename(copy)
        sysfs.write(copy, "curr1_input", 1000)
        for descriptor_of in monitor._sensors:
            # A file that is open stays readable in a tree of ordinary files; the kernel's would answer ENODEV.
            descriptor_of.close()
        while (monitor.power_w()["ina3221"] or 99.0) > 5.5:
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_the_second_agent_of_a_host_says_who_measures(tmp_path: Path) -> None:
    """Two agents on one Jetson: the joules of the second's requests are unmeasured, with the first one's name."""
    sysfs.orin_nx(tmp_path)
    (tmp_path / "run").mkdir()
    clock = ManualClock()

    def agent(name: str) -> HostMonitor:
        found = discover(SensorSettings(root=tmp_path, families=("ina3221",)))
        return HostMonitor(
            found, root=tmp_path, clock=clock, conditions=Conditions(), locks=DeviceLocks(tmp_path, name)
        )

    first, second = agent("first"), agent("second")
    assert set(first.power_w()) == {"ina3221"}
    assert [report.owned for host in (first, second) for report in host.reports() if report.name == "ina3221"] == [
        True,
        False,
    ]
    assert second.power_w() == {}
    assert [warning.code for warning in second.warnings()] == ["device_owned"]
    second.account.request_started("a", 1, clock())
    second.account.request_ended("a", clock())
    energy = second.settle()["a"]
    assert energy.joules is None
    assert "the agent first" in (energy.reason or "")


async def test_the_second_agent_takes_over_when_the_first_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is free again, and the next look claims it."""
    monkeypatch.setattr(monitor_module, "_FIRST_SEARCH_S", 0.01)
    sysfs.orin_nx(tmp_path)
    (tmp_path / "run").mkdir()
    first = DeviceLocks(tmp_path, "first")
    first.claim("module")
    search = SensorSearch(SensorSettings(root=tmp_path, families=("ina3221",)))
    monitor = HostMonitor(search.look(), root=tmp_path, search=search, locks=DeviceLocks(tmp_path, "second"))
    running = asyncio.create_task(monitor.run())
    assert monitor.power_w() == {}
    first.release()
    async with asyncio.timeout(60):
        while not any(monitor.power_w().values()):
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert DeviceLocks(tmp_path, "third").claim("module") is None


def test_simulated_hosts_share_a_machine(tmp_path: Path) -> None:
    """The demo's two agents are two hosts that are not there: nobody owns their devices."""
    (tmp_path / "run").mkdir()
    results = [discover(SensorSettings(root=tmp_path, simulated=find_profile("agx-orin-30w"))) for _ in range(2)]
    hosts = [
        HostMonitor(found, root=tmp_path, conditions=Conditions(), locks=DeviceLocks(tmp_path, name))
        for found, name in zip(results, ("one", "two"), strict=True)
    ]
    assert [list(host.power_w()) for host in hosts] == [["profile:agx-orin-30w"]] * 2
    assert not any(report.owned for host in hosts for report in host.reports())


async def test_plugs_are_sampled_beside_rails_and_not_added(tmp_path: Path) -> None:
    """A real plug, a Jetson's tree: both are read; the host's power is the rails', the plug's stands apart."""
    sysfs.orin_nx(tmp_path)
    with plugged_in() as plug:
        settings = SensorSettings(root=tmp_path, families=("ina3221",), plugs=(Plug("shelly", plug.url),))
        monitor = HostMonitor(discover(settings), root=tmp_path)
        running = asyncio.create_task(monitor.run())
        async with asyncio.timeout(60):
            while not all(monitor.power_w().values()):
                await asyncio.sleep(0)
        rails, wall = monitor.reports()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert rails.power_w == pytest.approx(16.57, abs=0.01)
    assert wall.uncounted_w == pytest.approx(57.3)
    assert (rails.uncounted_w, wall.power_w) == (None, None)


@pytest.mark.slow
async def test_a_plug_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """Broken while nothing answers, present again by itself."""
    with plugged_in() as plug:
        settings = SensorSettings(root=tmp_path, families=(), plugs=(Plug("tasmota", plug.url),))
        monitor = HostMonitor(discover(settings), root=tmp_path, by_wall=True)
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(60):
        while not any(warning.code == "sensor_lost" for warning in monitor.warnings()):
            await asyncio.sleep(0)
        with plugged_in(int(plug.url.rpartition(":")[2])):
            while not any(monitor.power_w().values()):
                await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_wall_and_rails_are_compared_over_what_both_know(tmp_path: Path) -> None:
    """40 W by the rails and 44 W at the wall, which is a second late: a share in the plug's line of the status."""
    clock = ManualClock()
    rails = ScriptedSensor("rails", lambda: Reading(at_s=clock(), power_w=40.0))
    plug = ScriptedSensor("plug", lambda: Reading(at_s=clock(), power_w=44.0), device="wall")
    plug.facts = replace(plug.facts, scope=Scope.WALL, lag_s=1.0)
    results = [ProbeResult(one.name, ProbeState.PRESENT, "", sensor=one) for one in (rails, plug)]
    monitor = HostMonitor(results, clock=clock, conditions=Conditions())
    by_rails, by_plug = monitor.sampler.channels
    for step in range(200):
        now_s = clock.advance(0.1)
        by_rails.read(Reading(at_s=now_s, power_w=40.0 + step * 1e-6), now_s)
        by_plug.read(Reading(at_s=now_s - 1.0, power_w=44.0 + step * 1e-6), now_s)
    monitor._compare(clock())
    assert "see 40.0 of 44.0 W (91%)" in (monitor.reports()[1].detail or "")


def test_by_wall_a_request_waits_for_the_plugs_lag(tmp_path: Path) -> None:
    """Its joules are the wall's, all of them: the reading that covers its end comes a second late."""
    clock = ManualClock()
    plug = ScriptedSensor("plug", lambda: Reading(at_s=clock(), power_w=44.0), device="wall")
    plug.facts = replace(plug.facts, scope=Scope.WALL, lag_s=1.0)
    results = [ProbeResult("plug", ProbeState.PRESENT, "", sensor=plug)]
    monitor = HostMonitor(results, clock=clock, conditions=Conditions(), by_wall=True)
    (channel,) = monitor.sampler.channels

    def sampled(seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            now_s = clock.advance(0.1)
            channel.read(Reading(at_s=now_s - 1.0, power_w=44.0 + now_s * 1e-6), now_s)

    sampled(5.0)
    monitor.account.request_started("a", 1, clock())
    sampled(3.0)
    monitor.account.request_ended("a", clock())
    assert monitor.settle() == {}
    sampled(1.0)
    energy = monitor.settle()["a"]
    assert energy.joules == pytest.approx(132.0, rel=1e-3)
    assert (energy.quality, energy.scope) == (Quality.MEASURED_INTEGRATED, Scope.WALL)


def test_a_plug_tells_what_the_host_drew_while_it_slept() -> None:
    """Its counter went on for an hour in which this program's clock stood still: 2 W, told once."""
    clock = ManualClock()
    with plugged_in() as plug:
        plug.power_w = 50.0
        found = discover(SensorSettings(families=(), plugs=(Plug("shelly", plug.url, lag_s=0.0),)))
        (result,) = found
        assert isinstance(result.sensor, WallSensor)
        result.sensor._clock = clock
        monitor = HostMonitor(found, clock=clock, conditions=Conditions())
        result.sensor.read()
        assert monitor.power_asleep() is None
        clock.advance(3.0)
        monitor.awoke(3600.0)
        assert monitor.power_asleep() is None
        plug.total_wh += (2.0 * 3600.0 + 50.0 * 4.0) / 3600.0
        clock.advance(1.0)
        result.sensor.read()
        asleep = monitor.power_asleep()
        assert monitor.power_asleep() is None
    assert asleep is not None
    assert asleep.power_w == pytest.approx(2.0, abs=0.01)
