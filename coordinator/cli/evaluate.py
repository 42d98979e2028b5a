"""The command `moe2-coordinator evaluate`: compares moe2's choice of experts with baselines on held-out outcomes."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moe2.common.errors import Moe2Error
from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.training.evaluate.report import EvaluationReport
from moe2.coordinator.training.outcomes import read_outcomes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate`."""
    add_pool_arguments(parser)
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="networks trained and folded into one")
    parser.add_argument("--no-other-sources", action="store_true", help="do not learn from other sources' prompts")
    parser.add_argument(
        "--hosts", metavar="EXPERT=HOST,...", help="where each expert runs (default: the published profiles in turn)"
    )
    parser.add_argument(
        "--answer-tokens", type=float, default=128.0, metavar="N", help="assumed where the file has no answer lengths"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots as PNG and SVG")


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the result and returns the exit code: 0, or 1 after an error that was shown to the user."""
    console = Console(markup=False)
    try:
        report = _evaluated(args, console)
        _show(report, console)
        if args.json is not None:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        if args.plots is not None:
            from moe2.coordinator.training.evaluate.plots import write_plots

            for path in write_plots(report, args.plots):
                console.print(f"Wrote {path}")
    except (Moe2Error, OSError) as error:
        Console(stderr=True, style="red").print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def parsed_hosts(text: str | None) -> dict[str, str] | None:
    """Parses "a=rtx-4090,b=agx-orin-30w" into a mapping; None where no hosts are given. Raises Moe2Error."""
    if text is None:
        return None
    hosts = {}
    for entry in text.split(","):
        expert, equals, host = entry.strip().partition("=")
        if not equals or not expert or not host:
            raise Moe2Error(f"--hosts: {entry.strip()!r} is not EXPERT=HOST.")
        hosts[expert] = host
    return hosts


def _evaluated(args: argparse.Namespace, console: Console) -> EvaluationReport:
    try:
        from moe2.coordinator.training.evaluate.study import evaluate, with_seeds
    except ImportError as error:
        raise Moe2Error(
            f"Evaluation needs a package that is missing ({error.name}).", remedy="Install moe2[gate]."
        ) from error
    if args.seeds < 1:
        raise Moe2Error("--seeds must be at least 1.")
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None)
        return evaluate(
            pool,
            auxiliary=None if args.no_other_sources else others,
            hosts=parsed_hosts(args.hosts),
            answer_tokens=args.answer_tokens,
            training=with_seeds(args.seeds),
            source=args.source,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _show(report: EvaluationReport, console: Console) -> None:
    from moe2.coordinator.training.evaluate.tables import tables

    console.print(f"Reported on {report.rows['reported']} prompts: {report.reported_on}.")
    for expert, host in report.hosts.items():
        marks = ", ".join(f"{figure} {mark}" for figure, mark in report.host_marks[host].items())
        console.print(f"  {expert} on {host} ({marks})")
    if report.answer_lengths_known < 1:
        known, tokens = f"{report.answer_lengths_known:.0%}", f"{report.assumed_answer_tokens:g}"
        console.print(f"  answer lengths known: {known}; assumed elsewhere: {tokens} tokens")
    for table in tables(report):
        console.print(table)
    before, after = report.gate_calibration_error_uncalibrated, report.gate_calibration_error
    console.print(f"Calibration error of the gate on these prompts: {after:.3f} ({before:.3f} uncalibrated).")
    if report.baselines_ahead:
        console.print("Ahead of moe2 by more than one standard error:")
        for line in report.baselines_ahead:
            console.print(f"  {line}")
    else:
        console.print("No baseline but the oracle is ahead of moe2 by more than one standard error.")
    if report.baselines_ahead_of_told:
        console.print("Ahead of moe2 that is told the category:")
        for line in report.baselines_ahead_of_told:
            console.print(f"  {line}")
