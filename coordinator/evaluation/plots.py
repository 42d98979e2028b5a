"""The evaluation as pictures, PNG and SVG: the only user of matplotlib."""

from __future__ import annotations

from pathlib import Path

from moe2.common.errors import Moe2Error
from moe2.coordinator.evaluation.report import BudgetFigures, EvaluationReport
from moe2.coordinator.evaluation.study import ALL_EXPERTS, MOE2


def write_plots(report: EvaluationReport, folder: Path) -> list[Path]:
    """Score against energy and against delay budgets, with standard errors. Gives the files written.

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
        with mpl.rc_context({"svg.hashsalt": "moe2"}):
            figure = Figure(figsize=(8, 5), layout="constrained")
            axes = figure.add_subplot()
            for name in budgets[0].routers:
                if name == ALL_EXPERTS and not any(budget.routers[name].answered for budget in budgets):
                    continue
                axes.errorbar(
                    [_limit(budget) for budget in budgets],
                    [budget.routers[name].score for budget in budgets],
                    yerr=[budget.routers[name].standard_error for budget in budgets],
                    label=name,
                    marker="o",
                    markersize=3,
                    capsize=2,
                    color="black" if name == MOE2 else None,
                    linewidth=2.2 if name == MOE2 else 1.2,
                )
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.set_ylabel("mean score (unanswered: 0)")
            axes.set_title(f"{report.source or 'outcomes'}, {report.rows['reported']} prompts: {report.reported_on}")
            axes.legend(fontsize=7, loc="lower right")
            axes.annotate(note, (0, -0.14), xycoords="axes fraction", fontsize=7)
            for suffix in ("png", "svg"):
                path = folder / f"score_by_{axis}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    return written


def _limit(budget: BudgetFigures) -> float:
    value = budget.max_energy_j if budget.axis == "energy" else budget.max_delay_s
    if value is None:
        raise ValueError(f"a budget on the {budget.axis} axis has no limit")
    return value
