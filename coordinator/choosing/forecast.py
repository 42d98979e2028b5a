"""What a request takes on every expert of the fleet: quantiles of seconds and joules, as arrays. PURE.

An expert's own laws of latency and energy come with the reports of its agent (`moe2.common.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from moe2.common.cost import Quantiles, RequestShape, Spread, energy_features, inter_token_features, prefill_features
from moe2.common.energy import Quality
from moe2.common.link.messages import ExpertReport, ExpertState
from moe2.coordinator.fleet.table import Expert

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_UNKNOWN = Spread(p50=np.nan, p95=np.nan)


@dataclass(frozen=True, eq=False)
class Range:
    """Quantiles of one cost on each expert; NaN where it was never measured. Both (N,)."""

    p50: FloatArray
    p95: FloatArray

    def at(self, place: int) -> Quantiles | None:
        """Of one expert; None where unknown."""
        p50 = float(self.p50[place])
        return None if p50 != p50 else Quantiles(p50, float(self.p95[place]))


@dataclass(frozen=True, eq=False)
class Forecast:
    """What one request takes on each expert of a roster, in its order.

    prompt_tokens: (N,) its prompt's length to each. answer_tokens: its answer's, the same for all or (N,). busy: (N,)
    requests already there.
    """

    roster: Roster
    prompt_tokens: IntArray
    answer_tokens: int | IntArray
    busy: IntArray
    ttft_s: Range
    per_token_s: Range
    total_s: Range
    energy_j: Range

    @cached_property
    def added_w(self) -> FloatArray:
        """(N,) watts that the request adds to what each one's host draws, NaN where unknown.

        Where the host's idle power is unknown, all that it draws with the request counts: that cannot be too little.
        """
        before_w = self.roster.host_w(self.prompt_tokens, self.answer_tokens, self.busy)
        with_it_w = self.roster.host_w(self.prompt_tokens, self.answer_tokens, self.busy + 1)
        return np.asarray(np.maximum(with_it_w - np.nan_to_num(before_w), 0.0))

    def prediction(self, place: int) -> Prediction:
        """The same of one expert."""
        report, busy = self.roster.experts[place].report, int(self.busy[place])
        return Prediction(
            shape=RequestShape(
                prompt_tokens=int(self.prompt_tokens[place]),
                decoded_tokens=int(np.broadcast_to(self.answer_tokens, len(self.roster))[place]),
                occupancy=min(busy + 1, report.slots),
                queued_ahead=busy - report.slots if busy >= report.slots else None,
            ),
            ttft_s=self.ttft_s.at(place),
            per_token_s=self.per_token_s.at(place),
            total_s=self.total_s.at(place),
            energy_j=self.energy_j.at(place),
            energy_quality=report.energy.quality if report.energy else None,
            transmit_s=float(self.roster.transmit_s[place]) if report.latency else 0.0,
        )


class Roster:
    """N experts, N >= 1, with what is known of them in columns.

    context_tokens, room: (N,) how long a prompt each takes, and how many requests at a time, queued ones included. No
    more are queued there than are predicted to start within `longest_queue_s`, but one: whoever would wait longer waits
    better where the first expert that falls free can be had.
    bare, toolless: (N,) True where its model has no chat template, and where that has no tools. transmit_s: (N,) round
    trips, 0 where unknown. load_s: (N,) what loading takes, 0 where it is in memory, NaN where nobody knows.
    idle_w: (N,) watts of its host doing nothing, NaN where unknown.
    """

    def __init__(self, experts: Sequence[Expert], *, longest_queue_s: float = math.inf) -> None:
        self.experts = tuple(experts)
        self.keys = tuple(expert.key for expert in self.experts)
        self.models = tuple(expert.model for expert in self.experts)
        reports = [expert.report for expert in self.experts]
        self.context_tokens: IntArray = np.array([report.context_tokens for report in reports])
        self.room: IntArray = np.array([report.slots + report.max_queue for report in reports])
        self.bare: BoolArray = np.array([report.has_chat_template is False for report in reports])
        self.toolless: BoolArray = np.array([report.supports_tools is False for report in reports])
        self.load_s: FloatArray = np.array([_load_s(report) for report in reports])
        self.transmit_s: FloatArray = np.array([expert.rtt_s or 0.0 for expert in self.experts])
        self.idle_w: FloatArray = np.array([_idle_w(report) for report in reports])
        self._slots: IntArray = np.array([report.slots for report in reports])
        latency, energy = [report.latency for report in reports], [report.energy for report in reports]
        # One row per coefficient. Unknown is NaN, which stays NaN through every formula.
        self._prefill = np.array([found.prefill if found else (np.nan,) * 4 for found in latency]).T
        self._decode = np.array([found.decode if found else (np.nan,) * 3 for found in latency]).T
        self._energy = np.array([found.coefficients if found else (np.nan,) * 4 for found in energy]).T
        self._turn_s = np.array([found.service_s / found.slots if found else np.nan for found in latency])
        """Slots fall free one by one, every so many seconds."""
        with np.errstate(divide="ignore"):
            soon = np.maximum(1.0, np.floor(longest_queue_s / self._turn_s))
        # Where nobody knows how fast a queue moves, all of it may be used.
        short: BoolArray = soon < self.room - self._slots
        self.room[short] = self._slots[short] + soon[short].astype(np.int64)
        # Without a learned pace, a request is expected to live in what it finds.
        self._occupancy = np.array([found.occupancy if found else (0.0, 1.0) for found in latency]).T
        self._fullest = np.array([max(1.0, float(found.slots)) if found else np.inf for found in latency])
        self._ttft = _factors([found.ttft if found else _UNKNOWN for found in latency])
        self._inter_token = _factors([found.inter_token if found else _UNKNOWN for found in latency])
        self._total = _factors([found.total if found else _UNKNOWN for found in latency])
        self._joules = _factors([found.spread if found else _UNKNOWN for found in energy])

    def __len__(self) -> int:
        return len(self.experts)

    @cached_property
    def speed_known(self) -> BoolArray:
        """(N,) False where nobody measured the expert's speed, or how long it takes to load where it has to be."""
        return np.asarray(~np.isnan(self._turn_s) & ~np.isnan(self.load_s))

    @cached_property
    def energy_known(self) -> BoolArray:
        """(N,) False where nobody measured the expert's energy."""
        return np.asarray(~np.isnan(self._energy[0]))

    def busy(self, in_flight: Mapping[str, int]) -> IntArray:
        """(N,) requests in progress on each."""
        return np.array([in_flight.get(key, 0) for key in self.keys])

    def lighter(self, busy: IntArray, *, bounds_joules: bool) -> Iterator[IntArray]:
        """Less load than `busy` (N,), without a queue: nobody; and where joules are bounded, more and more after that,
        as those who are decoded together share them."""
        most = np.minimum(busy, self._slots - 1)
        for level in range(int(most.max()) + 1 if bounds_joules else 1):
            yield np.minimum(level, most)

    def frees_in_s(self, busy: IntArray) -> FloatArray:
        """(N,) seconds until a slot falls free with `busy` (N,) requests there, as predicted; NaN where unknown."""
        return np.asarray(np.maximum(1, busy - self._slots + 1) * self._turn_s)

    def host_w(self, prompt_tokens: IntArray, answer_tokens: int | IntArray, running: IntArray) -> FloatArray:
        """(N,) mean watts of each one's host while `running` (N,) such requests run there and nothing else does.

        The joules of those that hold a slot, idle share included, over the seconds that one takes. The host's idle
        power where none runs. NaN where unknown.
        """
        if not running.any():
            return self.idle_w
        at_once = np.minimum(running, self._slots)
        shape = _shape(prompt_tokens, answer_tokens, np.maximum(at_once, 1))
        step_s = _dot(self._decode, inter_token_features(shape))
        seconds = _dot(self._prefill, prefill_features(shape)) + np.maximum(0, answer_tokens - 1) * step_s
        joules = at_once * _dot(self._energy, energy_features(shape))
        active_w = np.divide(joules, seconds, out=np.full(len(self), np.nan), where=seconds > 0)
        # A model of few requests may say less than nothing running does.
        active_w = np.maximum(active_w, np.nan_to_num(self.idle_w))
        return np.asarray(np.where(at_once > 0, active_w, self.idle_w))

    def forecast(self, prompt_tokens: IntArray, answer_tokens: int | IntArray, busy: IntArray) -> Forecast:
        """What a request takes on each expert, with `busy` (N,) requests already there.

        prompt_tokens: (N,) its prompt's length to each expert's model. answer_tokens: the same for all, or (N,).
        """
        arriving = np.minimum(busy + 1, self._slots)
        shape = _shape(prompt_tokens, answer_tokens, arriving)
        m0, m1 = self._occupancy
        lived = _shape(prompt_tokens, answer_tokens, np.minimum(np.maximum(1.0, m0 + m1 * arriving), self._fullest))
        queue_s = np.where(busy >= self._slots, (busy - self._slots + 1) * self._turn_s, 0.0)
        first_s = queue_s + _dot(self._prefill, prefill_features(shape))
        step_s = _dot(self._decode, inter_token_features(lived))
        total_s = first_s + np.maximum(0, answer_tokens - 1) * step_s
        return Forecast(
            roster=self,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            busy=busy,
            ttft_s=_around(first_s, self._ttft, self.transmit_s + self.load_s),
            per_token_s=_around(step_s, self._inter_token),
            total_s=_around(total_s, self._total, self.transmit_s + self.load_s),
            energy_j=_around(_dot(self._energy, energy_features(lived)), self._joules),
        )


def _idle_w(report: ExpertReport) -> float:
    idle_w = report.energy.idle_w if report.energy else None
    return np.nan if idle_w is None else idle_w


def _load_s(report: ExpertReport) -> float:
    if report.state is ExpertState.READY:
        return 0.0
    return np.nan if report.load_s is None else report.load_s


def _shape(prompt_tokens: IntArray, answer_tokens: int | IntArray, occupancy: IntArray | FloatArray) -> RequestShape:
    """A shape with arrays where numbers belong: the formulas of `moe2.common.cost` take both."""
    return RequestShape(
        prompt_tokens=cast(int, prompt_tokens),
        decoded_tokens=cast(int, answer_tokens),
        occupancy=cast(float, occupancy),
    )


def _factors(spreads: Sequence[Spread]) -> tuple[FloatArray, FloatArray]:
    """What a mean is multiplied by for its quantiles, (N,) each."""
    p50 = np.array([math.exp(spread.p50) for spread in spreads])
    return p50, np.array([math.exp(spread.p95) for spread in spreads])


def _dot(coefficients: FloatArray, features: Sequence[float]) -> FloatArray:
    """(N,) from one row per coefficient; a feature is a number or one per expert."""
    terms = (row * feature for row, feature in zip(coefficients, features, strict=True))
    return np.asarray(sum(terms), dtype=np.float64)


def _around(mean: FloatArray, factors: tuple[FloatArray, FloatArray], later_s: FloatArray | float = 0.0) -> Range:
    p50, p95 = factors
    return Range(mean * p50 + later_s, mean * p95 + later_s)


@dataclass(frozen=True)
class Prediction:
    """Of one request on one expert. None: the expert has not been measured in this respect.

    transmit_s: one round trip to its host; 0 before one was measured. energy_quality: of the measurements that the
    joules rest on. shape: the request as it was taken to be.
    """

    shape: RequestShape
    ttft_s: Quantiles | None
    per_token_s: Quantiles | None
    total_s: Quantiles | None
    energy_j: Quantiles | None
    energy_quality: Quality | None = None
    transmit_s: float = 0.0
