"""Metered plugs: the one sensor that sees a host's whole draw, losses of its supply included.

Shelly Gen2 and newer: `GET /rpc/Switch.GetStatus?id=0` (plugs with a switch) or `/rpc/PM1.GetStatus?id=0` (meters
without one) answer with `apower` in W and `aenergy.total` in Wh; a password is asked for by HTTP digest, SHA-256 (a
proxy in front: MD5).
Tasmota: `GET /cm?cmnd=Status%2010` answers with `StatusSNS.ENERGY.Power` in W, a list where there are several channels,
and `.Total` in kWh; a password stands in the query. Plugs answer once or twice a second, in steps of 0.1 to 1 W, about
a second late. The sensor contract is blocking, and one reading is one small exchange: http.client, no event loop.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import re
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from moe2.agent.energy.sensor import (
    Limits,
    Reading,
    SensorBrokenError,
    SensorDeniedError,
    SensorFacts,
    SensorMissedError,
)
from moe2.common.energy import Scope
from moe2.common.errors import ConfigError
from moe2.common.secretfile import read_secret

PlugKind = Literal["shelly", "tasmota"]

_LIMITS = Limits(min_power_w=0.5, max_power_w=4000.0, stuck_after_s=None)
"""A plug of 16 A carries less than 4 kW, and a host that runs draws at least half a watt. Figures in steps of 1 W may
well repeat for ever."""
_STEP_J: dict[PlugKind, float] = {"shelly": 360.0, "tasmota": 3600.0}
"""Tasmota counts to 1 Wh; Shelly tells more digits, of which the first is taken for sure."""
_INTERVAL_S = 0.5
_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 65_536
_USER = "admin"
"""Both firmwares' only user."""
_SILENT = (
    "Check that the plug has power and network and that its url in [[sensors.wall]] is right: open it in a browser."
)
_REFUSED = "Write the plug's password into a file that the agent may read, and name it as password_file."
_DIGESTS = {"SHA-256": "sha256", "MD5": "md5"}
"""What a plug may ask for, strongest first."""


@dataclass(frozen=True, slots=True)
class Plug:
    """A metered plug. channel: which of a device's several. lag_s: how late its figures are."""

    kind: PlugKind
    url: str
    channel: int = 0
    lag_s: float = 1.0
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class PlugFigures:
    """What a plug tells. power_w: W. energy_j: its counter in J; None where it has none."""

    power_w: float
    energy_j: float | None


class WallSensor:
    """The power of the whole host, as the plug in front of it measures it."""

    def __init__(self, plug: Plug, clock: Callable[[], float] = monotonic) -> None:
        parts = urlsplit(plug.url)
        self.name = f"wall:{parts.netloc}" + (f":{plug.channel}" if plug.channel else "")
        self.latest: tuple[float, PlugFigures] | None = None
        """When the last figures were measured, in s, and what they were: the counter is among them."""
        self._plug = plug
        self._parts = parts
        self._clock = clock
        self._path = _SHELLY_SWITCH.format(plug.channel)
        self._challenge: dict[str, str] | None = None

    @property
    def facts(self) -> SensorFacts:
        return SensorFacts(
            name=self.name,
            device=self.name,
            scope=Scope.WALL,
            source=f"wall.{self._plug.kind}",
            has_counter=False,
            limits=_LIMITS,
            interval_s=_INTERVAL_S,
            deadline_s=2 * _TIMEOUT_S,
            lag_s=self._plug.lag_s,
            # However two agents write a plug's address: what it measures is this host.
            hardware="wall",
        )

    def probe(self) -> str:
        self._challenge = None
        self._path = _SHELLY_SWITCH.format(self._plug.channel)
        if self._plug.kind == "shelly":
            status, _, _ = self._answer(self._path)
            if status == http.client.NOT_FOUND:
                self._path = _SHELLY_METER.format(self._plug.channel)
        return f"{self._plug.kind} plug at {self._plug.url}, {self._figures().power_w:.1f} W at the wall"

    def read(self) -> Reading:
        before_s = self._clock()
        figures = self._figures()
        at_s = (before_s + self._clock()) / 2 - self._plug.lag_s
        self.latest = (at_s, figures)
        return Reading(at_s=at_s, power_w=figures.power_w)

    @property
    def step_j(self) -> float:
        """How finely the plug counts its energy, in J."""
        return _STEP_J[self._plug.kind]

    def close(self) -> None:
        """Close the sensor, which holds nothing open: every reading opens a connection and closes it."""

    def _figures(self) -> PlugFigures:
        path = self._path
        if self._plug.kind == "tasmota":
            path = _TASMOTA + (
                f"&user={_USER}&password={quote(self._password(), safe='')}" if self._has_password else ""
            )
        status, body, challenge = self._answer(path)
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            raise self._denied(challenge)
        if status != http.client.OK:
            raise self._no_plug(f"it answers with HTTP status {status}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise self._no_plug("it answers with something else than JSON") from None
        if isinstance(answer, dict) and "WARNING" in answer:
            # How Tasmota refuses, with status 200.
            raise self._denied(None)
        try:
            return _shelly(answer) if self._plug.kind == "shelly" else _tasmota(answer, self._plug.channel)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._no_plug(f"its answer has no power ({error})") from None

    def _no_plug(self, what: str) -> SensorBrokenError:
        return SensorBrokenError(
            f"{self._plug.url} is no {self._plug.kind} plug with a meter: {what}.",
            remedy="Correct kind, url and channel in [[sensors.wall]]; a plug that only switches measures nothing.",
        )

    def _denied(self, challenge: str | None) -> SensorDeniedError:
        """Return why the plug refuses, by its last challenge (None where it sent none)."""
        if not self._has_password:
            return SensorDeniedError(f"the plug at {self._plug.url} asks for a password.", remedy=_REFUSED)
        if challenge is not None and digest_challenge(challenge) is None:
            return SensorDeniedError(
                f"the plug at {self._plug.url} asks for a password in a way that is not known here: {challenge:.80}.",
                remedy="Known are digests with SHA-256 or MD5, and for Tasmota the password in the query: update the "
                "plug's firmware, correct its kind, or turn off the login of a proxy in front of it.",
            )
        return SensorDeniedError(
            f"the plug at {self._plug.url} refuses the password in {self._plug.password_file}.",
            remedy=f"Write the right password for its user {_USER} into the file that password_file names.",
        )

    @property
    def _has_password(self) -> bool:
        return self._plug.password_file is not None

    def _password(self) -> str:
        assert self._plug.password_file is not None  # noqa: S101 - asked for only where there is one
        try:
            return read_secret(self._plug.password_file)
        except ConfigError as error:
            raise SensorDeniedError(str(error), remedy=_REFUSED) from None

    def _answer(self, path: str) -> tuple[int, bytes, str | None]:
        """Ask for a path; answer the plug's challenge where there is a password.

        Returns status, body and the challenge that the last answer came with.
        """
        path = self._parts.path.rstrip("/") + path
        status, body, challenge = self._exchange(path)
        if status == http.client.UNAUTHORIZED and self._has_password and (found := digest_challenge(challenge)):
            self._challenge = found
            status, body, challenge = self._exchange(path)
        return status, body, challenge

    def _exchange(self, path: str) -> tuple[int, bytes, str | None]:
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        )
        headers = {"Accept": "application/json"}
        if self._challenge is not None:
            headers["Authorization"] = digest_authorization(self._challenge, path, self._password())
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(_MAX_ANSWER_BYTES)
            return response.status, body, response.getheader("WWW-Authenticate")
        except TimeoutError:
            raise SensorMissedError(f"the plug at {self._plug.url} is slow to answer.", remedy=_SILENT) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SensorBrokenError(
                f"the plug at {self._plug.url} does not answer: {reason}.", remedy=_SILENT
            ) from None
        finally:
            connection.close()


_SHELLY_SWITCH = "/rpc/Switch.GetStatus?id={}"
_SHELLY_METER = "/rpc/PM1.GetStatus?id={}"
_TASMOTA = "/cm?cmnd=Status%2010"


def _shelly(answer: Any) -> PlugFigures:
    power_w = _number(answer["apower"])
    counter = answer.get("aenergy")
    return PlugFigures(power_w, _scaled(counter.get("total") if isinstance(counter, dict) else None, 3600.0))


def _tasmota(answer: Any, channel: int) -> PlugFigures:
    meter = answer["StatusSNS"]["ENERGY"]
    power = meter["Power"]
    return PlugFigures(
        _number(power[channel] if isinstance(power, list) else power),
        # One counter for all channels is none of this host's.
        None if isinstance(power, list) else _scaled(meter.get("Total"), 3.6e6),
    )


def _scaled(value: Any, factor: float) -> float | None:
    try:
        return _number(value) * factor
    except ValueError:
        return None


def _number(value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass  # JSON's whole numbers have no end, floats do.
    raise ValueError(f"{value!r:.40} is no number")


def digest_challenge(header: str | None) -> dict[str, str] | None:
    """Return the parameters of the strongest digest challenge that can be answered; None where there is none.

    header: `WWW-Authenticate`, which may hold several challenges, RFC 7616. Where no algorithm is named it is MD5.
    """
    offered: dict[str, dict[str, str]] = {}
    for challenge in re.split(r"(?:^|,)\s*(?=\w+\s+\w+=)", header or ""):
        scheme, _, text = challenge.partition(" ")
        if scheme.lower() == "digest":
            found = re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,]+))', text)
            parameters = {name.lower(): quoted or plain for name, quoted, plain in found}
            asks_for = [word.strip() for word in parameters.get("qop", "auth").split(",")]
            if "nonce" in parameters and "auth" in asks_for:
                offered.setdefault(parameters.get("algorithm", "MD5").upper(), parameters)
    return next((offered[name] for name in _DIGESTS if name in offered), None)


def digest_authorization(challenge: dict[str, str], path: str, password: str) -> str:
    """Return the Authorization header that answers a digest challenge for a GET of `path`, RFC 7616.

    A challenge without `qop` is answered as RFC 2069 has it, without one.
    """
    algorithm = challenge.get("algorithm", "MD5")

    def hashed(text: str) -> str:
        return hashlib.new(_DIGESTS[algorithm.upper()], text.encode(), usedforsecurity=False).hexdigest()

    realm, nonce, cnonce = challenge.get("realm", ""), challenge["nonce"], secrets.token_hex(8)
    user, asked = hashed(f"{_USER}:{realm}:{password}"), hashed(f"GET:{path}")
    counted = f"00000001:{cnonce}:auth:" if "qop" in challenge else ""
    answer = {"username": _USER, "realm": realm, "nonce": nonce, "uri": path}
    if "opaque" in challenge:
        answer["opaque"] = challenge["opaque"]
    if counted:
        answer["cnonce"] = cnonce
    answer["response"] = hashed(f"{user}:{nonce}:{counted}{asked}")
    fields = [f'{name}="{value}"' for name, value in answer.items()]
    if "algorithm" in challenge:
        fields.append(f"algorithm={algorithm}")
    return "Digest " + ", ".join(fields + (["qop=auth", "nc=00000001"] if counted else []))
