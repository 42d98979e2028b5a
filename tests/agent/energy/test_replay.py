"""A recorded trace through sysfs, sensor, track and account, with an injected clock."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.channel import SensorChannel
from moe2.agent.energy.ina3221 import Ina3221Sensor
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Reading
from tests.fakes import sensors, sysfs
from tests.fakes.clock import ManualClock

_TRACE = Path(__file__).parents[2] / "fakes/traces/agx_orin_maxn_decode.csv"
_DECODE_END_S = 12.076
_DECODE_S = 11.68
_PUBLISHED_J = 558.7
_TOKENS = 257


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> list[Reading]:
    """The trace's rails written to an AGX Orin's files, one row after another, and read back by the sensor."""
    root = tmp_path_factory.mktemp("orin")
    first, second = sysfs.agx_orin(root)
    files = {
        "VDD_GPU_SOC": (first, 1),
        "VDD_CPU_CV": (first, 2),
        "VIN_SYS_5V0": (first, 3),
        "VDDQ_VDD2_1V8AO": (second, 2),
    }
    for folder, number in files.values():
        # At a volt, the current in mA is the power in mW.
        sysfs.write(folder, f"in{number}_input", 1000)
    clock = ManualClock(0.0)
    sensor = Ina3221Sensor(root, clock)
    sensor.probe()
    seen = []
    with _TRACE.open(encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            clock.now_s = float(row.pop("at_s"))
            for rail, milliwatts in row.items():
                folder, number = files[rail]
                (folder / f"curr{number}_input").write_text(f"{round(float(milliwatts))}\n")
            seen.append(sensor.read())
    return seen


def _channel(readings: list[Reading], every: int = 1) -> SensorChannel:
    """A channel that has heard every n-th reading."""
    facts = sensors.facts()
    channel = SensorChannel(facts, EnergyTrack(max_gap_s=0.5 * every), opened_s=0.0)
    for reading in readings[::every]:
        channel.read(reading, reading.at_s)
    return channel


@pytest.mark.slow
def test_recorded_decoding_gives_its_published_joules(readings: list[Reading]) -> None:
    """558.7 J for 257 tokens, by the rule that leaves out the rail inside another; within half a percent."""
    window = _channel(readings).track.between(_DECODE_END_S - _DECODE_S, _DECODE_END_S)
    assert window.joules == pytest.approx(_PUBLISHED_J, rel=0.005)
    assert window.coverage == pytest.approx(1.0)


def test_five_hertz_would_do_as_well(readings: list[Reading]) -> None:
    """Thinned to 5 Hz, the long window's energy changes by less than half a percent."""
    window = _channel(readings, every=2).track.between(_DECODE_END_S - _DECODE_S, _DECODE_END_S)
    assert window.joules == pytest.approx(_PUBLISHED_J, rel=0.005)


def test_real_readings_are_plausible(readings: list[Reading]) -> None:
    """A steady load repeats for seconds to the last digit on real hardware: neither stuck nor a lie."""
    channel = _channel(readings)
    assert channel.warnings(_DECODE_END_S) == ()


def test_recorded_request_gets_its_joules_per_token(readings: list[Reading]) -> None:
    """Attributed to one request: 2.17 J per token."""
    channel = _channel(readings)
    account = DeviceAccount(channel.facts, channel.track, start_s=0.0)
    account.request_started("a", 52, _DECODE_END_S - _DECODE_S)
    account.first_token("a", _DECODE_END_S - _DECODE_S)
    account.tokens_decoded("a", _TOKENS, _DECODE_END_S)
    account.request_ended("a", _DECODE_END_S)
    energy = account.settle(_DECODE_END_S + 0.1)["a"]
    assert energy.joules is not None
    assert energy.joules / _TOKENS == pytest.approx(2.174, rel=0.005)
