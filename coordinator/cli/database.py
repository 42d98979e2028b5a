"""The command `moe2-coordinator database`: makes the tables that coordinators share, and shows who uses them."""

from __future__ import annotations

import argparse
from contextlib import closing
from datetime import UTC, datetime

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.terminal.commandline import Command, add_commands, add_config
from moe2.common.terminal.figures import printable
from moe2.common.terminal.output import say, say_json, tell
from moe2.coordinator.database.importing import import_files
from moe2.coordinator.database.lender import write_off
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.schema import known_version, migrate, version_of
from moe2.coordinator.gate.feedback_file import FEEDBACK_FILE
from moe2.coordinator.ledger.leases import LEASE_S
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH
from moe2.coordinator.settings import CoordinatorSettings, settings_of


class CoordinatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A coordinator that has used the database. clock_offset_s: its clock against the database's."""

    name: str
    seen_unix_s: float
    seen_s_ago: float
    clock_offset_s: float | None
    n_requests: int
    """Requests that it has shipped."""


class DatabaseState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a shared database. version: of its tables, 0 for none; known_version: of this release."""

    version: int
    known_version: int
    coordinators: tuple[CoordinatorRow, ...] = ()


def add_arguments(command: Command) -> None:
    """Adds the subcommands of `database`."""
    commands = add_commands(command)
    init = commands.add_parser(
        "init",
        help="make the tables, or bring them up to date",
        description="Make the tables in the database of database.url, or bring them up to date. Running coordinators "
        "of the release before go on.",
    )
    add_config(init, DEFAULT_CONFIG_PATH)
    init.set_defaults(act=_init)
    importing = commands.add_parser(
        "import",
        help="bring in keys, agents, scores and ledger from this coordinator's files",
        description="Bring in keys, agents, scores, wishes and ledger from this coordinator's files. What the database "
        "has already stays as it is, so that it can be done again, and on each host.",
    )
    add_config(importing, DEFAULT_CONFIG_PATH)
    importing.set_defaults(act=_import)
    lost = commands.add_parser(
        "write-off",
        help="give back what a coordinator that will not return has drawn of daily limits",
        description="Give back what a coordinator that will not return has drawn of today's limits, but for what its "
        "requests took as far as they were shipped. Wait half a minute after its end: what it had drawn may be used "
        "for so long.",
    )
    lost.add_argument("name", metavar="NAME", help="the coordinator's, as `database status` shows it")
    add_config(lost, DEFAULT_CONFIG_PATH)
    lost.set_defaults(act=_write_off)
    status = commands.add_parser(
        "status",
        help="show the version of the tables, and the coordinators that use them",
        description="Show the version of the tables, and the coordinators that use them.",
    )
    status.add_argument("--json", action="store_true", help="one JSON document")
    add_config(status, DEFAULT_CONFIG_PATH)
    status.set_defaults(act=_status)


def _import(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments.config)
    state_dir = settings.coordinator.state_dir
    with closing(opened(settings)) as session:
        found = import_files(
            session, settings.database.own_name, state_dir, settings.ledger_path, state_dir / FEEDBACK_FILE
        )
    say(
        f"Brought in as {settings.database.own_name}: {found.keys} keys, {found.agents} agents, {found.tokens} "
        f"enrolment tokens, {found.scores} scores, {found.requests} requests, {found.standing} rows of standing joules."
    )
    return 0


def _write_off(arguments: argparse.Namespace) -> int:
    with closing(opened(settings_of(arguments.config))) as session:
        known = {row.name: row.seen_s_ago for row in _state(session).coordinators}
        if arguments.name not in known:
            raise Moe2Error(
                f"No coordinator {arguments.name!r} has used the database.",
                remedy=f"Known are: {', '.join(sorted(known)) or 'none'}.",
            )
        if known[arguments.name] < LEASE_S:
            raise Moe2Error(
                f"{arguments.name} was there {known[arguments.name]:.0f} s ago, and may still use the limits that it "
                "has drawn.",
                remedy=f"Stop it, and wait {LEASE_S:.0f} s.",
            )
        with session.transaction() as cursor:
            # The day is the database's, as at all coordinators.
            cursor.execute("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
            [day] = cursor.fetchone() or ("",)
        n_budgets = write_off(session, arguments.name, day)
    say(f"Wrote off what {arguments.name} had drawn of {n_budgets} daily limits.")
    return 0


def opened(settings: CoordinatorSettings) -> Session:
    """Returns a session with the database of the settings. Raises `Moe2Error` where they name none."""
    if settings.database.url is None:
        raise Moe2Error(
            "No database is configured: this coordinator keeps everything in its state directory.",
            remedy="Set database.url where two coordinators are to share one.",
        )
    return Session(settings.database.url, name="moe2-coordinator database")


def _init(arguments: argparse.Namespace) -> int:
    with closing(opened(settings_of(arguments.config))) as session:
        before, after = migrate(session)
    if before == after:
        say(f"The database is up to date (version {after}).")
    else:
        say(f"The database was brought from version {before} to {after}.")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with closing(opened(settings_of(arguments.config))) as session:
        found = _state(session)
    if arguments.json:
        say_json(found)
        return 0
    if found.version == 0:
        say("The database has no tables yet. Run `moe2-coordinator database init` once.")
        return 0
    say(f"Version of the tables: {found.version} (this release's: {found.known_version})")
    for row in found.coordinators:
        seen = datetime.fromtimestamp(row.seen_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        offset = "unknown" if row.clock_offset_s is None else f"{row.clock_offset_s:+.3f} s"
        facts = f"seen {seen} ({row.seen_s_ago:.0f} s ago), clock {offset}, {row.n_requests} requests"
        say(f"{printable(row.name)}: {facts}")
    if not found.coordinators:
        tell("No coordinator has used it yet.")
    return 0


def _state(session: Session) -> DatabaseState:
    with session.transaction() as cursor:
        version = version_of(cursor).number
        if version == 0:
            return DatabaseState(version=0, known_version=known_version())
        cursor.execute(_COORDINATORS)
        rows = tuple(
            CoordinatorRow(name=name, seen_unix_s=seen, seen_s_ago=ago, clock_offset_s=offset, n_requests=n_requests)
            for name, seen, ago, offset, n_requests in cursor.fetchall()
        )
    return DatabaseState(version=version, known_version=known_version(), coordinators=rows)


_COORDINATORS = """
    SELECT name, extract(epoch FROM seen_at)::float8, extract(epoch FROM clock_timestamp() - seen_at)::float8,
           clock_offset_s, (SELECT count(*) FROM requests WHERE coordinator = coordinators.name)
    FROM coordinators ORDER BY name
"""
