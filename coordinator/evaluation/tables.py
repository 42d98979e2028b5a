"""The evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from moe2.coordinator.evaluation.report import BudgetFigures, EvaluationReport
from moe2.coordinator.evaluation.study import MOE2


def limit_text(value: float | None, unit: str) -> str:
    """A limit with its unit, or "none"."""
    return "none" if value is None else f"{value:g} {unit}"


def tables(report: EvaluationReport) -> Iterator[Table]:
    """First every router without limits, then all routers' scores under each budget."""
    yield _loose(report.budgets[0])
    for axis, title in (
        ("energy", "Score under an energy budget"),
        ("delay", "Score under a delay budget"),
        ("both", "Score under both"),
    ):
        rows = [budget for budget in report.budgets if budget.axis == axis]
        if rows:
            yield _sweep(title, rows)


def _loose(budget: BudgetFigures) -> Table:
    table = Table(title="Without limits: one expert per prompt (± one standard error)")
    for name in ("router", "score", "lead over moe2 (points)", "mean J", "mean s"):
        table.add_column(name, justify="left" if name == "router" else "right")
    for name, figures in sorted(budget.routers.items(), key=lambda entry: -entry[1].score):
        lead = "" if name == MOE2 else f"{figures.lead * 100:+.2f} ± {figures.lead_standard_error * 100:.2f}"
        score = f"{figures.score:.4f} ± {figures.standard_error:.4f}"
        table.add_row(name, score, lead, f"{figures.energy_j:.0f}", f"{figures.delay_s:.1f}")
    return table


def _sweep(title: str, budgets: list[BudgetFigures]) -> Table:
    table = Table(title=title)
    table.add_column("energy", justify="right")
    table.add_column("delay", justify="right")
    table.add_column("answered", justify="right")
    names = list(budgets[0].routers)
    for name in names:
        table.add_column(name, justify="right")
    for budget in budgets:
        cells = [f"{budget.routers[name].score:.3f}" for name in names]
        answered = f"{budget.routers[MOE2].answered:.0%}"
        table.add_row(limit_text(budget.max_energy_j, "J"), limit_text(budget.max_delay_s, "s"), answered, *cells)
    return table
