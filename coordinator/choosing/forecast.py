"""Forecasts of what a request takes on every expert of the fleet: quantiles of seconds and joules, as arrays. PURE.

An expert's own laws of latency and energy come with the reports of its agent (`moe2.common.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import repeat
from operator import is_not
from typing import NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.cost import (
    Quantiles,
    RequestShape,
    Spread,
    energy_features,
    inter_token_features,
    prefill_features,
    staying_on,
)
from moe2.common.energy import Quality
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.coordinator.choosing.workload import Workload
from moe2.coordinator.fleet.table import Expert

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FEW = 8
"""Experts up to which each is forecast for itself: an operation on arrays takes as long as many on numbers."""
_UNKNOWN = Spread(p50=np.nan, p95=np.nan)


class WorkLeft(NamedTuple):
    """What those that an expert works for have left, when it is asked."""

    unread_tokens: float
    """Of their prompts."""
    to_write_tokens: float
    """Of their answers, as long as these are expected to be."""


NOTHING_UNREAD = WorkLeft(0.0, 1e12)
"""What leaves a request the most of an expert: nobody reads any more, and nobody comes in the place of one who ends."""


class Range(msgspec.Struct, frozen=True, eq=False):
    """The two quantiles of one cost on each expert, (N,) each; NaN where it was never measured."""

    p50: FloatArray
    p95: FloatArray

    def with_those(self, places: IntArray, others: Range) -> Range:
        """The same cost, but for the experts at these places, in whose order `others` is."""
        p50, p95 = self.p50.copy(), self.p95.copy()
        p50[places], p95[places] = others.p50, others.p95
        return Range(p50, p95)

    def at(self, place: int) -> Quantiles | None:
        """The quantiles of the expert at `place`; None where unknown."""
        p50 = float(self.p50[place])
        return None if p50 != p50 else Quantiles(p50, float(self.p95[place]))


class Prediction(msgspec.Struct, frozen=True):
    """What one request takes on one expert, or on a panel. None is not measured."""

    shape: RequestShape
    """The request as the prediction took it to be; of an answer without a limit half are no longer."""
    ttft_s: Quantiles | None
    """Seconds until the first token."""
    per_token_s: Quantiles | None
    """Seconds per token after the first."""
    total_s: Quantiles | None
    """Seconds until the last token."""
    energy_j: Quantiles | None
    """Joules of the request."""
    energy_quality: Quality | None = None
    """Quality of the measurements that the joules rest on."""
    transmit_s: float = 0.0
    """Seconds of a round trip to the host; 0 before one was measured."""
    longest_tokens: int | None = None
    """The length that 95 of 100 answers without a limit keep below; None where the length is given."""


class Forecast(Workload, frozen=True, eq=False, kw_only=True, dict=True):
    """What one request takes on each expert of a roster, in the roster's order."""

    roster: Roster
    ttft_s: Range
    """Seconds until the first token."""
    per_token_s: Range
    """Seconds per token after the first."""
    total_s: Range
    """Seconds until the last token."""
    energy_j: Range
    """Joules of the request."""

    @cached_property
    def added_w(self) -> FloatArray:
        """(N,) watts that the request adds to the power of each expert's host, NaN where unknown.

        Where the host's idle power is unknown, all the power that it draws with the request counts, so that the figure
        is never too low.
        """
        before_w = self.roster.host_w(self.prompt_tokens, self.answer_tokens, self.busy)
        with_it_w = self.roster.host_w(self.prompt_tokens, self.answer_tokens, self.busy + 1)
        return np.asarray(np.maximum(with_it_w - np.nan_to_num(before_w), 0.0))

    @cached_property
    def expected_j(self) -> FloatArray:
        """(N,) joules to expect of each expert; unknown ones count as the most expensive known, or as 0 without any."""
        joules = self.energy_j.p50
        unknown = np.isnan(joules)
        if not unknown.any():
            return joules
        return np.where(unknown, 0.0 if unknown.all() else joules[~unknown].max(), joules)

    def with_answers_of(self, answer_tokens: FloatArray) -> Forecast:
        """The same request where answers have these lengths (N,); NaN where the planned length stays."""
        planned = np.broadcast_to(self.answer_tokens, answer_tokens.shape)
        lengths = np.where(np.isnan(answer_tokens), planned, answer_tokens).round().astype(np.int64)
        return self.roster.forecast(self.prompt_tokens, np.maximum(lengths, 1), self.busy, self.cached_tokens)

    def beside(self, left: Mapping[int, WorkLeft]) -> Forecast:
        """The same request where it is known, of more experts, what those at work have left. left: by place."""
        places = np.array(list(left), dtype=np.intp)
        unread_tokens, to_write_tokens = np.zeros(len(self.roster)), np.full(len(self.roster), np.nan)
        if self.unread_tokens is not None and self.to_write_tokens is not None:
            unread_tokens, to_write_tokens = self.unread_tokens.copy(), self.to_write_tokens.copy()
        unread_tokens[places], to_write_tokens[places] = np.array(list(left.values())).T
        # A few of a large fleet, as a rule: what is known of the others has changed nothing.
        there = self.roster.only(places).forecast(
            self.prompt_tokens[places],
            _those(self.answer_tokens, places),
            self.busy[places],
            _those(self.cached_tokens, places),
            None if self.longest_tokens is None else self.longest_tokens[places],
            unread_tokens[places],
            to_write_tokens[places],
        )
        return msgspec.structs.replace(
            self,
            ttft_s=self.ttft_s.with_those(places, there.ttft_s),
            per_token_s=self.per_token_s.with_those(places, there.per_token_s),
            total_s=self.total_s.with_those(places, there.total_s),
            energy_j=self.energy_j.with_those(places, there.energy_j),
            unread_tokens=unread_tokens,
            to_write_tokens=to_write_tokens,
        )

    def prediction(self, place: int) -> Prediction:
        """What the request takes on the expert at `place`."""
        report = self.roster.experts[place].report
        return Prediction(
            shape=self.shape_on(place, report.slots),
            ttft_s=self.ttft_s.at(place),
            per_token_s=self.per_token_s.at(place),
            total_s=self.total_s.at(place),
            energy_j=self.energy_j.at(place),
            energy_quality=report.energy.quality if report.energy else None,
            transmit_s=float(self.roster.transmit_s[place]) if report.latency else 0.0,
            longest_tokens=None if self.longest_tokens is None else int(self.longest_tokens[place]),
        )


class Roster:
    """N experts, N >= 1, with what is known of them as arrays in one order.

    longest_queue_s: an expert's queue is used only as far as its requests are predicted to start within this time, but
    always for one request. A request that would wait longer is better off waiting at the coordinator, where it gets the
    first expert that falls free.
    """

    def __init__(self, experts: Sequence[Expert], *, longest_queue_s: float = math.inf) -> None:
        self.experts = tuple(experts)
        self._longest_queue_s = longest_queue_s
        self.keys = tuple(expert.key for expert in self.experts)
        self.place = {key: place for place, key in enumerate(self.keys)}
        """The place of each expert by its key."""
        self.identities = tuple(expert.identity for expert in self.experts)
        """What each expert's model is, whatever its name."""
        self.different_models = tuple(sorted(set(self.identities)))
        """The different models by their identity, sorted."""
        places = {identity: place for place, identity in enumerate(self.different_models)}
        self.model_place: IntArray = np.array([places[identity] for identity in self.identities])
        """(N,) the place of each expert's model in `different_models`."""
        reports = [expert.report for expert in self.experts]
        self.context_tokens: IntArray = np.array([report.context_tokens for report in reports])
        """(N,) the longest prompt with its answer that each expert takes."""
        self.largest_context_tokens = int(self.context_tokens.max())
        """The longest prompt with its answer that any expert takes."""
        self.room: IntArray = np.array([report.slots + report.max_queue for report in reports])
        """(N,) requests that each expert takes at a time, queued ones included."""
        self.bare: BoolArray = np.array([report.has_chat_template is False for report in reports])
        """(N,) True where the model has no chat template."""
        self.toolless: BoolArray = np.array([report.supports_tools is False for report in reports])
        """(N,) True where the model's chat template has no tools."""
        self.gapless: BoolArray = np.array([_fills_no_gap(report) for report in reports])
        """(N,) True where the model cannot fill a gap between two texts."""
        self.vectorless: BoolArray = np.array([_writes(report) for report in reports])
        """(N,) True where the model writes text and yields no vectors."""
        self.mute: BoolArray = np.array([report.vector_size is not None for report in reports])
        """(N,) True where the model yields vectors and writes no text."""
        self.load_s: FloatArray = np.array([_load_s(report) for report in reports])
        """(N,) seconds to load the model, 0 where it is in memory, NaN where unknown."""
        self.transmit_s: FloatArray = np.array([expert.rtt_s or 0.0 for expert in self.experts])
        """(N,) seconds of a round trip to the host, 0 where unknown."""
        self.idle_w: FloatArray = np.array([_idle_w(report) for report in reports])
        """(N,) watts of the host while nothing runs, NaN where unknown."""
        self.elsewhere: IntArray = np.array([report.elsewhere for report in reports], dtype=np.int64)
        """(N,) requests in progress on each expert that other coordinators have given it."""
        self.slots: IntArray = np.array([report.slots for report in reports])
        """(N,) requests that each expert answers at once."""
        latency, energy = [report.latency for report in reports], [report.energy for report in reports]
        # One row per coefficient. Unknown is NaN, which stays NaN through every formula.
        self._prefill = np.array([found.prefill_law if found else (np.nan,) * 6 for found in latency]).T
        self._decode = np.array([found.inter_token_law if found else (np.nan,) * 5 for found in latency]).T
        self._energy = np.array([found.coefficients if found else (np.nan,) * 4 for found in energy]).T
        self._turn_s = np.array([found.service_s / found.slots if found else np.nan for found in latency])
        """(N,) mean seconds between two moments at which a slot falls free."""
        with np.errstate(divide="ignore"):
            soon = np.maximum(1.0, np.floor(longest_queue_s / self._turn_s))
        # Where nobody knows how fast a queue moves, all of it may be used.
        short: BoolArray = soon < self.room - self.slots
        self.room[short] = self.slots[short] + soon[short].astype(np.int64)
        # Without a learned pace, a request is expected to live in what it finds.
        self._occupancy = np.array([found.occupancy if found else (0.0, 1.0) for found in latency]).T
        self._fullest = np.array([max(1.0, float(found.slots)) if found else np.inf for found in latency])
        spreads = (
            [found.ttft if found else _UNKNOWN for found in latency],
            [found.inter_token if found else _UNKNOWN for found in latency],
            [found.total if found else _UNKNOWN for found in latency],
            [found.spread if found else _UNKNOWN for found in energy],
        )
        # What makes quantiles of means, (4, N) each in the order of `_means`.
        self._to_p50 = np.array([[math.exp(spread.p50) for spread in row] for row in spreads])
        self._to_p95 = np.array([[math.exp(spread.p95) for spread in row] for row in spreads])
        start_s, nothing = self.transmit_s + self.load_s, np.zeros(len(reports))
        self._besides: FloatArray = np.array([start_s, nothing, start_s, nothing])

    def __len__(self) -> int:
        return len(self.experts)

    @cached_property
    def speed_known(self) -> BoolArray:
        """(N,) True where the expert's speed was measured, and its loading time where it is not in memory."""
        return np.asarray(~np.isnan(self._turn_s) & ~np.isnan(self.load_s))

    @cached_property
    def energy_known(self) -> BoolArray:
        """(N,) True where the expert's energy was measured."""
        return np.asarray(~np.isnan(self._energy[0]))

    def busy(self, in_flight: Mapping[str, int]) -> IntArray:
        """(N,) requests in progress on each expert. in_flight: requests by expert key, absent ones count as 0."""
        # One more, at the end, for all that are not there.
        busy = np.zeros(len(self) + 1, dtype=np.int64)
        if in_flight:
            busy[list(map(self.place.get, in_flight, repeat(-1)))] = list(in_flight.values())
        return busy[:-1]

    def updated(self, experts: Sequence[Expert]) -> Roster:
        """The roster of the same experts with newer reports, made anew only where one differs.

        experts: any; where their keys differ from the roster's, all of it is made anew.
        """
        if len(experts) != len(self):
            return Roster(experts, longest_queue_s=self._longest_queue_s)
        places = np.flatnonzero(list(map(is_not, self.experts, experts))).tolist()
        if any((self.keys[n], self.identities[n]) != (experts[n].key, experts[n].identity) for n in places):
            return Roster(experts, longest_queue_s=self._longest_queue_s)
        if not places:
            return self
        fresh = Roster([experts[n] for n in places], longest_queue_s=self._longest_queue_s)
        roster = copy(self)
        roster.experts = tuple(experts)
        for name, figures in vars(self).items():
            if isinstance(figures, np.ndarray) and name != "model_place":
                # Decisions that were made before keep what they have seen.
                changed = figures.copy()
                changed[..., places] = getattr(fresh, name)
                setattr(roster, name, changed)
        roster.largest_context_tokens = int(roster.context_tokens.max())
        return roster

    def only(self, places: IntArray) -> Roster:
        """The experts at these places with what forecasts rest on; everything else is the whole roster's."""
        roster = copy(self)
        roster.experts = tuple(self.experts[place] for place in places.tolist())
        for name in _FORECAST_BY:
            setattr(roster, name, getattr(self, name)[..., places])
        return roster

    def less_busy(self, busy: IntArray, *, bounds_joules: bool) -> Iterator[IntArray]:
        """Loads (N,) that are lighter than `busy` (N,) and leave no queue.

        The first is an idle fleet. Where joules are bounded, busier ones follow, because requests that are decoded
        together share their joules.
        """
        most = np.minimum(busy, self.slots - 1)
        for level in range(int(most.max()) + 1 if bounds_joules else 1):
            yield np.minimum(level, most)

    def frees_in_s(self, busy: IntArray) -> FloatArray:
        """(N,) predicted seconds until each expert has a free slot with `busy` (N,) requests; NaN where unknown."""
        return np.asarray(np.maximum(1, busy - self.slots + 1) * self._turn_s)

    def host_w(self, prompt_tokens: IntArray, answer_tokens: int | IntArray, running: IntArray) -> FloatArray:
        """(N,) mean watts of each expert's host while `running` (N,) such requests run there and nothing else does.

        It is the joules of the requests that hold a slot, idle share included, over the seconds that one request takes;
        the host's idle power where none runs; NaN where unknown.
        """
        if not running.any():
            return self.idle_w
        at_once = np.minimum(running, self.slots)
        shape = Workload(prompt_tokens, answer_tokens, running).shapes(np.maximum(at_once, 1))
        step_s = _dot(self._decode, inter_token_features(shape))
        seconds = _dot(self._prefill, prefill_features(shape, 0.0)) + np.maximum(0, answer_tokens - 1) * step_s
        joules = at_once * _dot(self._energy, energy_features(shape))
        active_w = np.divide(joules, seconds, out=np.full(len(self), np.nan), where=seconds > 0)
        # A model of few requests may say less than nothing running does.
        active_w = np.maximum(active_w, np.nan_to_num(self.idle_w))
        return np.asarray(np.where(at_once > 0, active_w, self.idle_w))

    def forecast(
        self,
        prompt_tokens: IntArray,
        answer_tokens: int | IntArray,
        busy: IntArray,
        cached_tokens: IntArray | int = 0,
        longest_tokens: IntArray | None = None,
        unread_tokens: FloatArray | None = None,
        to_write_tokens: FloatArray | None = None,
    ) -> Forecast:
        """What a request takes on each expert that has `busy` (N,) requests already.

        prompt_tokens: (N,) tokens of the prompt that each expert has to read, without `cached_tokens` (N,) before them.
        answer_tokens: length of the answer, the same for all or (N,). longest_tokens: (N,) where the length is not
        given, what 95 of 100 answers keep below; half of them keep below `answer_tokens`. unread_tokens,
        to_write_tokens: (N,) what those at work have left, the latter NaN where unknown; both None where nobody asked.
        """
        asked = Workload(
            prompt_tokens, answer_tokens, busy, cached_tokens, longest_tokens, unread_tokens, to_write_tokens
        )
        means, of_longest = self._means_of_each(asked) if len(self) <= FEW else self._means(asked)
        to_p95 = self._to_p95
        if of_longest is not None:
            to_p95 = to_p95.copy()
            # All seconds, and joules.
            to_p95[2:] = _wider(self._to_p50[2:], to_p95[2:], means[2:], of_longest[2:])
        p50, p95 = means * self._to_p50 + self._besides, means * to_p95 + self._besides
        return Forecast(
            prompt_tokens,
            answer_tokens,
            busy,
            cached_tokens,
            longest_tokens,
            unread_tokens,
            to_write_tokens,
            roster=self,
            ttft_s=Range(p50[0], p95[0]),
            per_token_s=Range(p50[1], p95[1]),
            total_s=Range(p50[2], p95[2]),
            energy_j=Range(p50[3], p95[3]),
        )

    def _means(self, asked: Workload) -> tuple[FloatArray, FloatArray | None]:
        """The means (4, N) of seconds until the first token, for each later one, and in all, and of joules.

        The second are those of the longest answers, None where the length is given.
        """
        busy, to_write_tokens = asked.busy, asked.to_write_tokens
        arriving = np.minimum(busy + 1, self.slots)
        shape = asked.shapes(arriving)
        m0, m1 = self._occupancy
        company = np.minimum(np.maximum(1.0, m0 + m1 * arriving), self._fullest)
        staying = m1 * (arriving - 1)
        if to_write_tokens is not None:
            staying = np.where(np.isnan(to_write_tokens), staying, staying_on(shape))
        newcomers = np.maximum(0.0, company - 1 - staying)
        queue_s = np.where(busy >= self.slots, (busy - self.slots + 1) * self._turn_s, 0.0)
        first_s = queue_s + _dot(self._prefill, prefill_features(shape, cast(float, busy == 0)))
        usual = self._means_after(first_s, asked.shapes(company, newcomers))
        if asked.longest_tokens is None:
            return usual, None
        return usual, self._means_after(first_s, asked.shapes(company, newcomers, asked.longest_tokens))

    def _means_after(self, first_s: FloatArray, lived: RequestShape) -> FloatArray:
        """The means where requests live in these shapes once their first token is there."""
        step_s = _dot(self._decode, inter_token_features(lived))
        total_s = first_s + np.maximum(0, lived.decoded_tokens - 1) * step_s
        return np.array([first_s, step_s, total_s, _dot(self._energy, energy_features(lived))])

    def _means_of_each(self, asked: Workload) -> tuple[FloatArray, FloatArray | None]:
        """The same as `_means`, of one expert after the other."""
        usual, of_longest = [], []
        for place, expert in enumerate(self.experts):
            report = expert.report
            latency = report.latency
            shape = asked.shape_on(place, report.slots)
            lived = latency.lived(shape) if latency else shape
            first_s = latency.queue_s(shape) + latency.prefill_s(shape) if latency else np.nan
            usual.append(_means_on(report, first_s, lived))
            if asked.longest_tokens is not None:
                longest = msgspec.structs.replace(lived, decoded_tokens=int(asked.longest_tokens[place]))
                of_longest.append(_means_on(report, first_s, longest))
        return np.array(usual).T, np.array(of_longest).T if of_longest else None


_FORECAST_BY = (
    *("slots", "_turn_s", "_occupancy", "_fullest", "_prefill", "_decode", "_energy"),
    *("_to_p50", "_to_p95", "_besides"),
)
"""The arrays of a roster that `Roster.forecast` looks at."""


def _writes(report: ExpertReport) -> bool:
    """True for a model that is known to write: before it is loaded for the first time nothing is known of it."""
    return report.vector_size is None and report.architecture is not None


def _fills_no_gap(report: ExpertReport) -> bool:
    """True for a model that cannot fill a gap, or whose agent does not know of such: before it is loaded for the first
    time nothing is known of it."""
    known = report.architecture is not None
    return report.supports_infill is False or (known and report.supports_infill is None)


def _idle_w(report: ExpertReport) -> float:
    idle_w = report.energy.idle_w if report.energy else None
    return np.nan if idle_w is None else idle_w


def _load_s(report: ExpertReport) -> float:
    if report.state is ExpertState.READY:
        return 0.0
    return np.nan if report.load_s is None else report.load_s


def _those(values: IntArray | int, places: IntArray) -> IntArray | int:
    return values if isinstance(values, int) else values[places]


def _means_on(report: ExpertReport, first_s: float, lived: RequestShape) -> tuple[float, float, float, float]:
    """The means of a request that lives in this shape on an expert once its first token is there; NaN where unknown."""
    step_s = report.latency.inter_token_s(lived) if report.latency else np.nan
    joules = report.energy.mean_j(lived) if report.energy else np.nan
    return first_s, step_s, first_s + max(0, lived.decoded_tokens - 1) * step_s, joules


def _dot(coefficients: FloatArray, features: Sequence[float]) -> FloatArray:
    """(N,) the sum of coefficients times features. coefficients: one row (N,) each. features: numbers, or (N,) each."""
    first, *others = (row * feature for row, feature in zip(coefficients, features, strict=True))
    return np.asarray(sum(others, first))


def _wider(to_p50: FloatArray, to_p95: FloatArray, mean: FloatArray, longest: FloatArray) -> FloatArray:
    """What makes the p95 of costs whose mean is that of usual answers, and `longest` that of long ones; same shapes.

    How long an answer becomes and how far a prediction is off are independent and about lognormal, so that the
    deviations of both logarithms add up like the sides of a right-angled triangle.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        by_length = np.log(np.where(mean > 0.0, longest / mean, 1.0))
        by_error = np.log(to_p95 / to_p50)
    return np.asarray(to_p50 * np.exp(np.hypot(by_length, by_error)))
