"""The traffic that a fleet has had and will have, and how much of it an expert takes before people wait. PURE.

Traffic is rates by category and model, how sure they are, and lengths.

Rates have the shape of a week. Each hour of the week is shrunk towards the same hour of all days, and that towards the
mean of all hours, as Gamma priors do it; the last half hour then moves the hour's rate. Requests come in bursts, so an
hour's upper rate is that of a Gamma distribution that counts fewer requests than there were.

An expert has several slots and one queue. Requests come at random and slots serve them one by one (M/M/k; Erlang 1917).
Measured seconds of service, which hold what a batch costs each of its requests, stand for the law of service.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

HOUR_S = 3600.0
HOURS_A_WEEK = 168
LIVE_S = 1800.0
"""Seconds of the newest arrivals that move the hour's rate."""
HALVES_AFTER_WEEKS = 6.0
"""Older weeks count less, half after so many."""
MAX_GAP_S = 60 * 24 * HOUR_S
"""A clock that jumps further than this starts the counts anew."""
MAX_CLASSES = 64
"""Pairs of category and model that are told apart; later ones are counted under `OTHER`."""
MAX_SAMPLES = 512
"""Requests of each class that are remembered for their lengths."""
MIN_LENGTHS = 8
"""A class of which fewer lengths are known also takes those of its category, then those of all classes."""
QUIET_HOURS = 6
"""Hours of a day that count as quiet, those with the fewest requests."""
OTHER = "other"
_DAY_PRIOR_S, _WEEK_PRIOR_S, _LIVE_PRIOR_S = 1800.0, 7200.0, 7200.0
_BURSTINESS = 2.0
"""Variance of counts over their mean; the public traces have 1 to 3 when thinned to an edge fleet's rates."""
_UPPER_Z = 1.2816
"""Standard normal quantile of 0.9."""
LATE_SHARE = 0.05
"""Share of requests that may wait longer than they should: what p95 means."""


@dataclass(frozen=True)
class Asked:
    """A request that has come in."""

    at_unix_s: float
    category: str
    model: str | None
    """The model that the client asked for; None where any will do."""
    prompt_tokens: int | None
    """None where nobody knows it, as after an expert was lost."""
    answer_tokens: int | None


@dataclass(frozen=True)
class ClassForecast:
    """The requests of one category and model in one hour."""

    category: str
    model: str | None
    rate_per_s: float
    upper_per_s: float
    """Nine hours in ten have fewer requests than this rate would bring."""
    lengths: tuple[tuple[int, int], ...]
    """Tokens of prompt and answer of some requests of the class, none of them special; where few of its own are known,
    those of its category and of all classes as well."""


Forecast = tuple[ClassForecast, ...]


def rate_of(forecast: Forecast) -> float:
    """Requests a second of all classes together."""
    return sum(one.rate_per_s for one in forecast)


@dataclass
class _Class:
    counts: list[float] = field(default_factory=lambda: [0.0] * HOURS_A_WEEK)
    recent: deque[float] = field(default_factory=deque)
    lengths: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class Traffic:
    """Counts of arrivals by hour of the week, updated by `note` and `passed`; it knows no clock but the given times."""

    def __init__(self) -> None:
        self._classes: defaultdict[tuple[str, str | None], _Class] = defaultdict(_Class)
        self._seconds = [0.0] * HOURS_A_WEEK
        self._upto_unix_s: float | None = None

    def note_all(self, asked: Iterable[Asked]) -> None:
        """Takes in requests in the order of their arrival."""
        for one in asked:
            self.note(one)

    def note(self, asked: Asked) -> None:
        """Takes in a request. One that lies before the present, as after a clock was set back, is counted as now."""
        self.passed(asked.at_unix_s)
        at_unix_s = self._upto_unix_s if self._upto_unix_s is not None else asked.at_unix_s
        kind = self._class_of(asked)
        kind.counts[_hour(at_unix_s)] += 1.0
        kind.recent.append(at_unix_s)
        prompt, answer = asked.prompt_tokens, asked.answer_tokens
        if prompt is not None and answer is not None and min(prompt, answer) >= 0:
            kind.lengths.append((prompt, answer))

    def passed(self, now_unix_s: float) -> None:
        """Notes that nothing but what was noted has come until now."""
        if not math.isfinite(now_unix_s):
            return
        if self._upto_unix_s is None or abs(now_unix_s - self._upto_unix_s) > MAX_GAP_S:
            self._seconds = [0.0] * HOURS_A_WEEK
            self._classes.clear()
            self._upto_unix_s = now_unix_s
        while self._upto_unix_s < now_unix_s:
            ends = min(now_unix_s, (math.floor(self._upto_unix_s / HOUR_S) + 1) * HOUR_S)
            hour = _hour(self._upto_unix_s)
            self._seconds[hour] += ends - self._upto_unix_s
            if ends % HOUR_S == 0.0:
                self._fade(hour)
            self._upto_unix_s = ends
        for kind in self._classes.values():
            while kind.recent and kind.recent[0] < self._upto_unix_s - LIVE_S:
                kind.recent.popleft()

    def forecast(self, at_unix_s: float, *, live: bool = True) -> Forecast:
        """The traffic of the hour that `at_unix_s` lies in. live: False leaves out what the last half hour says."""
        hour = _hour(at_unix_s)
        return tuple(
            self._of(category, model, kind, hour, live=live)
            for (category, model), kind in sorted(
                self._classes.items(), key=lambda item: (item[0][0], item[0][1] is not None, item[0][1] or "")
            )
        )

    def is_quiet(self, at_unix_s: float) -> bool:
        """Whether this hour is among the quietest quarter of the day that begins with it, as far as days are known."""
        rates = [rate_of(self.forecast(at_unix_s + hour * HOUR_S, live=hour == 0)) for hour in range(24)]
        return rates[0] <= sorted(rates)[QUIET_HOURS - 1] * (1.0 + 1e-9)

    def _of(self, category: str, model: str | None, kind: _Class, hour: int, *, live: bool) -> ClassForecast:
        seconds, counts = self._seconds, kind.counts
        total_s = sum(seconds)
        mean = (sum(counts) + 0.5) / (total_s + HOUR_S)
        same = range(hour % 24, HOURS_A_WEEK, 24)
        day = (sum(counts[h] for h in same) + _DAY_PRIOR_S * mean) / (sum(seconds[h] for h in same) + _DAY_PRIOR_S)
        rate = (counts[hour] + _WEEK_PRIOR_S * day) / (seconds[hour] + _WEEK_PRIOR_S)
        if live and total_s > 0.0:
            # The hour's own rate counts as much as two hours of arrivals, less where it rests on less.
            prior_s = min(_LIVE_PRIOR_S, max(total_s, 60.0))
            live_s = min(LIVE_S, total_s)
            rate = (prior_s * rate + len(kind.recent)) / (prior_s + live_s)
        return ClassForecast(category, model, rate, _upper(rate), self._lengths_of(category, kind))

    def _lengths_of(self, category: str, kind: _Class) -> tuple[tuple[int, int], ...]:
        """The lengths of a class, filled up with those of the classes that are most like it where few are known."""
        found = list(kind.lengths)
        alike = (other for (name, _), other in self._classes.items() if name == category and other is not kind)
        others = (other for (name, _), other in self._classes.items() if name != category)
        for other in (*alike, *others):
            if len(found) >= MIN_LENGTHS:
                break
            found += list(other.lengths)[-(MIN_LENGTHS - len(found)) :]
        return tuple(found)

    def _class_of(self, asked: Asked) -> _Class:
        key = (asked.category, asked.model)
        if key not in self._classes and len(self._classes) >= MAX_CLASSES:
            key = (OTHER, None)
        return self._classes[key]

    def _fade(self, hour: int) -> None:
        """Lets what is known of an hour of the week count less, once a week."""
        keep = 0.5 ** (1.0 / HALVES_AFTER_WEEKS)
        self._seconds[hour] *= keep
        for kind in self._classes.values():
            kind.counts[hour] *= keep


def _hour(at_unix_s: float) -> int:
    """The hour of the week, 0..167 from Thursday 0:00 UTC, on which 1970 began."""
    return int(at_unix_s // HOUR_S) % HOURS_A_WEEK


def _upper(rate_per_s: float) -> float:
    """The 0.9 quantile of an hour's requests, as those of a Gamma distribution, in requests a second.

    Wilson and Hilferty's cube (1931) is within a percent of it for a count of one or more.
    """
    count = rate_per_s * HOUR_S / _BURSTINESS
    if count < 0.3:
        return rate_per_s + 1.5 / HOUR_S
    return rate_per_s * (1.0 - 1.0 / (9.0 * count) + _UPPER_Z / (3.0 * math.sqrt(count))) ** 3


def waits(slots: int, offered: float) -> float:
    """The share of requests that find all slots taken, with `offered` erlangs on `slots`; 1 where the queue grows."""
    if offered >= slots:
        return 1.0
    if offered <= 0.0:
        return 0.0
    blocked = 1.0
    for slot in range(1, slots + 1):
        # Erlang B by its recursion, which overflows for no number of slots.
        blocked = offered * blocked / (slot + offered * blocked)
    return blocked / (1.0 - offered / slots * (1.0 - blocked))


def waits_longer(slots: int, offered: float, service_s: float, patience_s: float) -> float:
    """The share of requests that wait longer than `patience_s` for a slot, which each holds for `service_s`."""
    return waits(slots, offered) * math.exp(-max(0.0, slots - offered) * max(0.0, patience_s) / service_s)


def most_offered(slots: int, service_s: float, patience_s: float, *, share: float = LATE_SHARE) -> float:
    """The most erlangs at which no more than `share` of requests wait longer than `patience_s`."""
    if patience_s < 0.0 or slots < 1 or not service_s > 0.0:
        return 0.0
    low, high = 0.0, float(slots)
    for _ in range(40):
        middle = (low + high) / 2
        if waits_longer(slots, middle, service_s, patience_s) <= share:
            low = middle
        else:
            high = middle
    return low
