"""Runs an NvmlSensor in a process of its own, so that a fake NVML library never enters the test process.

Each line of standard input is a JSON list: an operation ("probe", "read", "throttling", "names", "processes",
"device") and the
monotonic time at which it happens. Each is answered with one JSON line: {"ok": ...} or {"error": ...,
"message": ..., "remedy": ...}.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from moe2.agent.energy.nvml import NvmlSensor, board_names, processes_by_board
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
            return {device: sorted(pids) for device, pids in processes_by_board().items()}
        case "device":
            return [sensor.facts.device, sensor.facts.hardware]
    raise ValueError(operation)


def main() -> None:
    clock = ManualClock()
    sensor = NvmlSensor(0, clock, on_jetson="--on-jetson" in sys.argv)
    for line in sys.stdin:
        operation, clock.now_s = json.loads(line)
        try:
            answer = {"ok": _answer(sensor, operation)}
        except Moe2Error as error:
            answer = {"error": type(error).__name__, "message": error.message, "remedy": error.remedy}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
