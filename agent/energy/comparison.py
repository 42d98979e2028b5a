"""What a host's own sensors see of what it draws at the wall. PURE.

Rails and cards leave out losses of the supply, fans, memory and disks: a fixed part and one that grows with the load.
Windows of ten seconds, in which both are known, give the line wall = slope * sensors + offset by least squares.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean

_MAX_WINDOWS = 720
"""Two hours of windows of ten seconds."""
_MIN_WINDOWS = 12
_MIN_SPREAD = 0.1
"""A line needs loads that differ: by this share of their mean, as a standard deviation."""


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
