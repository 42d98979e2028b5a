"""A sensor that lies is put into quarantine, with the reason. PURE.

One impossible reading is dropped. Three among the last twenty, or a stuck register, mean quarantine: nothing
of the sensor counts until ten readings in a row, consistent with each other, were possible again.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from moe2.agent.energy.sensor import Limits, Reading

_STALE_S = 2.0
_BAD_OF_RECENT = 3
_RECENT = 20
_GOOD_TO_RETURN = 10


class PlausibilityJudge:
    """The judge of a sensor's readings, who passes on only what can be true.

    Accepted readings may have another epoch than the sensor gave them: after a quarantine or an impossible
    jump, no difference is taken across it.
    """

    def __init__(self, limits: Limits, *, lag_s: float = 0.0) -> None:
        """lag_s: how old a figure of this sensor is when it is told, at its usual pace."""
        self._limits = limits
        self._stale_s = _STALE_S + lag_s
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._previous: Reading | None = None
        self._unchanged_since_s: float | None = None
        self._good_in_a_row = 0
        self._breaks = 0
        self.rejected = 0
        self.quarantine_reason: str | None = None
        """Why the sensor is in quarantine now; None if it is trusted."""

    def begin_anew(self, limits: Limits) -> None:
        """Take no difference between earlier readings and those to come: the sensor was found again."""
        self._limits = limits
        self._breaks += 1 + (self._previous.epoch if self._previous else 0)
        self._previous = None
        self._unchanged_since_s = None

    def examine(self, reading: Reading, now_s: float) -> Reading | None:
        """Return the reading if it counts, otherwise None. A repetition of the last reading is None without being a
        fault."""
        previous = self._previous
        if previous is not None and reading.at_s == previous.at_s:
            return None
        fault = self._fault(reading, previous, now_s)
        if previous is None or reading.at_s > previous.at_s or fault is None:
            self._previous = reading
        if fault is None:
            return self._passed(reading)
        self._failed(fault, at_once=fault.startswith("stuck"))
        return None

    def _passed(self, reading: Reading) -> Reading | None:
        self._recent.append(True)
        self._good_in_a_row += 1
        if self.quarantine_reason is not None:
            if self._good_in_a_row < _GOOD_TO_RETURN:
                return None
            self.quarantine_reason = None
            self._recent.clear()
        return replace(reading, epoch=reading.epoch + self._breaks)

    def _failed(self, fault: str, *, at_once: bool) -> None:
        self.rejected += 1
        self._recent.append(False)
        self._good_in_a_row = 0
        self._breaks += 1
        if self.quarantine_reason is not None or at_once or self._recent.count(False) >= _BAD_OF_RECENT:
            self.quarantine_reason = fault

    def _fault(self, reading: Reading, previous: Reading | None, now_s: float) -> str | None:
        if not all(math.isfinite(value) for value in (reading.at_s, reading.energy_j or 0.0, reading.power_w or 0.0)):
            return "not a number"
        if reading.energy_j is None and reading.power_w is None:
            return "neither power nor energy"
        if now_s - reading.at_s > self._stale_s:
            return f"stale: read {now_s - reading.at_s:.1f} s ago"
        if previous is not None and reading.at_s < previous.at_s:
            return f"time runs backwards by {previous.at_s - reading.at_s:.3f} s"
        return (
            self._power_fault(reading) or self._counter_fault(reading, previous) or self._stuck_fault(reading, previous)
        )

    def _power_fault(self, reading: Reading) -> str | None:
        if reading.power_w is None:
            return None
        if reading.power_w > self._limits.max_power_w:
            return f"{reading.power_w:.6g} W, more than such a device can draw ({self._limits.max_power_w:g} W)"
        if reading.power_w < self._limits.min_power_w:
            return f"{reading.power_w:.6g} W, less than such a device draws ({self._limits.min_power_w:g} W)"
        return None

    def _counter_fault(self, reading: Reading, previous: Reading | None) -> str | None:
        if reading.energy_j is None:
            return None
        if reading.energy_j < 0:
            return f"negative energy ({reading.energy_j:.6g} J)"
        if previous is None or previous.energy_j is None or previous.epoch != reading.epoch:
            return None
        elapsed_s = reading.at_s - previous.at_s
        jump_j = reading.energy_j - previous.energy_j
        # One update of a coarse counter (100 ms on RTX boards) may fall into a shorter polling interval.
        if jump_j > self._limits.max_power_w * (elapsed_s + 0.2):
            return f"energy jumped by {jump_j:.6g} J in {elapsed_s:.3g} s"
        if jump_j < 0:
            return f"energy fell by {-jump_j:.6g} J"
        return None

    def _stuck_fault(self, reading: Reading, previous: Reading | None) -> str | None:
        limit_s = self._limits.stuck_after_s
        if limit_s is None:
            return None
        same = previous is not None and (reading.energy_j, reading.power_w, reading.epoch) == (
            previous.energy_j,
            previous.power_w,
            previous.epoch,
        )
        if not same or self._unchanged_since_s is None:
            self._unchanged_since_s = reading.at_s
            return None
        unchanged_s = reading.at_s - self._unchanged_since_s
        if unchanged_s < limit_s:
            return None
        return f"stuck: the same value for {unchanged_s:.0f} s"
