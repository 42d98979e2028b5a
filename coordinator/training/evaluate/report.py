"""The report of an evaluation as plain values, ready for JSON; scores are means of 0..1, with standard errors."""

from __future__ import annotations

import msgspec

FIFTHS = 5
"""Parts of the train rows of which one is held out where a file has no test rows."""


class RouterFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one router under one budget."""

    score: float
    """Mean score; a prompt for which no expert fitted counts as 0, for every router alike."""
    standard_error: float
    """Standard error of `score`."""
    answered: float
    """Share of the prompts, 0..1, for which an expert fitted."""
    lead: float
    """Score less moe2's, paired by prompt."""
    lead_standard_error: float
    """Standard error of `lead`."""
    energy_j: float
    """Mean joules of what was run, by real answer lengths where they are known."""
    delay_s: float
    """Mean seconds of what was run, by real answer lengths where they are known."""


class BudgetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all routers under one budget; None is no limit."""

    axis: str
    max_energy_j: float | None
    max_delay_s: float | None
    routers: dict[str, RouterFigures]
    leads_over_told: dict[str, tuple[float, float]] = {}
    """Each router's lead over moe2 that is told the category, and its standard error, paired by prompt."""


class AverageFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one average budget, from a thousand requests in each of several random orders."""

    target_j: float
    """Joules that an answer may take on average."""
    score: float
    """Mean score of moe2 with the price of a joule that it learns on the way."""
    mean_j: float
    """Joules that an answer took on average."""
    se: float
    """Standard error of `score`."""
    furthest_mean_j: float
    """Mean joules of the order that ended furthest from the target."""
    cap_j: float | None
    """The best limit of each request that takes no more on average; None where there is none."""
    cap_score: float
    """Mean score of moe2 under that limit; prompts for which no expert fits count as 0."""
    cap_mean_j: float
    """Joules that it took per answer on average."""
    gain_points: float
    """`score` less `cap_score`, in points of a hundred."""
    gain_se: float
    """Standard error of `gain_points`, paired by prompt."""
    label_score: float
    """Mean score of the best expert per known label, with the price that hindsight finds best."""
    label_mean_j: float
    """Joules that it took on average."""


class DayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a key's daily limit; refused requests score 0."""

    request_j: float
    """Joules that the limit allows each of the day's requests in the mean."""
    score: float
    """Mean score with joules paced over the day, from the second day on."""
    refused: float
    """Share of the requests, 0..1, that the paced limit refused, from the second day on."""
    first_day_score: float
    """Mean score of the first day, when nothing is known of the key."""
    unpaced_score: float
    """Mean score with joules spent until they are gone."""
    unpaced_refused: float
    """Share of the requests, 0..1, that were then refused."""


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a whole evaluation; no figure was measured on rows that were used to choose or train."""

    experts: tuple[str, ...]
    source: str | None
    data_sha256: str
    rows: dict[str, int]
    reported_on: str
    hosts: dict[str, str]
    host_marks: dict[str, dict[str, str]]
    answer_lengths_known: float
    assumed_answer_tokens: float
    gate_calibration_error: float
    gate_calibration_error_uncalibrated: float
    gate_metrics: dict[str, float]
    budgets: tuple[BudgetFigures, ...]
    average: tuple[AverageFigures, ...]
    """Average budgets, by rising target."""
    day: tuple[DayFigures, ...]
    """Daily limits, by rising limit."""
    baselines_ahead: tuple[str, ...]
    """Baselines other than oracles that lead moe2 by more than one standard error, with the budget."""
    baselines_ahead_of_told: tuple[str, ...] = ()
    """Baselines other than oracles that lead moe2 by more than one standard error where moe2 is told each prompt's
    category, as the best expert per known label is."""
