"""A process of its own that speaks to jetson-stats and prints JSON lines: `python -m
moe2.agent.energy.jtop_helper`.

Why a process: jetson-stats is AGPL-3.0 and not part of moe2; importing its module `jtop` forces
multiprocessing's start method to "fork" and starts threads, which is no good beside CUDA; and a hung service
must not hang the agent.

One line per sample: {"at_s", "interval_s", "rails_w", "power_mode", "emc_pct", "fan_pct", "temperature_c"}.
`at_s` is CLOCK_MONOTONIC, which all processes of a host share; the service itself gives no time. A refusal is
one line {"error": "absent" | "denied" | "broken", "message", "remedy"}, and the process exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

INSTALL_REMEDY = f"Not needed where the INA3221 is read. To add it: sudo {sys.executable} -m pip install jetson-stats"
_UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")))
_OFFLINE_C = -200.0
"""A sensor that is switched off reads -256 °C."""


def sample(jetson: Any, at_s: float) -> dict[str, Any]:
    """Return one sample of a connected `jtop` client. What the board does not tell is None or left out."""
    return {
        "at_s": at_s,
        "interval_s": float(jetson.interval),
        "rails_w": _rails_w(jetson.power or {}),
        "power_mode": getattr(jetson.nvpmodel, "name", None),
        "emc_pct": _first_number(jetson.memory.get("EMC", {}), "val"),
        "fan_pct": next((fan["speed"][0] for fan in jetson.fan.values() if fan.get("speed")), None),
        "temperature_c": {
            name: float(zone["temp"])
            for name, zone in jetson.temperature.items()
            if zone.get("online", True) and zone["temp"] > _OFFLINE_C
        },
    }


def _rails_w(power: Mapping[str, Any]) -> dict[str, float]:
    """Power of each rail. The service's total is used only where it is a rail (`name`): elsewhere it adds
    rails that contain each other. `avg` is no average and is left alone."""
    rails = {
        name: rail["power"] * 1e-3
        for name, rail in power.get("rail", {}).items()
        if rail.get("online", True) and "power" in rail
    }
    total = power.get("tot", {})
    if total.get("name") and "power" in total:
        rails[total["name"]] = total["power"] * 1e-3
    return rails


def _first_number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else None


def refusal(error: BaseException) -> dict[str, str | None]:
    """Return the line that tells what an exception from jetson-stats means."""
    text = str(error)
    if isinstance(error, ImportError):
        return _refused("absent", "jetson-stats is not installed.", INSTALL_REMEDY)
    if "not active" in text:
        return _refused("absent", "jtop.service is not running.", _start_remedy())
    if isinstance(error, PermissionError) or "access" in text:
        return _refused(
            "denied",
            "jtop.service may not be used by this user.",
            f"Add the agent's user to the group jtop: sudo usermod -aG jtop {_user()}; then restart the agent"
            " (in a container: --group-add).",
        )
    return _refused(
        "broken",
        f"jetson-stats failed: {text or type(error).__name__}.",
        "The installed jetson-stats and its service must be of the same version: restart jtop.service.",
    )


def _start_remedy() -> str:
    """Return what makes the service run: to start it where its unit is installed, else to install it."""
    if any((folder / "jtop.service").exists() for folder in _UNIT_FOLDERS):
        return "sudo systemctl start jtop.service"
    return "Its unit is not installed: run `sudo pip3 install jetson-stats` with the system's Python, then reboot."


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _refused(kind: str, message: str, remedy: str) -> dict[str, str | None]:
    return {"error": kind, "message": message, "remedy": remedy}


def main() -> int:
    """Print samples until the reader goes away."""
    parser = argparse.ArgumentParser(description="Print jetson-stats samples as JSON lines.")
    parser.add_argument("--interval", type=float, default=0.2, metavar="S", help="wanted interval in seconds")
    interval_s = parser.parse_args().interval
    try:
        from jtop import jtop

        with jtop(interval=interval_s) as jetson:
            while jetson.ok():
                _print(sample(jetson, monotonic()))
    except BrokenPipeError:
        return 0
    except Exception as error:
        _print(refusal(error))
        return 1
    return 0


def _print(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
