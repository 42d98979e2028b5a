"""jetson-stats as a fallback for power and a source for what sysfs does not give (nvpmodel, EMC, fan).

Only this side of the pipe belongs to the agent; the module `jtop` itself is imported by `jtop_helper` alone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from time import monotonic
from typing import Any

import msgspec

from moe2.agent.energy.rails import MODULE_LIMITS, ModuleRails, module_rails
from moe2.agent.energy.sensor import Reading, SensorAbsentError, SensorBrokenError, SensorDeniedError, SensorFacts

_WANTED_INTERVAL_S = 0.2
_PATIENCE_S = 3.0
_FAULTS = {"absent": SensorAbsentError, "denied": SensorDeniedError, "broken": SensorBrokenError}


class JtopSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of the service. Power in W by rail, temperatures in °C, loads in %."""

    at_s: float
    interval_s: float
    rails_w: dict[str, float]
    power_mode: str | None = None
    emc_pct: float | None = None
    fan_pct: float | None = None
    temperature_c: dict[str, float] = {}


class JtopSensor:
    """The module's power as jetson-stats' service tells it, by the same rails as the INA3221 itself.

    command: the helper to run. patience_s: how long to wait for a sample.
    """

    name = "jtop"

    def __init__(
        self,
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "moe2.agent.energy.jtop_helper"),
        environment: Mapping[str, str] | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._command = (*command, "--interval", str(_WANTED_INTERVAL_S))
        self._environment = environment
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._rails: ModuleRails | None = None
        self._interval_s = _WANTED_INTERVAL_S
        self.latest: JtopSample | None = None
        """The last sample, for what is not power."""

    @property
    def facts(self) -> SensorFacts:
        if self._rails is None:
            raise RuntimeError("probe the sensor first")
        return SensorFacts(
            name=self.name,
            device="module",
            scope=self._rails.scope,
            source="jtop",
            has_counter=False,
            limits=MODULE_LIMITS,
            # The service has one interval for all its clients, and the first client chose it.
            interval_s=self._interval_s,
            deadline_s=self._patience_s + 1.0,
        )

    def probe(self) -> str:
        sample = self._next_sample()
        self._interval_s = max(sample.interval_s, 0.05)
        self._rails = module_rails(sample.rails_w)
        return (
            f"{' + '.join(self._rails.names)} = {self._rails.power_w(sample.rails_w):.1f} W"
            f" every {sample.interval_s:g} s, power mode {sample.power_mode or 'unknown'}"
        )

    def read(self) -> Reading:
        if self._rails is None:
            raise RuntimeError("probe the sensor first")
        sample = self._next_sample()
        return Reading(at_s=sample.at_s, power_w=self._rails.power_w(sample.rails_w))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _next_sample(self) -> JtopSample:
        process = self._process or self._start()
        line = self._line(process)
        answer = _decoded(line)
        if isinstance(answer, JtopSample):
            self.latest = answer
            return answer
        self.close()
        raise answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._pending = b""
        self._process = subprocess.Popen(  # noqa: S603 - our own helper, no shell
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The newest whole line. Older ones are skipped: their time has passed."""
        assert process.stdout is not None  # noqa: S101 - it was started with a pipe
        descriptor = process.stdout.fileno()
        end_s = monotonic() + self._patience_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end_s - monotonic()))
            if not ready:
                self.close()
                raise SensorBrokenError(
                    f"jtop.service gave no sample for {self._patience_s:g} s.",
                    remedy="Restart it: sudo systemctl restart jtop.service",
                )
            chunk = os.read(descriptor, 65536)
            if not chunk:
                self.close()
                raise SensorBrokenError("the jtop helper ended; it is started again.")
            self._pending += chunk
        *lines, self._pending = self._pending.split(b"\n")
        return lines[-1]


def _decoded(line: bytes) -> JtopSample | Exception:
    try:
        answer: Any = json.loads(line)
        if isinstance(answer, dict) and answer.get("error") in _FAULTS:
            return _FAULTS[answer["error"]](str(answer["message"]), remedy=answer["remedy"])
        return msgspec.convert(answer, JtopSample)
    except (ValueError, KeyError) as error:
        return SensorBrokenError(f"the jtop helper printed something else than a sample: {error}.")
