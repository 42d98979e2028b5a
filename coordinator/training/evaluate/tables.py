"""Tables for a terminal that show an evaluation's report."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from moe2.coordinator.training.evaluate.report import (
    AverageFigures,
    BudgetFigures,
    DayFigures,
    EvaluationReport,
    PolicyFigures,
    VoteReport,
)
from moe2.coordinator.training.evaluate.study import MOE2

NO_LIMIT = "none"


def limit_text(value: float | None, unit: str) -> str:
    """A limit with its unit, or "none"."""
    return NO_LIMIT if value is None else f"{value:g} {unit}"


def tables(report: EvaluationReport) -> Iterator[Table]:
    """The tables of a report: first every router without limits, then all routers' scores under each budget."""
    yield _loose(report.budgets[0])
    for axis, title in (
        ("energy", "Score under an energy budget"),
        ("delay", "Score under a delay budget"),
        ("both", "Score under both"),
    ):
        rows = [budget for budget in report.budgets if budget.axis == axis]
        if rows:
            yield _sweep(title, rows)
    yield _averages(report.average)
    yield _days(report.day)


def _loose(budget: BudgetFigures) -> Table:
    table = Table(title="Without limits: one expert per prompt (± one standard error)")
    for name in ("router", "score", "lead over moe2 (points)", "mean J", "mean s"):
        table.add_column(name, justify="left" if name == "router" else "right")
    for name, figures in sorted(budget.routers.items(), key=lambda entry: -entry[1].score):
        lead = "" if name == MOE2 else f"{figures.lead * 100:+.2f} ± {figures.lead_standard_error * 100:.2f}"
        score = f"{figures.score:.4f} ± {figures.standard_error:.4f}"
        table.add_row(name, score, lead, f"{figures.energy_j:.0f}", f"{figures.delay_s:.1f}")
    return table


def _averages(figures: tuple[AverageFigures, ...]) -> Table:
    table = Table(
        title="Average budgets: a learned price against the best limit of each request (± one standard error)"
    )
    for name in ("J wanted", "J taken", "score", "best limit", "its J", "gain (points)", "label known"):
        table.add_column(name, justify="right")
    for row in figures:
        table.add_row(
            f"{row.target_j:g}",
            f"{row.mean_j:.1f}",
            f"{row.score:.3f} ± {row.se:.3f}",
            f"{row.cap_score:.3f}",
            f"{row.cap_mean_j:.1f}",
            f"{row.gain_points:+.1f} ± {row.gain_se:.1f}",
            f"{row.label_score:.3f}",
        )
    return table


def _days(figures: tuple[DayFigures, ...]) -> Table:
    table = Table(title="Daily limits: joules paced over the day against joules spent until they are gone")
    for name in ("J a request", "paced", "refused", "first day", "not paced", "refused"):
        table.add_column(name, justify="right")
    for row in figures:
        table.add_row(
            f"{row.request_j:g}",
            f"{row.score:.3f}",
            f"{row.refused:.1%}",
            f"{row.first_day_score:.3f}",
            f"{row.unpaced_score:.3f}",
            f"{row.unpaced_refused:.1%}",
        )
    return table


def _sweep(title: str, budgets: list[BudgetFigures]) -> Table:
    """The table of a sweep with a row per router and a column per budget, which is narrower than the other way."""
    table = Table(title=title, padding=0)  # nine budgets fit a terminal of 80 columns
    table.add_column("router")
    for budget in budgets:
        limits = (limit_text(budget.max_energy_j, "J"), limit_text(budget.max_delay_s, "s"))
        table.add_column("\n".join(text for text in limits if text != NO_LIMIT), justify="right", no_wrap=True)
    for name in budgets[0].routers:
        table.add_row(name, *(f"{budget.routers[name].score:.3f}" for budget in budgets))
    table.add_section()
    table.add_row("prompts that an expert fits", *(f"{budget.routers[MOE2].answered:.0%}" for budget in budgets))
    return table


def vote_tables(report: VoteReport) -> Iterator[Table]:
    """The tables of an evaluation of votes: for each pool every policy's score within each target of joules."""
    for pool, experts in report.pools.items():
        rows = [figures for figures in report.consensus if figures.pool == pool]
        policies = list(dict.fromkeys(figures.policy for figures in rows))
        table = Table(title=f"{pool}: {', '.join(experts)}\nscore (joules)", padding=0)
        table.add_column("mean J at most", justify="right")
        for policy in policies:
            table.add_column(policy.replace("_", " "), justify="right")
        for target_j in dict.fromkeys(figures.target_j for figures in rows):
            found = {figures.policy: figures for figures in rows if figures.target_j == target_j}
            cells = (_vote_cell(found.get(policy)) for policy in policies)
            table.add_row(NO_LIMIT if target_j is None else f"{target_j:g}", *cells)
        yield table


def _vote_cell(figures: PolicyFigures | None) -> str:
    return "–" if figures is None else f"{figures.score:.3f} ({figures.mean_j:.0f})"
