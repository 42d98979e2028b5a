"""Daily limits compared: joules paced over the day against joules spent until they are gone. PURE.

A key asks every reported question once a day, at random moments of a working day, and its limit allows each request so
many joules in the mean. The coordinator's own price book paces it, from knowing nothing of the key on the first day.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe2.coordinator.choosing.fine_level import price_of_thrift
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.provisioning.price_book import Averages, PriceBook, Spending
from moe2.coordinator.provisioning.rhythm import DAY_S, HOUR_S
from moe2.coordinator.training.evaluate.averages import Case, best_expert
from moe2.coordinator.training.evaluate.report import DayFigures

DAYS = 5
"""Days of one key; the first one, of which nothing is known beforehand, is reported apart."""
WORK_HOURS = (8, 18)
"""Between these hours of the day the requests come."""
_ASKED = SelectionRequest(model="moe2", demand=Demand(1, 1))


def day_figures(case: Case, request_j: float, seed: int = 0) -> DayFigures:
    """The figures of a daily limit that allows `request_j` joules for each of the day's requests."""
    paced, unpaced = (_days(case, request_j, seed, is_paced=is_paced) for is_paced in (True, False))
    return DayFigures(
        request_j=request_j,
        score=float(np.mean([score for score, _ in paced[1:]])),
        refused=float(np.mean([refused for _, refused in paced[1:]])),
        first_day_score=paced[0][0],
        unpaced_score=float(np.mean([score for score, _ in unpaced[1:]])),
        unpaced_refused=float(np.mean([refused for _, refused in unpaced[1:]])),
    )


def _days(case: Case, request_j: float, seed: int, *, is_paced: bool) -> list[tuple[float, float]]:
    """Score and refused share of each day; a refused request scores 0."""
    book, random = PriceBook(Averages()), np.random.default_rng(seed)
    return [_day(case, request_j, day, book, random, is_paced=is_paced) for day in range(DAYS)]


def _day(
    case: Case, request_j: float, day: int, book: PriceBook, random: np.random.Generator, *, is_paced: bool
) -> tuple[float, float]:
    rows = len(case.scores)
    limit_j = request_j * rows
    key = Principal(key_id="key", name="key", daily=DailyLimits(energy_j=limit_j))
    times_s: list[float] = (day * DAY_S + HOUR_S * np.sort(random.uniform(*WORK_HOURS, rows))).tolist()
    expected_j = np.where(case.runnable, case.costs.predicted_energy_j, np.inf)
    left_j, score, refused = limit_j, 0.0, 0
    for row, now_unix_s in zip(random.permutation(rows).tolist(), times_s, strict=True):
        asked = book.priced(_ASKED, key, left_j=left_j, now_unix_s=now_unix_s) if is_paced else _ASKED
        affordable_j: npt.NDArray[np.float64] = np.where(expected_j[row] <= left_j, expected_j[row], np.inf)
        if np.isinf(affordable_j).all():
            refused += 1
            continue
        price_per_j = sum(found.price_per_j for found in asked.scope_prices)
        expert = best_expert(case.probabilities[row], affordable_j, price_per_j)
        joules = float(case.costs.actual_energy_j[row, expert])
        score += float(case.scores[row, expert])
        left_j = max(0.0, left_j - joules)
        known_j = expected_j[row][np.isfinite(expected_j[row])]
        spending = Spending(
            category=None,
            joules=joules,
            known_j=joules,
            charged_j=joules,
            arrived_unix_s=now_unix_s,
            is_answer=True,
            is_cheapest=bool(expected_j[row, expert] <= known_j.min()),
            saving_j=float(np.ptp(known_j)),
            enough_per_j=price_of_thrift(case.probabilities[row], expected_j[row]),
        )
        book.settle(key, spending, left_j=left_j, now_unix_s=now_unix_s)
    return score / rows, refused / rows
