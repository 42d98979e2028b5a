"""Runs an NvmlSensor in a process of its own, so that a fake NVML library never enters the test process.

Each line of standard input is a JSON list: an operation ("probe", "read", "throttling", "names", "processes",
"instances",
"may_sleep", "device") and the
monotonic time at which it happens. Each is answered with one JSON line: {"ok": ...} or {"error": ...,
"message": ..., "remedy": ...}.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from moe2.agent.energy.nvml import NvmlSensor, board_names, use_by_board
from moe2.common.errors import Moe2Error
from tests.fakes.clock import ManualClock


def _answer(sensor: NvmlSensor, operation: str) -> Any:
    match operation:
        case "probe":
            return [sensor.probe(), sensor.facts.source]
        case "read":
            return dataclasses.asdict(sensor.read())
        case "throttling":
            return sensor.throttling()
        case "names":
            return board_names()
        case "processes":
            return {device: sorted(use.processes) for device, use in use_by_board().items()}
        case "instances":
            return {device: use.mig_instances for device, use in use_by_board().items()}
        case "may_sleep":
            return sensor.facts.may_sleep
        case "device":
            return [sensor.facts.device, sensor.facts.hardware]
    raise ValueError(operation)


def main() -> None:
    clock = ManualClock()
    roots = [option.removeprefix("--root=") for option in sys.argv if option.startswith("--root=")]
    sensor = NvmlSensor(0, clock, root=Path(*roots or "/"), on_jetson="--on-jetson" in sys.argv)
    for line in sys.stdin:
        operation, clock.now_s = json.loads(line)
        try:
            answer = {"ok": _answer(sensor, operation)}
        except Moe2Error as error:
            answer = {"error": type(error).__name__, "message": error.message, "remedy": error.remedy}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
