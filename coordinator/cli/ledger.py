"""The command `moe2-coordinator ledger`: shows or exports what requests have cost, whether the coordinator runs or not.

Rows are written as a table, as plain lines, as CSV or as JSON.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time
from typing import Any, TextIO

from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe2.common.energy import Quality
from moe2.common.errors import Moe2Error
from moe2.common.terminal import figures, parts
from moe2.common.terminal.commandline import add_config
from moe2.common.terminal.figures import UNKNOWN, UNMEASURED, fact_line, known, printable
from moe2.common.terminal.output import say, say_json, tell
from moe2.common.terminal.screen import table_console
from moe2.coordinator.database.books import Contributor, Others, requests_of_others, sums_of_others
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.ledger.accounts import day_of
from moe2.coordinator.ledger.report import (
    By,
    RequestRow,
    Span,
    StandingReport,
    SumRow,
    answered_in,
    requests,
    standing_hosts,
    standing_report,
    sums,
    together,
)
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH
from moe2.coordinator.settings import CoordinatorSettings, settings_of

Row = SumRow | RequestRow
Rows = tuple[SumRow, ...] | tuple[RequestRow, ...]

_SUM_FIGURES = ("Requests", "Tokens in", "Tokens out", "Seconds", "Joules", "Useful", "Wasted")
_REQUEST_FIGURES = ("In", "Out", "First", "Whole", "Joules", "Wasted")
SHOWN_REQUESTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ledger`."""
    parser.add_argument(
        "--by", type=By, choices=tuple(By), default=By.KEY, help="what the sums are split by (default: %(default)s)"
    )
    parser.add_argument(
        "--standing", action="store_true", help="joules that belong to no request, by host and cause, instead of sums"
    )
    parser.add_argument("--requests", action="store_true", help="single requests, instead of sums")
    parser.add_argument("--day", type=moment, metavar="DAY", help="one day (UTC), such as 2026-01-31 or today")
    parser.add_argument("--since", type=moment, metavar="TIME", help="from a day or a moment on (UTC, ISO 8601)")
    parser.add_argument("--until", type=moment, metavar="TIME", help="before a day or a moment")
    parser.add_argument(
        "--most", type=int, metavar="N", help=f"the newest N requests (shown: {SHOWN_REQUESTS}; exported: all)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", metavar="FILE", help="write a CSV file; - is the standard output")
    form.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "--own", action="store_true", help="this coordinator's requests alone, where several share a database"
    )
    parser.add_argument(
        "--database", type=Path, metavar="FILE", help="the ledger, if not the one of --config; that file alone is read"
    )
    add_config(parser, DEFAULT_CONFIG_PATH)
    parser.set_defaults(act=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints or exports the rows and returns the exit code. Raises `Moe2Error` if the ledger cannot be read."""
    settings = None if arguments.database else settings_of(arguments.config)
    path = settings.ledger_path if settings else arguments.database
    span = _span(arguments)
    is_export = arguments.csv is not None or arguments.json
    most = arguments.most if arguments.most is not None or is_export else SHOWN_REQUESTS
    others = None if settings is None or arguments.own else _others(settings, arguments, span, most)
    with reading(path) as connection:
        if arguments.standing:
            hosts = standing_hosts(connection, span) if others is None else others.hosts
            ledgers = (answered_in(connection, span), *((others.answered,) if others else ()))
            return _standing(arguments, standing_report(hosts, ledgers))
        if arguments.requests:
            found: Rows = tuple(requests(connection, span, most=most))
            if others is not None and settings is not None:
                found = _newest((*found, *others.requests), settings.database.own_name, most)
        else:
            found = together(sums(connection, arguments.by, span), others.sums if others else ())
    if arguments.csv is not None:
        _write_csv(arguments.csv, found)
    elif arguments.json:
        say_json(found)
    else:
        _show(found, str(arguments.by))
    return 0


def _others(
    settings: CoordinatorSettings, arguments: argparse.Namespace, span: Span, most: int | None
) -> Others | None:
    """What other coordinators have shipped, with a note of whom and until when; None where nobody else is known.

    Where the database cannot be asked, that is said, and this coordinator's own requests are shown.
    """
    if settings.database.url is None:
        return None
    own = settings.database.own_name
    try:
        with closing(Session(settings.database.url, name="moe2-coordinator ledger")) as session:
            if arguments.requests:
                found = requests_of_others(session, own, span, most)
            else:
                found = sums_of_others(session, own, arguments.by, span, day_of(time()))
    except Moe2Error as error:
        tell(f"Only what this coordinator ({own}) has answered is shown: {error}")
        return None
    names = [f"{own} (this one)", *map(_until_when, found.contributors)]
    tell(f"Requests of {len(names)} coordinators: {', '.join(names)}.")
    return found


def _until_when(one: Contributor) -> str:
    if one.complete_s_ago is None:
        return f"{printable(one.name)} (it has not said how far it has shipped)"
    return f"{printable(one.name)} (whole until {one.complete_s_ago:.0f} s ago)"


def _newest(rows: Sequence[RequestRow], own: str, most: int | None) -> tuple[RequestRow, ...]:
    """Sorts requests of several coordinators by time, the oldest first, and of them returns the newest `most`."""
    named = [row if row.coordinator else replace(row, coordinator=own) for row in rows]
    by_time = sorted(named, key=lambda row: row.at_unix_s)
    return tuple(by_time if most is None else by_time[max(0, len(by_time) - most) :])


def _standing(arguments: argparse.Namespace, found: StandingReport) -> int:
    if arguments.csv is not None or arguments.requests:
        raise Moe2Error(
            "--standing goes neither with --csv nor with --requests.", remedy="Use --json, or leave them out."
        )
    if arguments.json:
        say_json(found)
        return 0
    console = table_console()
    if console.is_terminal and not console.is_dumb_terminal:
        console.print(standing_picture(found))
    else:
        for line in standing_lines(found):
            say(line, file=console.file)
    return 0


def standing_picture(found: StandingReport) -> RenderableType:
    """Draws the joules of no request as a table for a terminal."""
    if not found.hosts:
        return Text("No host has measured joules that belong to no request in this span.", style="dim")
    columns = ("Idle", "Loading", "Waking", "Other", "Joules")
    table = parts.figures_table("Host", *columns, right=columns)
    for host in found.hosts:
        causes = (host.idle_j, host.loading_j, host.waking_j, host.other_j)
        table.add_row(
            Text(printable(host.agent_name), style="bold"),
            *(Text(figures.number(joules)) for joules in causes),
            Text(_joules(sum(causes), host.quality)),
        )
    return Group(table, Text(_per_answer(found), style="bold"))


def standing_lines(found: StandingReport) -> list[str]:
    """Writes the joules of no request for a pipe: one line for each host, and one for all."""
    hosts = [
        fact_line(
            "standing",
            host=host.agent_name,
            agent=host.agent,
            idle_j=figures.number(host.idle_j),
            loading_j=figures.number(host.loading_j),
            waking_j=figures.number(host.waking_j),
            other_j=figures.number(host.other_j),
            quality=host.quality,
        )
        for host in found.hosts
    ]
    everything = fact_line(
        "all",
        standing_j=known(found.joules, figures.number, otherwise=UNMEASURED),
        requests_j=known(found.requests_j, figures.number, otherwise=UNMEASURED),
        answers=found.answers,
        unmeasured=found.n_unmeasured,
        j_per_answer=known(found.j_per_answer, figures.number, otherwise=UNMEASURED),
    )
    return [*hosts, everything]


def _per_answer(found: StandingReport) -> str:
    waiting, asked = (known(j, figures.number, otherwise=UNMEASURED) for j in (found.joules, found.requests_j))
    bound = "at least " if found.n_unmeasured else ""
    whole = known(found.j_per_answer, lambda j: f"{bound}{figures.number(j)} J each", otherwise=UNMEASURED)
    return f"{found.answers} answers: {asked} J of requests and {waiting} J of no request are {whole}."


def moment(text: str) -> datetime:
    """Parses a day, as its beginning, or a moment; UTC where no offset is given. Raises ArgumentTypeError."""
    if text == "today":
        return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'today' nor a day or moment such as 2026-01-31 or 2026-01-31T12:00"
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _span(arguments: argparse.Namespace) -> Span:
    if arguments.day is not None:
        if arguments.since is not None or arguments.until is not None:
            raise Moe2Error(
                "--day cannot be used together with --since or --until.", remedy="Leave out --since and --until."
            )
        return Span(arguments.day.timestamp(), (arguments.day + timedelta(days=1)).timestamp())
    since, until = arguments.since, arguments.until
    return Span(None if since is None else since.timestamp(), None if until is None else until.timestamp())


def _write_csv(target: str, found: Rows) -> None:
    if target == "-":
        write_csv(found, sys.stdout)
        return
    try:
        with Path(target).open("w", encoding="utf-8", newline="") as file:
            write_csv(found, file)
    except OSError as error:
        raise Moe2Error(f"{target} cannot be written: {error.strerror or error}.") from error


def _show(found: Rows, by: str) -> None:
    console = table_console()
    if console.is_terminal and not console.is_dumb_terminal:
        console.print(picture(found, by))
    else:
        # Not console.print: rich would wrap long lines, also into a pipe.
        for line in lines(found):
            say(line, file=console.file)


def picture(rows: Rows, by: str) -> RenderableType:
    """Draws the rows as a table for a terminal. by: the heading of the column of groups."""
    if not rows:
        return Text("The ledger has no request in this span.", style="dim")
    table = parts.figures_table(by.capitalize(), *_SUM_FIGURES, right=_SUM_FIGURES)
    if isinstance(rows[0], RequestRow):
        table = parts.figures_table("When (UTC)", "Key", "Expert", "Outcome", *_REQUEST_FIGURES, right=_REQUEST_FIGURES)
    for row in rows:
        _add(table, row)
    return Group(table, *_notes(rows))


def lines(rows: Rows) -> list[str]:
    """Writes the rows for a pipe, one line each."""
    return [fact_line("request" if isinstance(row, RequestRow) else "sum", **_facts(row)) for row in rows]


def write_csv(rows: Rows, file: TextIO) -> None:
    """Writes a header and one line per row; unknown figures are empty. Wasted joules have a column for each cause."""
    causes = sorted({cause for row in rows for cause in row.wasted_j})
    kind = type(rows[0]) if rows else SumRow
    names = [name for name in kind.__struct_fields__ if name != "wasted_j"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, *(f"wasted_{cause}_j" for cause in causes)])
    for row in rows:
        cells = [_cell(getattr(row, name)) for name in names]
        writer.writerow([*cells, *(_cell(row.wasted_j.get(cause)) for cause in causes)])


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        # A spreadsheet would take it for a formula, and others chose it.
        return f"'{value}"
    return "" if value is None else value


def _add(table: Table, row: Row) -> None:
    # Where some joules are unknown, nobody can say that none were wasted.
    nothing = UNKNOWN if row.joules is None or (isinstance(row, SumRow) and row.n_unmeasured) else "0"
    wasted = Text(_wasted(row.wasted_j) or nothing, style="yellow" if row.wasted_j else "dim")
    if isinstance(row, SumRow):
        unmeasured = f"\n{row.n_unmeasured} {UNMEASURED}" if row.n_unmeasured else ""
        table.add_row(
            Text.assemble((printable(row.group), "bold"), (_file(row.file_sha256), "dim")),
            Text(str(row.n_requests)),
            Text(known(row.prompt_tokens, str)),
            Text(known(row.decoded_tokens, str)),
            Text(known(row.seconds, figures.number)),
            Text.assemble(_joules(row.joules, row.quality), (unmeasured, "dim")),
            Text(known(row.useful_j, figures.number)),
            wasted,
        )
        return
    table.add_row(
        Text(figures.moment(row.at_unix_s).replace("T", " ").rstrip("Z"), style="dim"),
        Text(printable(row.key_name)),
        Text(printable(", ".join(expert.partition("/")[2] for expert in row.experts)) or UNKNOWN),
        Text(row.outcome if row.code is None else f"{row.outcome}\n{printable(row.code)}", style=_style(row.outcome)),
        Text(known(row.prompt_tokens, str)),
        Text(known(row.decoded_tokens, str)),
        Text(known(row.ttft_s, figures.latency)),
        Text(known(row.total_s, figures.latency)),
        Text(_joules(row.joules, row.quality)),
        wasted,
    )


def _file(sha256: str | None) -> str:
    """The beginning of a model's checksum, in a line of its own."""
    return "" if sha256 is None else f"\n{printable(sha256[:12])}"


def _notes(rows: Sequence[Row]) -> list[RenderableType]:
    notes = []
    if any(isinstance(row, SumRow) and row.n_unmeasured and row.joules is not None for row in rows):
        notes.append("Where requests are unmeasured, the joules are those of the others: a lower bound.")
    if any(row.quality == Quality.SIMULATED for row in rows):
        notes.append("Joules marked (simulated) rest on a simulated host's power.")
    return [Text(note, style="dim") for note in notes]


def _joules(joules: float | None, quality: str) -> str:
    return known(joules, figures.number, otherwise=UNMEASURED) + (
        " (simulated)" if quality == Quality.SIMULATED and joules is not None else ""
    )


def _wasted(wasted_j: dict[str, float]) -> str:
    return "\n".join(f"{figures.number(joules)} {printable(cause)}" for cause, joules in wasted_j.items())


def _style(outcome: str) -> str:
    return {"completed": "green", "cancelled": "yellow"}.get(outcome, "red")


def _facts(row: Row) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if name == "wasted_j":
            facts |= {f"wasted_{cause}_j": figures.number(joules) for cause, joules in value.items()}
        elif name == "file_sha256" and value is None:
            continue
        elif name == "at_unix_s":
            facts["at"] = figures.moment(value)
        elif name in ("joules", "useful_j") and value is None:
            facts[name] = UNMEASURED
        elif isinstance(value, float):
            facts[name] = figures.number(value)
        else:
            facts[name] = ",".join(value) if isinstance(value, tuple) else value
    return facts
