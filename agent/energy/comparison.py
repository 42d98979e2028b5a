"""What a host draws at the wall: how much of it its own sensors see, and what is left while it sleeps. PURE.

Rails and cards leave out losses of the supply, fans, memory and disks: a fixed part and one that grows with the load.
Windows of ten seconds, in which both are known, give the line wall = slope * sensors + offset by least squares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

_MAX_WINDOWS = 720
"""Two hours of windows of ten seconds."""
_MIN_WINDOWS = 12
_MIN_SPREAD = 0.1
"""A line needs loads that differ: by this share of their mean, as a standard deviation."""


_MIN_ASLEEP_S = 60.0
_MAX_DOUBT_W = 1.0
"""A sleeping host draws a few watts: a figure that may be off by more says nothing."""
_UNSURE_S = 2.5
"""So long before the host is found awake, a reading may already be one after its sleep."""


@dataclass(frozen=True, slots=True)
class PlugReading:
    """All plugs of a host at a moment of its clock, which stands still while it sleeps.

    power_w: in W. energy_j: their counters together in J. step_j: how finely these count.
    """

    at_s: float
    power_w: float
    energy_j: float
    step_j: float


@dataclass(frozen=True, slots=True)
class AsleepPower:
    """What the host drew while it slept, in W, and by how much that may be off. slept_s: how long it slept."""

    power_w: float
    doubt_w: float
    slept_s: float


def last_before_sleep(readings: Sequence[PlugReading], awake_s: float) -> PlugReading | None:
    """Return the newest reading from before a sleep that was found to be over at `awake_s`; None without any."""
    return next((one for one in reversed(readings) if one.at_s <= awake_s - _UNSURE_S), None)


def power_asleep(before: PlugReading, after: PlugReading, slept_s: float) -> AsleepPower | None:
    """Return the power between two readings around a sleep of so many seconds; None where it cannot be told.

    The seconds awake between the two count with the power that was drawn before and after.
    """
    awake_j = max(0.0, after.at_s - before.at_s) * (before.power_w + after.power_w) / 2
    counted_j = after.energy_j - before.energy_j
    doubt_w = (before.step_j + awake_j / 2) / slept_s if slept_s > 0 else _MAX_DOUBT_W
    if slept_s < _MIN_ASLEEP_S or counted_j < 0 or doubt_w > _MAX_DOUBT_W:
        return None
    return AsleepPower(max(0.0, counted_j - awake_j) / slept_s, doubt_w, slept_s)


@dataclass(frozen=True, slots=True)
class WallLine:
    """What the wall draws for what the sensors see, in W: wall = slope * sensors + offset_w.

    error_w: the root of the mean square of what the line leaves unexplained.
    """

    slope: float
    offset_w: float
    error_w: float
    n_windows: int


class WallComparison:
    """Pairs of a host's power by its own sensors and at the wall, in W."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_MAX_WINDOWS)

    def add(self, sensors_w: float, wall_w: float) -> None:
        """Take in one window's mean powers in W."""
        self._pairs.append((sensors_w, wall_w))

    @property
    def line(self) -> WallLine | None:
        """The line through all pairs; None of too few, or of loads that are all alike."""
        count = len(self._pairs)
        if count < _MIN_WINDOWS:
            return None
        mean_x, mean_y = (fmean(values) for values in zip(*self._pairs, strict=True))
        variance = fmean((x - mean_x) ** 2 for x, _ in self._pairs)
        if variance <= (_MIN_SPREAD * mean_x) ** 2:
            return None
        slope = fmean((x - mean_x) * (y - mean_y) for x, y in self._pairs) / variance
        offset_w = mean_y - slope * mean_x
        error_w = fmean((y - slope * x - offset_w) ** 2 for x, y in self._pairs) ** 0.5
        return WallLine(slope, offset_w, error_w, count)

    @property
    def sentence(self) -> str | None:
        """The comparison for people; None while there is nothing to compare."""
        if not self._pairs:
            return None
        sensors_w, wall_w = (fmean(values) for values in zip(*self._pairs, strict=True))
        share = f"the other sensors see {sensors_w:.1f} of {wall_w:.1f} W"
        if wall_w > 0:
            share += f" ({sensors_w / wall_w:.0%})"
        line = self.line
        if line is None:
            return f"{share}, over {len(self._pairs)} windows of 10 s"
        sign = "+" if line.offset_w >= 0 else "-"
        return (
            f"{share}; wall = {line.slope:.2f} x sensors {sign} {abs(line.offset_w):.1f} W"
            f" (within {line.error_w:.1f} W, over {line.n_windows} windows of 10 s)"
        )
