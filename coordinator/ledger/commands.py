"""`moe2-coordinator ledger`: sums and single requests of the ledger, whether the coordinator runs or not."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from moe2.common.commandline import add_config
from moe2.common.config import load_settings
from moe2.common.errors import Moe2Error
from moe2.coordinator.ledger import view
from moe2.coordinator.ledger.report import By, Span, requests, sums
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.settings import DEFAULT_CONFIG_PATH, ENVIRONMENT_PREFIX, CoordinatorSettings

SHOWN_REQUESTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--by", type=By, choices=tuple(By), default=By.KEY, help="what the sums are split by (default: %(default)s)"
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
    parser.add_argument("--database", type=Path, metavar="FILE", help="the ledger, if not the one of --config")
    add_config(parser, DEFAULT_CONFIG_PATH)


def run(arguments: argparse.Namespace) -> int:
    """Print or export; raises `Moe2Error` if the ledger cannot be read."""
    path = arguments.database or _configured(arguments.config)
    span = _span(arguments)
    is_export = arguments.csv is not None or arguments.json
    with reading(path) as connection:
        if arguments.requests:
            most = arguments.most if arguments.most is not None or is_export else SHOWN_REQUESTS
            found: view.Rows = tuple(requests(connection, span, most=most))
        else:
            found = sums(connection, arguments.by, span)
    if arguments.csv is not None:
        _write_csv(arguments.csv, found)
    elif arguments.json:
        sys.stdout.write(view.as_json(found) + "\n")
    else:
        _show(found, str(arguments.by))
    return 0


def moment(text: str) -> datetime:
    """A day's beginning, or a moment; UTC where no offset is given. Raises ArgumentTypeError."""
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
            raise Moe2Error("--day is a span of its own.", remedy="Leave out --since and --until.")
        return Span(arguments.day.timestamp(), (arguments.day + timedelta(days=1)).timestamp())
    since, until = arguments.since, arguments.until
    return Span(None if since is None else since.timestamp(), None if until is None else until.timestamp())


def _configured(config: Path) -> Path:
    settings = load_settings(CoordinatorSettings, config, environment=os.environ, prefix=ENVIRONMENT_PREFIX)
    return settings.ledger_path


def _write_csv(target: str, found: view.Rows) -> None:
    if target == "-":
        view.write_csv(found, sys.stdout)
        return
    try:
        with Path(target).open("w", encoding="utf-8", newline="") as file:
            view.write_csv(found, file)
    except OSError as error:
        raise Moe2Error(f"{target} cannot be written: {error.strerror or error}.") from error


def _show(found: view.Rows, by: str) -> None:
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        console.print(view.picture(found, by))
    else:
        # Not console.print: rich would wrap long lines, also into a pipe.
        console.file.write("".join(line + "\n" for line in view.lines(found)))
