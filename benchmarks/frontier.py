"""Score against energy and delay budgets, moe2 and baselines, on held-out outcomes with published cost profiles.

The same evaluation as `moe2-coordinator evaluate`, with a JSON object of the main figures as the last line:
`score` and `standard_error` of moe2 without limits, each router's score there, `baselines_ahead` (how often, over the
grid of budgets, a baseline other than the oracle leads by more than one standard error) and `worst_lead_points`; both
also over moe2 that is told each prompt's category, as the best expert per known label is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
from rich.console import Console

from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.training.evaluate.plots import write_plots
from moe2.coordinator.training.evaluate.study import MOE2, evaluate, is_baseline, with_seeds
from moe2.coordinator.training.evaluate.tables import tables
from moe2.coordinator.training.outcomes import read_outcomes


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_pool_arguments(parser)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--no-other-sources", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for plots and report.json")
    args = parser.parse_args()
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    auxiliary = None if args.no_other_sources else others
    report = evaluate(
        pool,
        auxiliary=auxiliary,
        training=with_seeds(args.seeds),
        source=args.source,
    )
    console = Console()
    for table in tables(report):
        console.print(table)
    if args.out is not None:
        write_plots(report, args.out)
        (args.out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    loose = report.budgets[0].routers
    rivals = [
        figures.lead for budget in report.budgets for name, figures in budget.routers.items() if is_baseline(name)
    ]
    of_told = [
        lead for budget in report.budgets for name, (lead, _) in budget.leads_over_told.items() if is_baseline(name)
    ]
    print(
        json.dumps(
            {
                "reported_on": report.reported_on,
                "rows": report.rows["reported"],
                "score": round(loose[MOE2].score, 4),
                "standard_error": round(loose[MOE2].standard_error, 4),
                "scores_without_limits": {name: round(figures.score, 4) for name, figures in loose.items()},
                "baselines_ahead": len(report.baselines_ahead),
                "worst_lead_points": round(max(rivals) * 100, 2),
                "baselines_ahead_of_told": len(report.baselines_ahead_of_told),
                "worst_lead_over_told_points": round(max(of_told) * 100, 2),
                "calibration_error": round(report.gate_calibration_error, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
