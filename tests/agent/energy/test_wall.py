"""Metered plugs, as real HTTP servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe2.agent.energy import wall
from moe2.agent.energy.sensor import SensorBrokenError, SensorDeniedError, SensorMissedError
from moe2.agent.energy.wall import Plug, PlugKind, WallSensor
from moe2.common.energy import Scope
from tests.fakes.clock import ManualClock
from tests.fakes.plug import FakePlug, plugged_in

KINDS: tuple[PlugKind, ...] = ("shelly", "tasmota")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def plug() -> Iterator[FakePlug]:
    """A plug that measures 57.3 W."""
    with plugged_in() as one:
        yield one


@each_kind
def test_a_plug_tells_the_power_of_the_whole_host(plug: FakePlug, kind: PlugKind) -> None:
    """Power in W and the counter in J, with the scope that contains all others."""
    sensor = WallSensor(Plug(kind, plug.url))
    assert "57.3 W" in sensor.probe()
    assert sensor.read().power_w == 57.3
    assert sensor.latest is not None
    assert sensor.latest[1].energy_j == pytest.approx(1234.567 * 3600)
    assert sensor.facts.scope is Scope.WALL
    assert sensor.facts.source == f"wall.{kind}"


@each_kind
def test_figures_are_as_old_as_the_plug_is_late(plug: FakePlug, kind: PlugKind) -> None:
    """A plug that is 1.5 s late tells of 1.5 s ago."""
    sensor = WallSensor(Plug(kind, plug.url, lag_s=1.5), ManualClock(100.0))
    sensor.probe()
    assert sensor.read().at_s == 98.5


@each_kind
def test_a_channel_of_a_strip_is_its_own(plug: FakePlug, kind: PlugKind) -> None:
    """The host is on the second outlet."""
    plug.power_w = [3.0, 88.0]
    sensor = WallSensor(Plug(kind, plug.url, channel=1))
    sensor.probe()
    assert sensor.read().power_w == 88.0


def test_a_shelly_without_a_switch_is_asked_as_a_meter(plug: FakePlug) -> None:
    """Its component has another name."""
    plug.has_switch = False
    sensor = WallSensor(Plug("shelly", plug.url))
    sensor.probe()
    assert sensor.read().power_w == 57.3
    assert plug.asked[-1] == "/rpc/PM1.GetStatus?id=0"


@each_kind
def test_a_password_is_asked_for_and_used(plug: FakePlug, kind: PlugKind, tmp_path: Path) -> None:
    """Without it, or with a wrong one, the plug is denied, with the setting to make; with the right one it reads."""
    plug.password = "s3cret &=#"
    with pytest.raises(SensorDeniedError) as denied:
        WallSensor(Plug(kind, plug.url)).probe()
    assert "password_file" in (denied.value.remedy or "")
    password = tmp_path / "password"
    password.write_text("wrong\n", encoding="utf-8")
    with pytest.raises(SensorDeniedError, match="refuses the password in"):
        WallSensor(Plug(kind, plug.url, password_file=password)).probe()
    password.write_text("s3cret &=#\n", encoding="utf-8")
    sensor = WallSensor(Plug(kind, plug.url, password_file=password))
    sensor.probe()
    assert sensor.read().power_w == 57.3


_DIGEST = 'realm="shellyplugsg3-aabbccddeeff", nonce="1732810000"'


@pytest.mark.parametrize(
    ("algorithm", "challenge"),
    [
        ("MD5", None),
        (None, None),
        ("MD5", f"Digest {_DIGEST}"),
        ("MD5", f'digest {_DIGEST}, algorithm=md5, qop="auth-int,auth", opaque="ab=="'),
        ("SHA-256", f'Basic realm="plug, one", Digest {_DIGEST}, algorithm=MD5, Digest {_DIGEST}, algorithm=SHA-256'),
    ],
)
def test_every_common_digest_is_answered(
    plug: FakePlug, tmp_path: Path, algorithm: str | None, challenge: str | None
) -> None:
    """MD5 as proxies and old firmware ask for it, unnamed, without qop; the strongest where several are offered."""
    plug.password, plug.algorithm, plug.challenge = "secret", algorithm, challenge
    password = tmp_path / "password"
    password.write_text("secret", encoding="utf-8")
    sensor = WallSensor(Plug("shelly", plug.url, password_file=password))
    sensor.probe()
    assert sensor.read().power_w == 57.3


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="plug"',
        f"Digest {_DIGEST}, algorithm=SHA-512-256",
        f'Digest {_DIGEST}, qop="auth-int"',
        "Digest",
        "ü",
    ],
)
def test_a_challenge_that_nobody_can_answer_is_told(plug: FakePlug, tmp_path: Path, challenge: str) -> None:
    """A password is there, so that asking for one would be no remedy."""
    plug.password, plug.challenge = "secret", challenge
    password = tmp_path / "password"
    password.write_text("secret", encoding="utf-8")
    with pytest.raises(SensorDeniedError, match="not known here") as denied:
        WallSensor(Plug("shelly", plug.url, password_file=password)).probe()
    assert "MD5" in (denied.value.remedy or "")


@each_kind
def test_a_password_file_that_is_missing_is_denied(plug: FakePlug, kind: PlugKind, tmp_path: Path) -> None:
    """The plug asks and there is nothing to answer."""
    plug.password = "secret"
    with pytest.raises(SensorDeniedError, match="missing"):
        WallSensor(Plug(kind, plug.url, password_file=tmp_path / "missing")).probe()


@each_kind
def test_a_plug_that_does_not_answer_is_broken(kind: PlugKind) -> None:
    """Nothing listens there: broken, with what to check, and it is found again when it does."""
    with plugged_in() as gone:
        url = gone.url
    sensor = WallSensor(Plug(kind, url))
    with pytest.raises(SensorBrokenError, match="does not answer") as broken:
        sensor.probe()
    assert "power and network" in (broken.value.remedy or "")
    with plugged_in(int(url.rpartition(":")[2])):
        assert "57.3 W" in sensor.probe()


def test_a_name_that_cannot_be_resolved_is_broken() -> None:
    """With the resolver's words."""
    with pytest.raises(SensorBrokenError, match="does not answer"):
        WallSensor(Plug("shelly", "http://plug.invalid")).probe()


@each_kind
def test_a_slow_answer_is_a_missed_sample(plug: FakePlug, kind: PlugKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wi-Fi plugs miss one now and then; only several in a row are a fault."""
    sensor = WallSensor(Plug(kind, plug.url))
    sensor.probe()
    monkeypatch.setattr(wall, "_TIMEOUT_S", 0.05)
    plug.silent = True
    with pytest.raises(SensorMissedError, match="slow"):
        sensor.read()


@each_kind
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>a router's page</html>",
        b"null",
        b"[]",
        b"{}",
        b'{"apower": null, "StatusSNS": {"ENERGY": {"Power": null}}}',
        b'{"apower": "57", "StatusSNS": {"ENERGY": {"Power": "57"}}}',
        b'{"apower": true, "StatusSNS": {"ENERGY": {"Power": true}}}',
        b'{"apower": NaN, "StatusSNS": {"ENERGY": {"Power": NaN}}}',
        b'{"apower": 1e999, "StatusSNS": {"ENERGY": {"Power": 1e999}}}',
        b'{"apower": %(d)s, "StatusSNS": {"ENERGY": {"Power": %(d)s}}}' % {b"d": b"9" * 400},
        b'{"StatusSNS": {"Time": "2026-11-28T18:00:00"}}',
        b'{"StatusSNS": {"ENERGY": {"Power": []}}}',
        b"\xff\xfe",
        b"{" * 200_000,
        b"[" * 200_000,
    ],
)
def test_an_answer_without_a_figure_is_no_plug(plug: FakePlug, kind: PlugKind, body: bytes) -> None:
    """Broken, with the settings to correct, and never 0 W."""
    plug.body = body
    with pytest.raises(SensorBrokenError, match="is no") as broken:
        WallSensor(Plug(kind, plug.url)).probe()
    assert "kind, url and channel" in (broken.value.remedy or "")


@each_kind
@pytest.mark.parametrize("status", [302, 404, 500])
def test_another_status_is_no_plug(plug: FakePlug, kind: PlugKind, status: int) -> None:
    """A redirection is not followed: it could lead anywhere."""
    plug.body, plug.status = b"", status
    with pytest.raises(SensorBrokenError, match=str(status)):
        WallSensor(Plug(kind, plug.url)).probe()


def test_a_counter_that_is_missing_is_unknown(plug: FakePlug) -> None:
    """The power alone is enough."""
    plug.body = json.dumps({"apower": 12.0}).encode()
    sensor = WallSensor(Plug("shelly", plug.url))
    sensor.probe()
    sensor.read()
    assert sensor.latest is not None
    assert sensor.latest[1].energy_j is None
