"""The command `moe2-coordinator collect`: asks a question set of the live fleet and writes the outcomes."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe2.common.errors import Moe2Error
from moe2.common.secretfile import read_secret
from moe2.common.terminal.figures import printable
from moe2.common.terminal.output import Screen
from moe2.common.tls.contexts import client_context
from moe2.coordinator.training.collect.asking import Asker, LiveExpert
from moe2.coordinator.training.collect.outfile import Outfile
from moe2.coordinator.training.collect.questions import Question, read_questions
from moe2.coordinator.training.collect.survey import Report, missing, survey

INCOMPLETE = 1
INTERRUPTED = 130
SHOWN_FAILURES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `collect`."""
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="FILE", help="question set, .jsonl or .parquet"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="outcomes; continued if it exists"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the coordinator's API; default: %(default)s")
    add_access(parser)
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time; default: 4")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer; default: 256")
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="only this model or expert; may be given several times"
    )
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    """Collects outcomes and returns the exit code: 0, 1 where some answers are still missing, 130 after Ctrl-C.

    Raises Moe2Error if the questions or the fleet cannot be used.
    """
    if args.concurrency < 1 or args.max_tokens < 1:
        raise Moe2Error("--concurrency and --max-tokens must be at least 1.")
    if args.out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise Moe2Error(f"{args.out} does not end in .jsonl.", remedy="`train-gate` tells the format by the name.")
    if not args.out.parent.is_dir():
        raise Moe2Error(f"There is no directory {args.out.parent}.", remedy="Make it, or choose another --out.")
    console = Screen(stderr=True)
    questions, outfile = read_questions(args.questions), Outfile(args.out)
    if outfile.repaired:
        console.print(f"{args.out}: the last line was cut off and is dropped; its question is asked again.")
    try:
        report = asyncio.run(_collect(args, questions, outfile, console))
    except KeyboardInterrupt:
        console.print(f"Stopped. {args.out} holds what was answered; the same command goes on from there.")
        return INTERRUPTED
    return _told(report, args.out, console)


async def _collect(
    args: argparse.Namespace, questions: Sequence[Question], outfile: Outfile, console: Console
) -> Report:
    async with asking(args.url, args) as asker:
        experts = wanted_experts(await asker.live_experts(), args.model)
        left = missing(questions, experts, outfile)
        console.print(
            f"{len(questions)} questions for {len(experts)} experts, {left} answers to collect: "
            + printable(", ".join(sorted({expert.model for expert in experts})))
        )
        columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("collecting", total=left)
            return await survey(
                asker,
                questions,
                experts,
                outfile,
                concurrency=args.concurrency,
                progress=lambda: bar.advance(task),
            )


def add_access(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how the API is reached, beside its address (see `asking`)."""
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with an API key, if the API wants one")
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="PEM file of a private CA that signed the API's certificate",
    )


@asynccontextmanager
async def asking(url: str, args: argparse.Namespace) -> AsyncIterator[Asker]:
    """Yields a client of the coordinator at `url`. Raises Moe2Error for an address, a key or a CA that cannot be used.

    args: the options of `add_access`, with `concurrency` and `max_tokens`.
    """
    headers = {"Content-Type": "application/json"}
    if args.api_key_file is not None:
        headers["Authorization"] = f"Bearer {read_secret(args.api_key_file)}"
    # The coordinator has its own limit per request; a second one here would only hide its reason.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    trusted = client_context(ca_file=args.ca_file, certificate=None, key=None)
    connector = aiohttp.TCPConnector(limit=args.concurrency, ssl=trusted)
    try:
        session = aiohttp.ClientSession(url, headers=headers, timeout=timeout, connector=connector)
    except ValueError as error:
        raise Moe2Error(f"--url {url} is not an http address: {error}.") from error
    async with session:
        yield Asker(session, max_tokens=args.max_tokens)


def wanted_experts(live: Sequence[LiveExpert], names: Sequence[str] | None) -> tuple[LiveExpert, ...]:
    """Returns the live experts of these models or keys, or all of them. Raises Moe2Error where there are none."""
    if not live:
        raise Moe2Error("No expert is ready.", remedy="See `moe2-coordinator status`.")
    known = sorted({expert.model for expert in live} | {expert.key for expert in live})
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise Moe2Error(f"No live expert serves {', '.join(unknown)}.", remedy=f"Live: {', '.join(known)}.")
    return tuple(expert for expert in live if not names or expert.model in names or expert.key in names)


def tell_failures(report: Report, console: Console) -> None:
    """Prints which experts failed how often and why, and which were left alone."""
    for (expert, reason), count in report.failures.most_common(SHOWN_FAILURES):
        console.print(f"  {count} failed on {printable(expert)}: {printable(reason)}", style="yellow", highlight=False)
    for expert in sorted(report.given_up):
        console.print(f"  {printable(expert)} was left alone.", style="yellow", highlight=False)


def _told(report: Report, out: Path, console: Console) -> int:
    console.print(f"Collected {report.answered} answers into {out}.")
    tell_failures(report, console)
    if report.failures:
        console.print("Run the same command again for what is missing.")
    return INCOMPLETE if report.failures else 0
