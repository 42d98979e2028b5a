"""How many requests a key will still make today, from when it has made them so far. PURE.

Hours are those of the UTC day, as daily limits are. A former day counts less with each later one, and today's level
moves the whole shape. The first day is taken for one of `FIRST_DAY_HOURS` with requests at the rate of those so far.
"""

from __future__ import annotations

import math

import msgspec

HOURS = 24
HOUR_S = 3600.0
DAY_S = HOURS * HOUR_S
FIRST_DAY_HOURS = 10.0
"""Hours with requests of a first day, a working day; one that is longer goes on for as long again."""
LEARNING = 0.3
"""Least weight of the latest day in the shape."""
LEVEL_REQUESTS = 5.0
"""As many requests as expected count as made when today's level is compared with the usual one."""


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one key by the hour of the day."""

    day: int = 0
    """Today, in days since the epoch."""
    today: tuple[int, ...] = (0,) * HOURS
    """Requests in each hour of today."""
    usual: tuple[float, ...] = (0.0,) * HOURS
    """Requests that each hour of a day usually has."""
    n_days: int = 0
    """Former days that `usual` was learned from."""


def is_sound(rhythm: Rhythm) -> bool:
    """True for figures that can have been learned; a damaged state file can say anything."""
    figures = (rhythm.day, rhythm.n_days, *rhythm.today, *rhythm.usual)
    whole = len(rhythm.today) == len(rhythm.usual) == HOURS
    return whole and all(0 <= figure < math.inf for figure in figures)


def came(rhythm: Rhythm, at_unix_s: float) -> Rhythm:
    """The rhythm with one more request. One of the day before the latest, as of a request over midnight, counts for
    nothing; one of an earlier day tells that the clock was wrong when it said the latest.
    """
    if int(at_unix_s // DAY_S) == rhythm.day - 1:
        return rhythm
    rhythm, second = _on_its_day(rhythm, at_unix_s)
    hour = int(second / HOUR_S)
    today = tuple(count + (place == hour) for place, count in enumerate(rhythm.today))
    return msgspec.structs.replace(rhythm, today=today)


def requests_left(rhythm: Rhythm, now_unix_s: float) -> float:
    """Requests that are expected in the rest of the day, with the one that is being made now: 1 or more."""
    rhythm, second = _on_its_day(rhythm, now_unix_s)
    hours = second / HOUR_S
    hour, passed = int(hours), hours % 1.0
    n_today = sum(rhythm.today)
    # The next hour is at least like the last one, whatever former days were like.
    before = rhythm.today[hour - 1] if hour else 0
    last_hour = rhythm.today[hour] + before * (1.0 - passed)
    least = last_hour * min(1.0, HOURS - hours)
    if rhythm.n_days == 0:
        busy = sum(1.0 for count in rhythm.today[:hour] if count) + (passed if rhythm.today[hour] else 0.0)
        # One request in its first minute is no rate yet.
        expected = n_today / max(busy, 0.25) * min(HOURS - hours, max(FIRST_DAY_HOURS - busy, busy))
    else:
        so_far = sum(rhythm.usual[:hour]) + passed * rhythm.usual[hour]
        level = (n_today + LEVEL_REQUESTS) / (so_far + LEVEL_REQUESTS)
        expected = level * (sum(rhythm.usual) - so_far)
    return max(1.0, least, expected)


def requests_today(rhythm: Rhythm, now_unix_s: float) -> float:
    """Requests that are expected in the whole of today, those that were made included: 1 or more."""
    rhythm, _ = _on_its_day(rhythm, now_unix_s)
    return sum(rhythm.today) + requests_left(rhythm, now_unix_s)


def _on_its_day(rhythm: Rhythm, at_unix_s: float) -> tuple[Rhythm, float]:
    """The rhythm on the day that a moment is charged to, and how many seconds of that day have passed.

    As with the accounts of daily limits: where the clock was set back by a day, the later one stays and has just begun;
    a clock that was further ahead was wrong, and nothing of its day counts.
    """
    day, second = int(at_unix_s // DAY_S), at_unix_s % DAY_S
    if day > rhythm.day:
        return _next_day(rhythm, day), second
    if day == rhythm.day:
        return rhythm, second
    if day == rhythm.day - 1:
        return rhythm, 0.0
    return msgspec.structs.replace(rhythm, day=day, today=(0,) * HOURS), second


def _next_day(rhythm: Rhythm, day: int) -> Rhythm:
    """The rhythm at the beginning of a later day, with what the latest one has taught."""
    if not any(rhythm.today):
        return msgspec.structs.replace(rhythm, day=day)
    weight = max(LEARNING, 1.0 / (rhythm.n_days + 1))
    usual = tuple(old + weight * (new - old) for old, new in zip(rhythm.usual, rhythm.today, strict=True))
    return Rhythm(day=day, usual=usual, n_days=rhythm.n_days + 1)
