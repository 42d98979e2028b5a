"""Readings to joules over any window. PURE.

A track is the power of one device as a piecewise linear function of time: between two power samples the
straight line (trapezoid rule), between two counter readings the constant mean power. Its integral is
additive, E(a, b) + E(b, c) = E(a, c), which is what the attribution's invariant rests on. Where nothing is
known, the function has
a hole: a window that touches it has a coverage below 1 and its joules are a lower bound.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class WindowEnergy:
    """Energy of one device over one window.

    joules: energy of the covered part of the window; None if no part is covered. J.
    covered_s, window_s: length of the covered part and of the window. s.
    n_samples: readings inside the window.
    max_gap_s: widest spacing of the readings that the window rests on; None without any.
    """

    joules: float | None
    covered_s: float
    window_s: float
    n_samples: int
    max_gap_s: float | None

    @property
    def coverage(self) -> float:
        """Share of the window that is covered, 0..1. An empty window counts as not covered."""
        return min(1.0, self.covered_s / self.window_s) if self.window_s > 0 else 0.0


class CounterUnwrapper:
    """A raw counter that wraps or is reset, as a steadily rising one.

    range_j: the raw counter runs from 0 up to this value and starts again; None if it never wraps.
    max_power_w: the device can draw no more. It tells a wrap from a reset, and bounds how long the counter
    may go
    unread: a longer pause could hide a second wrap.
    """

    def __init__(self, range_j: float | None, max_power_w: float) -> None:
        self._range_j = range_j
        self._max_power_w = max_power_w
        self._last: tuple[float, float] | None = None
        self._total_j = 0.0
        self.epoch = 0

    def advance(self, at_s: float, raw_j: float) -> float:
        """Return the J counted since the first reading of this epoch.

        A reset, or a pause that is too long, begins a new epoch.
        """
        if self._last is not None:
            last_at_s, last_j = self._last
            delta_j = self._delta(at_s - last_at_s, raw_j - last_j)
            if delta_j is None:
                self.epoch += 1
                self._total_j = 0.0
            else:
                self._total_j += delta_j
        self._last = (at_s, raw_j)
        return self._total_j

    def _delta(self, elapsed_s: float, difference_j: float) -> float | None:
        if self._range_j is not None and elapsed_s * self._max_power_w >= self._range_j:
            return None
        if difference_j >= 0:
            return difference_j
        if self._range_j is None:
            return None
        wrapped_j = difference_j + self._range_j
        if 0 <= wrapped_j <= max(elapsed_s, 0.0) * self._max_power_w:
            return wrapped_j
        return None


class EnergyTrack:
    """What is known of one device's power over the last `keep_s` seconds.

    max_gap_s: two power samples further apart are not joined by a line; the time between them is not covered.
    Times must rise; a reading that is not later than the last one is ignored.
    """

    def __init__(self, *, max_gap_s: float = 0.5, keep_s: float = 900.0) -> None:
        self._max_gap_s = max_gap_s
        self._keep_s = keep_s
        self._times: list[float] = []
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._powers: list[tuple[float, float]] = []
        self._energy_before: list[float] = []
        self._covered_before: list[float] = []
        self._energy_j = 0.0
        self._covered_s = 0.0
        self._last_power: tuple[float, float] | None = None
        self._last_counter: tuple[float, float, int] | None = None

    @property
    def frontier_s(self) -> float | None:
        """The time up to which energy is final; None before the first reading."""
        return self._times[-1] if self._times else None

    def add_power(self, at_s: float, power_w: float) -> None:
        """Take in a power sample in W."""
        last, self._last_power = self._last_power, (at_s, power_w)
        if last is None:
            self._note(at_s)
            return
        if at_s <= last[0]:
            self._last_power = last
            return
        if at_s - last[0] <= self._max_gap_s:
            self._append(last[0], at_s, last[1], power_w)
        self._note(at_s)

    def add_counter(self, at_s: float, energy_j: float, epoch: int = 0) -> None:
        """Take in a reading of a rising counter in J.

        Repeated values are skipped: the counter's own updates are coarser than the polling, so the energy
        belongs to the whole time since it last moved. The time after the last move is unknown, not zero,
        until it moves again.
        """
        last = self._last_counter
        if last is None or last[2] != epoch:
            if last is None or at_s > last[0]:
                self._last_counter = (at_s, energy_j, epoch)
                self._note(at_s)
            return
        if at_s <= last[0] or energy_j <= last[1]:
            return
        mean_w = (energy_j - last[1]) / (at_s - last[0])
        self._last_counter = (at_s, energy_j, epoch)
        self._append(last[0], at_s, mean_w, mean_w)
        self._note(at_s)

    def cumulative_j(self, at_s: float) -> float:
        """Return the energy of all covered time up to `at_s`, in J from an arbitrary origin."""
        return self._at(at_s)[0]

    def between(self, start_s: float, end_s: float) -> WindowEnergy:
        """Return the energy from `start_s` to `end_s`, edges interpolated."""
        first_j, first_s = self._at(start_s)
        last_j, last_s = self._at(end_s)
        covered_s = last_s - first_s
        first_sample = bisect_left(self._times, start_s)
        past_sample = bisect_right(self._times, end_s)
        return WindowEnergy(
            joules=last_j - first_j if covered_s > 0 else None,
            covered_s=covered_s,
            window_s=max(0.0, end_s - start_s),
            n_samples=max(0, past_sample - first_sample),
            max_gap_s=self._widest_spacing(first_sample, past_sample),
        )

    def _widest_spacing(self, first_sample: int, past_sample: int) -> float | None:
        bracket = self._times[max(0, first_sample - 1) : past_sample + 1]
        return max((b - a for a, b in pairwise(bracket)), default=None)

    def _at(self, at_s: float) -> tuple[float, float]:
        """Energy and covered time before `at_s`."""
        index = bisect_right(self._starts, at_s) - 1
        if index < 0:
            if not self._starts:
                return self._energy_j, self._covered_s
            return self._energy_before[0], self._covered_before[0]
        start_s, end_s = self._starts[index], self._ends[index]
        first_w, last_w = self._powers[index]
        inside_s = min(at_s, end_s) - start_s
        slope = (last_w - first_w) / (end_s - start_s)
        energy_j = inside_s * (first_w + 0.5 * slope * inside_s)
        return self._energy_before[index] + energy_j, self._covered_before[index] + inside_s

    def _append(self, start_s: float, end_s: float, first_w: float, last_w: float) -> None:
        self._starts.append(start_s)
        self._ends.append(end_s)
        self._powers.append((first_w, last_w))
        self._energy_before.append(self._energy_j)
        self._covered_before.append(self._covered_s)
        self._energy_j += 0.5 * (first_w + last_w) * (end_s - start_s)
        self._covered_s += end_s - start_s

    def _note(self, at_s: float) -> None:
        self._times.append(at_s)
        # Trimmed in large pieces: deleting from the front of a list costs its length.
        if at_s - self._times[0] > 1.5 * self._keep_s:
            self._forget_before(at_s - self._keep_s)

    def _forget_before(self, at_s: float) -> None:
        del self._times[: bisect_left(self._times, at_s)]
        kept = bisect_left(self._ends, at_s)
        for column in (self._starts, self._ends, self._powers, self._energy_before, self._covered_before):
            del column[:kept]
