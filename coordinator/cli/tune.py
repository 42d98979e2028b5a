"""The command `moe2-coordinator tune`: from a fleet to a trained gate in one go.

It asks every model a set of short questions, trains a gate on the answers, shows what was gained, installs the gate and
has the running coordinator read it. Each step can be interrupted, by Ctrl-C, SIGTERM or a hang-up at once: answers are
kept in the state directory as they come, the gate's file is the former one or the new one, and the same command goes on
from there.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from moe2.common.errors import Moe2Error
from moe2.common.localclient import STATUS_ROUTE, NotRunningError, RefusedError, fetch
from moe2.common.statefile import locked, stamp_of
from moe2.common.status import CoordinatorStatus
from moe2.common.terminal.commandline import add_config, stopped_alike
from moe2.common.terminal.figures import printable
from moe2.common.terminal.output import Screen
from moe2.coordinator.choosing.explain import Decision
from moe2.coordinator.cli.collect import add_access, asking, tell_failures, wanted_experts
from moe2.coordinator.gate.checkpoint import (
    CheckpointError,
    Manifest,
    checkpoint_sha256,
    load_checkpoint,
    save_checkpoint,
)
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.plan import PlanAnswer
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH
from moe2.coordinator.settings import CoordinatorSettings, settings_of
from moe2.coordinator.training.collect.asking import Asker, LiveExpert
from moe2.coordinator.training.collect.outfile import Outfile
from moe2.coordinator.training.collect.questions import Metric, Question, read_questions
from moe2.coordinator.training.collect.survey import Report, missing, survey
from moe2.coordinator.training.outcomes import Outcomes, read_outcomes
from moe2.coordinator.training.tuning import (
    EXPECTED_TOKENS,
    FOLDS,
    Comparison,
    ExpertLoad,
    Limits,
    Prediction,
    believed_scores,
    check_questions,
    compared,
    costs_of,
    dearest_j,
    number_of,
    predicted,
)

INTERRUPTED = 130
NOT_INSTALLED = 1
OUTCOMES_FILE = "tune-outcomes.jsonl"
LOCKED_NAME = "tune"
"""In the state directory, the file whose lock one run at a time holds."""
PROBES = 3
"""Questions that each expert is asked first, where nobody knows what a question takes there."""
RELOAD_S = 30.0
POLL_S = 0.2


def usual_questions() -> Path:
    """Returns the path of the question set that comes with moe2."""
    return Path(str(resources.files("moe2.coordinator.training.collect") / "usual_questions.jsonl"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `tune`."""
    parser.add_argument("--max-j", type=float, metavar="J", help="stop asking before this many joules are spent")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop asking after so many minutes")
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="ask only this model or expert; may be given several times"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and ask nothing")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="another question set, as for `collect`")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time; default: 4")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="longest answer; default: 128")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="networks trained and folded into one")
    parser.add_argument("--url", help="the coordinator's API; default: as the running coordinator says")
    add_access(parser)
    parser.add_argument(
        "--even-if-behind", action="store_true", help="install the gate also where it is clearly behind"
    )
    add_config(parser, DEFAULT_CONFIG_PATH)
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    """Tunes the fleet and returns the exit code: 0, 1 where no gate was installed, 130 where it was stopped.

    Raises Moe2Error where the fleet cannot be asked, or the answers cannot be used.
    """
    if min(args.concurrency, args.max_tokens, args.seeds) < 1:
        raise Moe2Error("--concurrency, --max-tokens and --seeds must be at least 1.")
    for name, limit in (("--max-j", args.max_j), ("--max-minutes", args.max_minutes)):
        if limit is not None and not 0 < limit < float("inf"):
            raise Moe2Error(f"{name} must be positive, not {limit:g}.")
    if importlib.util.find_spec("torch") is None and not args.dry_run:
        raise Moe2Error("Training needs torch, which is missing.", remedy="Install moe2[gate].")
    settings = settings_of(args.config)
    console = Screen()
    tuning = _Tuning(args, settings, console)
    try:
        # Two runs would ask the same questions twice, and write into the same file.
        with locked(settings.coordinator.state_dir / LOCKED_NAME, waits=False), stopped_alike():
            return tuning.run()
    except BlockingIOError as error:
        raise Moe2Error(
            f"Another `tune` of this coordinator is running ({settings.coordinator.state_dir}).",
            remedy="Wait for it, or stop it with Ctrl-C: what was answered is kept.",
        ) from error
    except KeyboardInterrupt:
        tuning.tell_stopped()
        return INTERRUPTED
    except PermissionError as error:
        raise Moe2Error(f"No permission: {error}.", remedy="Run it as root, or as the coordinator's user.") from error


@dataclass(frozen=True)
class _Asked:
    """What the fleet has answered, and what the coordinator thought of its models before."""

    outcomes: Outcomes
    before: npt.NDArray[np.float64]
    """(rows, N) the running coordinator's scores of the outcomes' models, as `believed_scores` has them."""
    columns: Mapping[str, str]
    """What the live experts' scores are kept under, by their keys."""
    learned: Collection[str]
    """What those are kept under that the running coordinator judges by a gate which has learned from these outcomes."""


class _Tuning:
    """One run of the command, step by step."""

    def __init__(self, args: argparse.Namespace, settings: CoordinatorSettings, console: Console) -> None:
        self._args = args
        self._settings = settings
        self._console = console
        self._socket = settings.coordinator.socket
        self._out = settings.coordinator.state_dir / OUTCOMES_FILE
        if args.questions is not None:
            self._out = self._out.with_name(f"tune-outcomes-{args.questions.stem}.jsonl")
        self._former_gate = stamp_of(settings.gate_path, follow_links=True)

    def run(self) -> int:
        """Asks, trains and installs; returns the exit code."""
        asked = asyncio.run(self._ask())
        if asked is None:
            return 0
        # In an event loop a first Ctrl-C would wait for the end of a training.
        gate, manifest, comparison = self._train(asked)
        show(comparison, self._console)
        if asked.learned:
            self._console.print(
                "The running gate has learned from these answers: in its place stands one that was trained without "
                "those that it is judged by.",
                soft_wrap=True,
            )
        if comparison.is_clearly_behind and not self._args.even_if_behind:
            self._console.print(
                "The gate is clearly behind, so it is not installed (--even-if-behind installs it all the same)."
            )
            return NOT_INSTALLED
        self._install(gate, manifest)
        known = {key for key, column in asked.columns.items() if column in asked.outcomes.experts}
        return asyncio.run(self._reload(known))

    def tell_stopped(self) -> None:
        """Says what is there after an end before the end."""
        path = self._settings.gate_path
        if stamp_of(path, follow_links=True) == self._former_gate:
            told = "Stopped. What was answered is kept; the same command goes on from there."
        else:
            told = (
                f"Stopped. The new gate is in {path}; whether the running coordinator has read it was not waited for. "
                "The same command sees to that."
            )
        self._console.print(told, soft_wrap=True)

    async def _ask(self) -> _Asked | None:
        """Have the fleet answer what is left, and return what is known then; None where nothing was to be asked."""
        args, console = self._args, self._console
        status = await self._status()
        questions = read_questions(args.questions or usual_questions())
        check_questions(questions)
        outfile = Outfile(self._out)
        if outfile.repaired:
            console.print(f"{self._out}: the last line was cut off and is dropped; its question is asked again.")
        async with asking(args.url or status.api_url, args) as asker:
            live = await asker.live_experts()
            experts = wanted_experts(live, args.model)
            if len({expert.identity for expert in live}) < 2:
                raise Moe2Error(
                    f"The fleet has one model only ({live[0].model}): there is nothing to choose from.",
                    remedy="Add an agent with another model first.",
                )
            loads = await self._loads(questions, experts, outfile)
            spent_j = 0.0
            if not args.dry_run and any(load.requests and load.joules is None for load in loads):
                spent_j = await self._probe(asker, questions, experts, outfile)
                loads = await self._loads(questions, experts, outfile)
            self._announce(questions, experts, predicted(loads, args.concurrency))
            if args.dry_run:
                return None
            limits = Limits(
                max_j=args.max_j,
                spent_j=spent_j,
                max_s=None if args.max_minutes is None else 60 * args.max_minutes,
                expected_j=max((max(load.joules or 0.0, load.dearest_j) for load in loads), default=0.0),
            )
            self._check_limits(limits, loads)
            report, why = await self._survey(asker, questions, experts, outfile, limits)
        self._tell(report, why)
        return await self._known({expert.key: expert.column for expert in live})

    async def _running(self) -> CoordinatorStatus:
        """What the running coordinator says of itself. Raises NotRunningError."""
        return msgspec.json.decode(await asyncio.to_thread(fetch, self._socket, STATUS_ROUTE), type=CoordinatorStatus)

    async def _status(self) -> CoordinatorStatus:
        try:
            return await self._running()
        except NotRunningError as error:
            raise Moe2Error(
                f"The coordinator does not run: {error}", remedy="Start it, or name its configuration with --config."
            ) from error

    async def _decision(self, prompt: str) -> Decision | None:
        """The running coordinator's decision for a prompt, which is not run."""
        body = {"model": "moe2", "messages": [{"role": "user", "content": prompt}], "max_tokens": EXPECTED_TOKENS}
        try:
            content = await asyncio.to_thread(
                fetch, self._socket, PLAN_PATH, body=msgspec.json.encode(body), timeout_s=30.0
            )
        except RefusedError as error:
            raise Moe2Error(f"The coordinator cannot plan this: {error.message}") from error
        return msgspec.json.decode(content, type=PlanAnswer).decision

    async def _probe(
        self, asker: Asker, questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile
    ) -> float:
        """Ask each expert a few questions of the set, so that it is known what the others will take; their joules."""
        self._console.print(f"Asking each expert {PROBES} questions, to know what the others will take …")
        limits = Limits(max_j=self._args.max_j)
        report = await survey(
            asker,
            questions[:PROBES],
            experts,
            outfile,
            concurrency=1,
            progress=lambda: None,
            is_over=lambda so_far: limits.reached(so_far, 0.0) is not None,
        )
        return report.joules

    async def _loads(
        self, questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile
    ) -> list[ExpertLoad]:
        """What is left to ask of each expert, with what a question takes there.

        That is the mean of its answers so far, else what the coordinator predicts for a short answer.
        """
        decision = await self._decision(questions[0].asked)
        rows = {row.expert: row for row in decision.experts} if decision else {}
        loads = []
        for expert in experts:
            answers = [(question, outfile.answer(question, expert.key, expert.file_sha256)) for question in questions]
            left = [question for question, answer in answers if answer is None]
            given = [answer for _, answer in answers if answer is not None]
            known = costs_of(given)
            row = rows.get(expert.key)
            loads.append(
                ExpertLoad(
                    agent=expert.key.partition("/")[0],
                    # A question with options is asked twice.
                    requests=len(left) + sum(question.metric is Metric.CHOICE for question in left),
                    joules=known[0] or (row.energy_j.p50 if row and row.energy_j else None),
                    seconds=known[1] or (row.total_s.p50 if row and row.total_s else None),
                    dearest_j=dearest_j(given),
                )
            )
        return loads

    def _announce(self, questions: Sequence[Question], experts: Sequence[LiveExpert], prediction: Prediction) -> None:
        models = printable(", ".join(sorted({expert.model for expert in experts})))
        self._console.print(
            f"{number_of(len(questions), 'question')} for {number_of(len(experts), 'expert')} ({models}): "
            f"{number_of(prediction.requests, 'request')} to go.",
            soft_wrap=True,
        )
        if not prediction.requests:
            return
        joules = "an unknown number of joules" if prediction.joules is None else f"about {prediction.joules:,.0f} J"
        if prediction.unmeasured_j and prediction.joules is not None:
            joules += f" and an unknown number for {prediction.unmeasured_j} requests to experts that nobody measured"
        minutes = "an unknown time"
        if prediction.seconds is not None:
            minutes = f"about {number_of(max(round(prediction.seconds / 60), 1), 'minute')}"
        self._console.print(
            f"They will take {joules} and {minutes}. Ctrl-C stops, and nothing is lost.", soft_wrap=True
        )

    @staticmethod
    def _check_limits(limits: Limits, loads: Sequence[ExpertLoad]) -> None:
        if limits.max_j is not None and any(load.joules is None for load in loads if load.requests):
            raise Moe2Error(
                "Joules cannot be limited: of some experts they have never been measured.",
                remedy="Use --max-minutes instead; `moe2-agent doctor` tells what their hosts can measure.",
            )

    async def _survey(
        self,
        asker: Asker,
        questions: Sequence[Question],
        experts: Sequence[LiveExpert],
        outfile: Outfile,
        limits: Limits,
    ) -> tuple[Report, str | None]:
        """Ask what is left, and return what came of it and why it ended early; None where it did not."""
        started_s = time.monotonic()
        why: list[str] = []

        def is_over(report: Report) -> bool:
            reason = limits.reached(report, time.monotonic() - started_s)
            if reason is not None and not why:
                why.append(reason)
            return reason is not None

        total = missing(questions, experts, outfile)
        columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("asking", total=total)
            report = await survey(
                asker,
                questions,
                experts,
                outfile,
                concurrency=self._args.concurrency,
                progress=lambda: bar.advance(task),
                is_over=is_over,
            )
        return report, why[0] if why else None

    def _tell(self, report: Report, why: str | None) -> None:
        spent = f", {report.joules:,.0f} J" if report.joules or not report.unmeasured else ""
        unmeasured = f" ({report.unmeasured} answers unmeasured)" if report.unmeasured else ""
        answers = number_of(report.answered, "answer")
        self._console.print(f"{answers}{spent}{unmeasured}, kept in {self._out}.", soft_wrap=True)
        tell_failures(report, self._console)
        if why is not None:
            self._console.print(
                f"Ended early: {why}. {number_of(report.left, 'answer')} not asked for.", soft_wrap=True
            )

    async def _known(self, columns: Mapping[str, str]) -> _Asked:
        """All answers so far, and what the running coordinator thinks of the models.

        columns: what experts' scores are kept under, by their keys. Raises Moe2Error for answers of fewer than two.
        """
        outcomes = read_outcomes(self._out) if self._out.exists() else None
        if outcomes is None or len(outcomes.experts) < 2:
            raise Moe2Error(
                "A gate needs the answers of at least two models.",
                remedy="Run it again without --model, or for longer.",
            )
        said: list[Mapping[str, float]] = []
        learned: set[str] = set()
        for prompt in outcomes.prompts:
            decision = await self._decision(prompt)
            rows = decision.experts if decision else ()
            said.append({columns.get(row.expert, row.model): row.score for row in rows})
            learned |= {columns.get(row.expert, row.model) for row in rows if row.score_source == "gate"}
        return _Asked(outcomes, believed_scores(outcomes, said), columns, learned & self._learned_here())

    def _learned_here(self) -> frozenset[str]:
        """The models of the gate that is in place, where it has learned from the answers of this file."""
        with suppress(OSError, CheckpointError):
            manifest = load_checkpoint(self._settings.gate_path)[1]
            if manifest.source == self._out.name:
                return frozenset(manifest.experts)
        return frozenset()

    def _train(self, asked: _Asked) -> tuple[Gate, Manifest, Comparison]:
        """The gate of all answers, and what such gates gain on answers that they have not learned from."""
        from moe2.coordinator.training.config import TrainingConfig
        from moe2.coordinator.training.train import train_gate

        config = TrainingConfig(seeds=tuple(range(self._args.seeds)))
        with Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), console=self._console) as bar:
            task = bar.add_task("training", total=FOLDS + 1)
            comparison = compared(
                asked.outcomes,
                asked.before,
                lambda rows: train_gate(rows, config=config).gate,
                lambda done: bar.update(task, completed=done),
                learned=asked.learned,
            )
            trained = train_gate(asked.outcomes, config=config, source=self._out.name)
            bar.update(task, completed=FOLDS + 1)
        return trained.gate, trained.manifest, comparison

    def _install(self, gate: Gate, manifest: Manifest) -> None:
        """Put the gate in the former one's place, whole or not at all."""
        path = self._settings.gate_path
        # Drafts that killed runs have left are cleared away with it.
        with locked(path):
            save_checkpoint(path, gate.parameters, manifest, gate.votes, gate.by_scoring, gate.answer_tokens)
        self._console.print(f"Installed {path}.", soft_wrap=True)

    async def _reload(self, experts: Collection[str]) -> int:
        """Have the running coordinator read the gate, and wait until it judges these experts by it."""
        installed = checkpoint_sha256(self._settings.gate_path)
        try:
            # Asked for now: the process that ran before the questions may be gone, and its number another one's.
            os.kill((await self._running()).pid, signal.SIGHUP)
        except (NotRunningError, ProcessLookupError):
            self._console.print("The coordinator has ended meanwhile; it takes the gate when it starts.")
            return 0
        deadline_s = time.monotonic() + RELOAD_S
        while time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            with suppress(NotRunningError):
                if (await self._running()).gate_sha256 == installed and await self._judges_by_gate(experts):
                    self._console.print("The running coordinator chooses by it now.")
                    return 0
        self._console.print(
            "The running coordinator has not taken the gate: see `moe2-coordinator status`.", style="yellow"
        )
        return NOT_INSTALLED

    async def _judges_by_gate(self, experts: Collection[str]) -> bool:
        """Whether the coordinator's scores of all these experts are a gate's."""
        decision = await self._decision("Hello")
        rows = decision.experts if decision else ()
        return {row.score_source for row in rows if row.expert in experts} == {"gate"}


def show(comparison: Comparison, console: Console) -> None:
    """Prints the scores by kind of question, and what is gained over before and over the best single model."""
    table = Table(box=None, pad_edge=False)
    table.add_column("right answers")
    for name in (*comparison.models, "chosen by the gate"):
        table.add_column(printable(name), justify="right")
    for place, kind in enumerate(comparison.kinds):
        figures = [*comparison.by_kind[place], comparison.gate_by_kind[place]]
        table.add_row(printable(kind or "all"), *("–" if score != score else f"{score:.2f}" for score in figures))
    console.print(table)
    console.print(comparison.over_before.told("what was chosen before"), soft_wrap=True)
    console.print(comparison.over_single.told("the best single model"), soft_wrap=True)
