"""Several devices, one answer per request."""

from __future__ import annotations

import pytest

from moe2.agent.energy.account import Activity, HostAccount
from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.meter import EnergyTrack
from moe2.common.energy import Quality
from tests.fakes import sensors


def _host(*names: str) -> tuple[HostAccount, list[EnergyTrack]]:
    tracks = [EnergyTrack() for _ in names]
    devices = [
        DeviceAccount(sensors.facts(name, name), track, start_s=0.0) for name, track in zip(names, tracks, strict=True)
    ]
    return HostAccount(devices, why_unmeasured="rapl is denied: join the group"), tracks


def _steady(track: EnergyTrack, power_w: float, end_s: float) -> None:
    for tick in range(round(end_s * 10) + 1):
        track.add_power(tick * 0.1, power_w)


def test_devices_are_added_up() -> None:
    """A GPU and a processor: the request's energy is that of both."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    _steady(gpu, 100.0, 3.0)
    _steady(cpu, 20.0, 3.0)
    energy = account.settle(3.0)["a"]
    assert energy.joules == pytest.approx(360.0)
    assert energy.coverage == pytest.approx(1.0)
    assert energy.source is None


def test_one_silent_device_makes_the_sum_a_lower_bound() -> None:
    """What the other one measured is kept, and called partial."""
    account, (gpu, _) = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    _steady(gpu, 100.0, 3.0)
    energy = account.settle(5.1)["a"]
    assert energy.joules == pytest.approx(300.0)
    assert energy.quality is Quality.PARTIAL
    assert energy.reason is not None
    assert "cpu gave no usable reading" in energy.reason


def test_host_without_sensors_says_why() -> None:
    """No sensor: unmeasured at once, with the reason and its remedy, never 0."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    assert account.request_ended("a", 1.0)
    energy = account.settle(1.0)["a"]
    assert energy.joules is None
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == "rapl is denied: join the group"
    assert account.overhead().joules is None


def test_each_request_is_handed_out_once() -> None:
    """Settling again gives nothing again."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 1.0)
    assert list(account.settle(1.0)) == ["a"]
    assert account.settle(2.0) == {}


def test_request_that_never_started_has_no_account() -> None:
    """A job cancelled in the queue: nothing will be handed out, and the caller is told so."""
    account, _ = _host("cpu")
    assert not account.request_ended("a", 1.0)
    account.tokens_decoded("a", 1, 1.0)
    account.first_token("a", 1.0)
    assert account.settle(9.0) == {}


def test_activity_follows_the_requests() -> None:
    """What a simulated sensor draws power by."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    account.request_started("b", 1, 0.0)
    account.tokens_decoded("b", 1, 0.5)
    assert account.activity == Activity(prefilling=1, decoding=1)
    account.request_ended("a", 1.0)
    account.request_ended("b", 1.0)
    assert account.activity == Activity()


def test_idle_power_of_the_host_needs_all_devices() -> None:
    """A sum with an unknown part is unknown."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.set_condition("default", frozenset({"model"}))
    _steady(gpu, 50.0, 20.0)
    for second in range(20):
        account.settle(float(second))
    assert account.idle_w() is None
    _steady(cpu, 10.0, 40.0)
    for tick in range(201, 401):
        gpu.add_power(tick * 0.1, 50.0)
    for second in range(20, 41):
        account.settle(float(second))
    assert account.idle_w() == pytest.approx(60.0)
