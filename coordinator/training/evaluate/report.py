"""What an evaluation found: plain values, ready for JSON. Scores are means of 0..1, standard errors are of the mean."""

from __future__ import annotations

import msgspec


class RouterFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One router under one budget.

    answered: share of prompts for which something fitted; the others count as score 0 for every router alike.
    lead, lead_standard_error: this router's score less moe2's, paired by prompt. energy_j, delay_s: mean of what was
    run, by real answer lengths where they are known.
    """

    score: float
    standard_error: float
    answered: float
    lead: float
    lead_standard_error: float
    energy_j: float
    delay_s: float


class BudgetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All routers under one budget; None is no limit."""

    axis: str
    max_energy_j: float | None
    max_delay_s: float | None
    routers: dict[str, RouterFigures]
    leads_over_told: dict[str, tuple[float, float]] = {}
    """Each router's lead over moe2 that is told the category, and its standard error, paired by prompt."""


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole evaluation. Nothing here was measured on rows that were used to choose or train."""

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
    baselines_ahead: tuple[str, ...]
    """Baselines other than oracles that lead moe2 by more than one standard error, with the budget."""
    baselines_ahead_of_told: tuple[str, ...] = ()
    """The same of moe2 that is told each prompt's category, as the best expert per known label is."""
