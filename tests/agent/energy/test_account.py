"""Several devices, one answer per request."""

from __future__ import annotations

import pytest

from moe2.agent.energy.account import Activity, HostAccount
from moe2.agent.energy.attribution import DeviceAccount, TokenWeight
from moe2.agent.energy.meter import EnergyTrack
from moe2.common.energy import Attribution, Quality
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


def test_each_device_splits_by_tokens_and_weights() -> None:
    """Prompt tokens, decoded tokens and a model's weight reach every device of the host."""
    account, tracks = _host("gpu0", "cpu")
    heavy = TokenWeight(decode=3.0, prefill=3.0)
    account.request_started("reader", 20, 0.0, heavy)
    account.request_started("writer", 0, 0.0)
    account.tokens_decoded("writer", 20, 1.0)
    account.tokens_decoded("reader", 0, 3.0)
    for job in ("reader", "writer"):
        account.request_ended(job, 3.0)
    for track in tracks:
        _steady(track, 10.0, 3.0)
    settled = account.settle(3.0)
    # The writer is alone in decoding: its 20 tokens fall into the second slice, with two thirds of the prompt.
    assert settled["reader"].joules == pytest.approx(2 * (10.0 + 20.0 * 40 / 60))
    assert settled["writer"].joules == pytest.approx(2 * (20.0 * 20 / 60))


def test_sum_over_devices_is_a_whole_record() -> None:
    """Coverage and samples of the worst device, the widest gap, idle power of all, the loosest rule."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.set_condition("default", frozenset({"model"}))
    for end_s in range(1, 16):
        for tick in range(10 * end_s - 9, 10 * end_s + 1):
            gpu.add_power(tick * 0.1, 50.0)
        for tick in range(5 * end_s - 4, 5 * end_s + 1):
            cpu.add_power(tick * 0.2, 10.0)
        account.settle(float(end_s))
    for job in ("a", "b"):
        account.request_started(job, 0, 15.0)
        account.first_token(job, 15.0)
    for job in ("a", "b"):
        account.request_ended(job, 20.0)
    for tick in range(151, 201):
        gpu.add_power(tick * 0.1, 50.0)
    for tick in range(76, 101):
        cpu.add_power(tick * 0.2, 10.0)
    energy = account.settle(20.0)["a"]
    assert energy.joules == pytest.approx(150.0)
    assert energy.marginal_joules == pytest.approx(0.0, abs=1e-9)
    assert energy.n_samples == 26
    assert energy.max_gap_s == pytest.approx(0.2)
    assert energy.idle_w == pytest.approx(60.0)
    assert energy.attribution is Attribution.SLOT_SHARE
    assert account.overhead().joules == pytest.approx(60.0 * 15.0, rel=0.02)


def test_host_whose_sensors_all_fell_silent_names_each() -> None:
    """Every device's reason stands in the record, once."""
    account, _ = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    energy = account.settle(9.0)["a"]
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == (
        "gpu0 gave no usable reading during the request's 3.00 s; "
        "cpu gave no usable reading during the request's 3.00 s"
    )


def test_one_silent_device_makes_the_sum_a_lower_bound() -> None:
    """What the other one measured is kept, and called partial."""
    account, (gpu, _) = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    _steady(gpu, 100.0, 3.0)
    energy = account.settle(5.1)["a"]
    assert energy.joules == pytest.approx(300.0)
    assert energy.quality is Quality.PARTIAL
    assert energy.reason == "cpu gave no usable reading during the request's 3.00 s"
    assert energy.idle_w is None


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
