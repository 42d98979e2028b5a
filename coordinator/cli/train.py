"""The command `moe2-coordinator train-gate`: trains a gate from recorded outcomes and writes its checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moe2.common.errors import Moe2Error
from moe2.common.terminal.commandline import optional_packages
from moe2.common.terminal.output import Screen
from moe2.coordinator.gate.checkpoint import Manifest, save_checkpoint
from moe2.coordinator.training.feedback_rows import with_feedback
from moe2.coordinator.training.outcomes import Outcomes, OutcomesError, read_outcomes


def add_pool_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the options that choose the rows and experts of an outcomes file. required: whether one must be named."""
    parser.add_argument("--outcomes", type=Path, required=required, metavar="FILE", help="outcomes, .parquet or .jsonl")
    parser.add_argument("--source", help="use only the rows of this source")
    parser.add_argument(
        "--experts", metavar="A,B,...", help="use only these experts (default: all that were run on the rows)"
    )


def chosen_pool(everything: Outcomes, source: str | None, experts: str | None) -> tuple[Outcomes, Outcomes | None]:
    """Returns the rows that the options choose, and those of the other sources; None where there are no others.

    Raises OutcomesError for an unknown source or expert, or if no source is named although there are several.
    """
    named = sorted(set(everything.sources) - {""})
    if source is None and len(named) > 1:
        raise OutcomesError(
            f"The outcomes come from several sources ({', '.join(named)}), whose scores cannot be compared.",
            remedy="Choose one with --source.",
        )
    pool = everything.from_source(source) if source is not None else everything
    if experts is not None:
        pool = pool.with_experts([name.strip() for name in experts.split(",") if name.strip()])
    if source is None:
        return pool, None
    others = [row for row, value in enumerate(everything.sources) if value != source]
    return pool, everything.take(others) if others else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `train-gate`."""
    add_pool_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("gate.safetensors"), metavar="FILE", help="the checkpoint")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="networks trained and folded into one")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the train rows")
    parser.add_argument("--no-other-sources", action="store_true", help="do not learn from other sources' prompts")
    parser.add_argument("--feedback", type=Path, metavar="FILE", help="also learn from users' scores: feedback.jsonl")
    parser.add_argument(
        "--even-if-behind", action="store_true", help="write the gate also where it is clearly behind the best expert"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the manifest, figures included, as JSON")
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    """Trains a gate, saves it and returns the exit code: 0, or 1 after an error that was shown to the user."""
    console = Screen()
    try:
        manifest = _trained(args, console)
        if args.json is not None:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    except (Moe2Error, OSError) as error:
        Screen(stderr=True, style="red").print(str(error), soft_wrap=True)
        return 1
    console.print(f"Wrote {args.out}: {len(manifest.experts)} experts, {manifest.rows['train']} train rows.")
    for name, value in manifest.metrics.items():
        console.print(f"  {name:32s} {value:.4f}")
    return 0


def _trained(args: argparse.Namespace, console: Console) -> Manifest:
    if args.seeds < 1 or (args.epochs is not None and args.epochs < 1):
        raise Moe2Error("--seeds and --epochs must be at least 1.")
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    if args.feedback is not None:
        pool, count = with_feedback(pool, args.feedback)
        console.print(f"{count} users' scores join the train rows.")
    # PyTorch takes seconds to come: who has named a wrong file need not wait for it.
    with optional_packages("Training", "gate"):
        from moe2.coordinator.training.config import TrainingConfig
        from moe2.coordinator.training.train import train_gate
    config = TrainingConfig(seeds=tuple(range(args.seeds)))
    if args.epochs is not None:
        config = replace(config, epochs=args.epochs)
    with Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("training", total=None)
        trained = train_gate(
            pool,
            auxiliary=None if args.no_other_sources else others,
            config=config,
            source=args.source,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(trained.gain.told("the best single expert"))
    if trained.gain.is_clearly_behind and not args.even_if_behind:
        raise Moe2Error(
            f"The gate is clearly behind the best single expert, so {args.out} is not written.",
            remedy="Collect more questions of each kind, or write it with --even-if-behind.",
        )
    gate = trained.gate
    save_checkpoint(args.out, gate.parameters, trained.manifest, gate.votes, gate.by_scoring, gate.answer_tokens)
    return trained.manifest
