"""Plots of an evaluation's report as PNG and SVG; this is the only module that uses matplotlib."""

from __future__ import annotations

from pathlib import Path

from moe2.common.errors import Moe2Error
from moe2.coordinator.training.evaluate.report import BudgetFigures, EvaluationReport
from moe2.coordinator.training.evaluate.routers import ORACLES
from moe2.coordinator.training.evaluate.study import ALL_EXPERTS, MOE2

_ASIDE = 0.03
"""Distance between neighbouring routers in a plot, as a share of the distance between budgets."""


def write_plots(report: EvaluationReport, folder: Path) -> list[Path]:
    """Plot scores against energy and against delay budgets, with standard errors; returns the files written.

    Raises Moe2Error where matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Moe2Error("Plots need matplotlib.", remedy="Install moe2[plots], or leave --plots out.") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    assumed = sorted(name for name, marks in report.host_marks.items() if "assumed" in marks.values())
    note = f"costs: published profiles; assumed energy: {', '.join(assumed) or 'none'}"
    for axis, label in (("energy", "energy budget per request (J)"), ("delay", "delay budget per request (s)")):
        budgets = [budget for budget in report.budgets if budget.axis == axis]
        names = [
            name
            for name in budgets[0].routers
            if name != ALL_EXPERTS or any(budget.routers[name].answered for budget in budgets)
        ]
        with mpl.rc_context({"svg.hashsalt": "moe2"}):
            figure = Figure(figsize=(10, 5), layout="constrained")
            axes = figure.add_subplot()
            for number, name in enumerate(names):
                # Budgets are quantiles of the costs and lie close together: each has a place of its own, and each
                # router is a little beside the others, so that the error bars can be told apart.
                aside = (number - (len(names) - 1) / 2) * _ASIDE
                axes.errorbar(
                    [place + aside for place in range(len(budgets))],
                    [budget.routers[name].score for budget in budgets],
                    yerr=[budget.routers[name].standard_error for budget in budgets],
                    label=name,
                    marker="o",
                    markersize=4 if name == MOE2 else 3,
                    capsize=2,
                    elinewidth=0.8,
                    color="black" if name == MOE2 else None,
                    linewidth=2.2 if name == MOE2 else 1.0,
                    linestyle="--" if name in ORACLES else "-",
                    zorder=3 if name == MOE2 else 2,
                )
            axes.set_xticks(
                range(len(budgets)),
                [f"{_limit(budget):g}\n({budget.routers[MOE2].answered:.0%})" for budget in budgets],
            )
            axes.set_xlabel(f"{label}; in brackets the share of prompts for which any expert fits")
            axes.set_ylabel("mean score, ± one standard error (unanswered: 0)")
            axes.set_title(f"{report.source or 'outcomes'}, {report.rows['reported']} prompts: {report.reported_on}")
            axes.grid(axis="y", alpha=0.3)
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
            figure.text(0.01, -0.03, note, fontsize=7)
            for suffix in ("png", "svg"):
                path = folder / f"score_by_{axis}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(path, dpi=150, metadata=metadata, bbox_inches="tight")
                written.append(path)
    return written


def _limit(budget: BudgetFigures) -> float:
    value = budget.max_energy_j if budget.axis == "energy" else budget.max_delay_s
    if value is None:
        raise ValueError(f"a budget on the {budget.axis} axis has no limit")
    return value
