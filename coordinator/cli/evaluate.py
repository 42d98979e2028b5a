"""The command `moe2-coordinator evaluate`: compares moe2's choice of experts with baselines on held-out outcomes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from moe2.common.errors import Moe2Error
from moe2.common.terminal.commandline import optional_packages
from moe2.common.terminal.output import Screen
from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.training.evaluate.report import FIFTHS, EvaluationReport, VoteReport
from moe2.coordinator.training.outcomes import read_outcomes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate`."""
    add_pool_arguments(parser, required=False)
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="compare votes over the answers in a file with one expert alone"
    )
    parser.add_argument(
        "--pool",
        action="append",
        metavar="NAME=A,B,...",
        help="with --answers: a pool of experts; repeat it for each (default: the best four small ones, all, …)",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="networks trained and folded into one: 4, with --answers 1"
    )
    parser.add_argument(
        "--fifth",
        default="0",
        metavar="K",
        help="the fifth of the train rows that is held out, 0 to 4; all: each in turn",
    )
    parser.add_argument("--no-other-sources", action="store_true", help="do not learn from other sources' prompts")
    parser.add_argument(
        "--hosts", metavar="EXPERT=HOST,...", help="where each expert runs (default: the published profiles in turn)"
    )
    parser.add_argument(
        "--answer-tokens", type=float, default=128.0, metavar="N", help="assumed where the file has no answer lengths"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots as PNG and SVG")
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the result and returns the exit code: 0, or 1 after an error that was shown to the user."""
    console = Screen()
    try:
        if args.outcomes is None and args.answers is None:
            raise Moe2Error("There is nothing to evaluate.", remedy="Name --outcomes FILE, --answers FILE, or both.")
        written: dict[str, object] = {}
        if args.outcomes is not None:
            report = _evaluated(args, console)
            _show(report, console)
            written |= msgspec.to_builtins(report)
            if args.plots is not None:
                from moe2.coordinator.training.evaluate.plots import write_plots

                for path in write_plots(report, args.plots):
                    console.print(f"Wrote {path}")
        if args.answers is not None:
            votes = _votes(args, console)
            _show_votes(votes, console)
            written |= msgspec.to_builtins(votes)
        if args.json is not None:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(written)))
    except (Moe2Error, OSError) as error:
        Screen(stderr=True, style="red").print(str(error), soft_wrap=True)
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


def parsed_pools(texts: Sequence[str] | None) -> dict[str, tuple[str, ...]] | None:
    """Parses "NAME=a,b,c" for each pool; None where no pools are given. Raises Moe2Error."""
    if not texts:
        return None
    pools = {}
    for text in texts:
        name, equals, experts = text.partition("=")
        members = tuple(part.strip() for part in experts.split(",") if part.strip())
        if not equals or not name.strip() or len(members) < 2:
            raise Moe2Error(f"--pool: {text!r} is not NAME=A,B,... with two experts at least.")
        pools[name.strip()] = members
    return pools


def _votes(args: argparse.Namespace, console: Console) -> VoteReport:
    pool, _ = chosen_pool(read_outcomes(args.answers), args.source, args.experts)
    pools, hosts = parsed_pools(args.pool), parsed_hosts(args.hosts)
    seeds, fifths = _seeds(args, usual=1), _fifths(args.fifth)
    # PyTorch takes seconds to come: who has named a wrong file need not wait for it.
    with optional_packages("Evaluation", "gate"):
        from moe2.coordinator.training.evaluate.consensus import evaluate_votes
        from moe2.coordinator.training.evaluate.study import with_seeds
    with _training_bar(console) as (bar, task):
        return evaluate_votes(
            pool,
            pools=pools,
            hosts=hosts,
            training=with_seeds(seeds),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            fifths=fifths,
        )


def _fifths(text: str) -> tuple[int, ...]:
    """The fifths that are held out. Raises Moe2Error for what is neither "all" nor a number."""
    if text == "all":
        return tuple(range(FIFTHS))
    try:
        return (int(text),)
    except ValueError as error:
        raise Moe2Error(f"--fifth {text}: it is a number from 0 to {FIFTHS - 1}, or all.") from error


def _seeds(args: argparse.Namespace, usual: int) -> int:
    """The number of seeds. Raises Moe2Error where it makes no sense."""
    seeds = usual if args.seeds is None else int(args.seeds)
    if seeds < 1:
        raise Moe2Error("--seeds must be at least 1.")
    return seeds


@contextmanager
def _training_bar(console: Console) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar of a training."""
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar, bar.add_task("training", total=None)


def _evaluated(args: argparse.Namespace, console: Console) -> EvaluationReport:
    fifths, seeds, hosts = _fifths(args.fifth), _seeds(args, usual=4), parsed_hosts(args.hosts)
    if len(fifths) > 1:
        raise Moe2Error("--fifth all goes with --answers alone.", remedy="With --outcomes, name one fifth.")
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    with optional_packages("Evaluation", "gate"):
        from moe2.coordinator.training.evaluate.study import evaluate, with_seeds
    with _training_bar(console) as (bar, task):
        return evaluate(
            pool,
            auxiliary=None if args.no_other_sources else others,
            hosts=hosts,
            answer_tokens=args.answer_tokens,
            fifth=fifths[0],
            training=with_seeds(seeds),
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


def _show_votes(report: VoteReport, console: Console) -> None:
    from moe2.coordinator.training.evaluate.tables import vote_tables

    console.print(f"Votes, reported on {report.rows['reported']} prompts: {report.reported_on}.")
    console.print(f"  {report.host_marks}")
    if report.left_out:
        console.print(f"  left out, as the file holds no answers of theirs: {', '.join(report.left_out)}")
    for table in vote_tables(report):
        console.print(table)
    for stop in report.early_stop:
        # Where several fifths are reported, each may have chosen others.
        who = f"the {len(stop.members)} voters" if stop.members else "the voters"
        console.print(
            f"{stop.pool}: asking {who} in turn until the outcome is certain takes "
            f"{stop.joules_ratio:.2f} of the joules of asking all, and loses {stop.lost_points:.2f} ± "
            f"{stop.lost_se:.2f} points."
        )
    far = [found for found in report.behind_best if found.behind_points > found.behind_se]
    for found in far:
        within = "without a limit" if found.target_j is None else f"within {found.target_j:g} J"
        console.print(
            f"{found.policy} is behind {found.best_policy} in pool {found.pool!r} {within} by "
            f"{found.behind_points:.2f} ± {found.behind_se:.2f} points."
        )
    if not far:
        console.print("auto is within one standard error of the best policy at every target.")
