"""Average budgets compared with limits of each request: what a learned price of a joule is worth. PURE.

Requests come in random order, and the coordinator's own pacer learns the price from what each answer takes, from
nothing on. The rivals are the best limit of each request that takes no more on average, and the best expert per known
label with the price that hindsight finds best.

Daily limits are compared, too: joules paced over the day against joules spent until they are gone. A key asks every
reported question once a day, at random moments of a working day, and its limit allows each request so many joules in
the mean. The coordinator's own price book paces it, from knowing nothing of the key on the first day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.coordinator.choosing.fine_level import SAME_SCORE, price_of_thrift
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.provisioning.pacer import Price, settled
from moe2.coordinator.provisioning.price_book import Averages, PriceBook, Spending
from moe2.coordinator.provisioning.rhythm import DAY_S, HOUR_S
from moe2.coordinator.training.evaluate.profiles import Costs
from moe2.coordinator.training.evaluate.report import AverageFigures, DayFigures
from moe2.coordinator.training.evaluate.routers import score_of

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

REQUESTS = 1000
"""Requests of one run, in random order; every prompt comes once before any comes again."""
RUNS = 20
"""Orders that the figures are the mean of."""
MAX_CAPS = 400
"""Limits of each request that are tried."""
_SHARES = (0.1, 0.2, 0.35, 0.5, 0.67, 0.8, 0.9)
"""Where the targets are between the cheapest answers there are and those of a fleet without an average."""
_HALVINGS = 60
DAYS = 5
"""Days of one key; the first one, of which nothing is known beforehand, is reported apart."""
WORK_HOURS = (8, 18)
"""Between these hours of the day the requests come."""
_ASKED = SelectionRequest(model="moe2", demand=Demand(1, 1))


@dataclass(frozen=True)
class Case:
    """Prompts with what is known of them before, and what came of them."""

    probabilities: FloatArray
    """(rows, N) the gate's."""
    scores: FloatArray
    """(rows, N) of the answers, NaN where not run."""
    costs: Costs

    @property
    def runnable(self) -> BoolArray:
        """(rows, N) True where the answer is known."""
        return ~np.isnan(self.scores)


def average_figures(case: Case, labels: FloatArray, seed: int = 0) -> tuple[AverageFigures, ...]:
    """The figures of every target. labels: (rows, N) mean score of each expert on each prompt's known kind."""
    limits = caps(case)
    return tuple(_figures(case, target_j, limits, labels, seed) for target_j in targets(case))


def targets(case: Case) -> tuple[float, ...]:
    """The averages to aim at: joules between those of the cheapest experts and those taken without an average."""
    rows = np.arange(len(case.scores))

    def mean_j(values: FloatArray) -> float:
        return float(case.costs.actual_energy_j[rows, _taken(case, values, 0.0)].mean())

    least_j, most_j = mean_j(-case.costs.predicted_energy_j), mean_j(case.probabilities)
    wanted = {float(f"{least_j + share * (most_j - least_j):.3g}") for share in _SHARES}
    return tuple(sorted(target_j for target_j in wanted if target_j > least_j)) or (float(f"{most_j:.3g}"),)


def _figures(case: Case, target_j: float, limits: tuple[Fixed, ...], labels: FloatArray, seed: int) -> AverageFigures:
    counts, mean_j, furthest = paced(case, target_j, seed)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    score = score_of(shares, case.scores)
    # A limit whose mean is as close to the target as the price's own is no worse for it.
    allowed_j = max(target_j, mean_j)
    cap = max((cap for cap in limits if cap.mean_j <= allowed_j), key=lambda cap: float(cap.score.mean()), default=None)
    label = with_hindsight(case, labels, target_j)
    cap_score = np.zeros(len(score)) if cap is None else cap.score
    gain = 100 * (score - cap_score)
    return AverageFigures(
        target_j=target_j,
        score=float(score.mean()),
        mean_j=mean_j,
        se=_standard_error(score),
        furthest_mean_j=furthest,
        cap_j=None if cap is None else cap.limit_j,
        cap_score=float(cap_score.mean()),
        cap_mean_j=0.0 if cap is None else cap.mean_j,
        gain_points=float(gain.mean()),
        gain_se=_standard_error(gain),
        label_score=float(label.score.mean()),
        label_mean_j=label.mean_j,
    )


@dataclass(frozen=True, eq=False)
class Fixed:
    """A way to choose that learns nothing on the way."""

    limit_j: float
    score: FloatArray
    """(rows,) 0 where nobody fits."""
    mean_j: float
    """Joules per answer; prompts that nobody answers do not count."""


def paced(case: Case, target_j: float, seed: int) -> tuple[npt.NDArray[np.int64], float, float]:
    """How often each expert answered each prompt (rows, N), the mean joules, and those of the run furthest off."""
    rows, random = len(case.scores), np.random.default_rng(seed)
    counts = np.zeros(case.scores.shape, dtype=np.int64)
    actual_j, means = case.costs.actual_energy_j, []
    expected_j = np.where(case.runnable, case.costs.predicted_energy_j, np.inf)
    least_j = expected_j.min(axis=1)
    saving_j = np.where(case.runnable, case.costs.predicted_energy_j, -np.inf).max(axis=1) - least_j
    for _ in range(RUNS):
        orders = [random.permutation(rows) for _ in range(-(-REQUESTS // rows))]
        price, spent_j = Price(), 0.0
        for row in np.concatenate(orders)[:REQUESTS].tolist():
            expert = best_expert(case.probabilities[row], expected_j[row], price.price_per_j)
            joules = float(actual_j[row, expert])
            counts[row, expert] += 1
            spent_j += joules
            is_cheapest = bool(expected_j[row, expert] <= least_j[row])
            price = settled(
                price,
                joules,
                target_j,
                is_cheapest=is_cheapest,
                saving_j=float(saving_j[row]),
                enough_per_j=price_of_thrift(case.probabilities[row], expected_j[row]),
            )
        means.append(spent_j / REQUESTS)
    return counts, float(np.mean(means)), float(max(means, key=lambda mean: abs(mean - target_j)))


def best_expert(values: FloatArray, expected_j: FloatArray, price_per_j: float) -> int:
    """The expert that the coordinator's fine level takes: of equals by value less price the one with fewest joules."""
    net = np.where(np.isinf(expected_j), -np.inf, values - price_per_j * np.nan_to_num(expected_j, posinf=0.0))
    return int(np.where(net >= net.max() - SAME_SCORE, expected_j, np.inf).argmin())


def _taken(case: Case, values: FloatArray, price_per_j: float) -> npt.NDArray[np.int64]:
    """(rows,) what `best_expert` takes of values (rows, N)."""
    joules = case.costs.predicted_energy_j
    net = np.where(case.runnable, values - price_per_j * joules, -np.inf)
    return np.asarray(np.where(net >= net.max(axis=1, keepdims=True) - SAME_SCORE, joules, np.inf).argmin(axis=1))


def caps(case: Case) -> tuple[Fixed, ...]:
    """Every limit of each request that makes a difference, up to `MAX_CAPS`, with the best expert that keeps it."""
    joules = case.costs.predicted_energy_j
    levels = np.unique(np.quantile(joules[case.runnable], np.linspace(0.0, 1.0, MAX_CAPS), method="nearest"))
    rows, found = np.arange(len(joules)), []
    for level in levels.tolist():
        fits = case.runnable & (joules <= level)
        chosen, answered = np.where(fits, case.probabilities, -np.inf).argmax(axis=1), fits.any(axis=1)
        score = np.where(answered, np.nan_to_num(case.scores[rows, chosen]), 0.0)
        mean_j = float(case.costs.actual_energy_j[rows, chosen][answered].mean())
        found.append(Fixed(level, score, mean_j))
    return tuple(found)


def with_hindsight(case: Case, values: FloatArray, target_j: float) -> Fixed:
    """The best by `values` (rows, N) less the lowest fixed price whose mean keeps the target, if any does."""
    rows = np.arange(len(values))

    def under(price_per_j: float) -> Fixed:
        chosen = _taken(case, values, price_per_j)
        mean_j = float(case.costs.actual_energy_j[rows, chosen].mean())
        return Fixed(price_per_j, np.nan_to_num(case.scores[rows, chosen]), mean_j)

    low, high = 0.0, 100.0 / target_j
    if under(low).mean_j <= target_j:
        return under(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if under(middle).mean_j <= target_j else (middle, high)
    return under(high)


def _standard_error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))


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
