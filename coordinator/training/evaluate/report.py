"""The reports of evaluations, of routers and of votes, as plain values, ready for JSON; scores are means of 0..1.

Errors are standard errors.
"""

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


class PolicyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy reached on the held-out rows, within one target."""

    pool: str
    target_j: float | None
    policy: str
    score: float
    """Mean score, 0..1."""
    score_se: float
    mean_j: float
    asked_mean: float
    """Experts asked per question."""
    gain_points: float
    """Score less that of the best single expert within the target, in points of a hundred, paired by row."""
    gain_se: float
    members: tuple[str, ...] = ()
    """The fixed expert or voters, in the order in which they are asked; empty where they depend on the question."""


class EarlyStop(msgspec.Struct, frozen=True, kw_only=True):
    """What asking in turn saves and costs against asking the same voters all."""

    pool: str
    members: tuple[str, ...]
    """The voters; empty where each fifth of the questions has others."""
    lost_points: float
    lost_se: float
    joules_ratio: float


class BehindBest(msgspec.Struct, frozen=True, kw_only=True):
    """How far `auto` is behind the best policy within one target; negative where it is ahead of all others."""

    pool: str
    target_j: float | None
    policy: str
    """`auto`, or `auto_label_known` where the client names the prompt's category."""
    best_policy: str
    behind_points: float
    behind_se: float


class VoteReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole evaluation of votes."""

    pools: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    reported_on: str
    host_marks: str
    consensus: tuple[PolicyFigures, ...]
    early_stop: tuple[EarlyStop, ...]
    behind_best: tuple[BehindBest, ...]
    left_out: tuple[str, ...] = ()
    """Experts of the file that are in no pool unless they are named, as it holds no answer of theirs."""
