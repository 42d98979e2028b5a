"""Shows a daemon's status: asks over its local socket, draws on a terminal, prints plain lines into a pipe.

What is drawn comes from the two pure functions of a `StatusView`; this module owns the asking, the watching and what
is said when nobody answers.
"""

from __future__ import annotations

import grp
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from moe2.common import localclient
from moe2.common.health import HealthWarning
from moe2.common.localclient import NotRunningError, RefusedError
from moe2.common.status import exit_code
from moe2.common.terminal.output import Screen, say, say_json, tell

WATCH_S = 1.0
MIN_DRAWN_COLUMNS = 72
"""Tables leave out columns on a narrower terminal; there the plain facts are shown, which lose nothing."""
EXIT_NOT_RUNNING = 2
# Where systemd looks for units, systemd.unit(5).
UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")))


class Snapshot(Protocol):
    """What can be shown: a msgspec Struct that says what is wrong."""

    @property
    def warnings(self) -> tuple[HealthWarning, ...]: ...


StatusT = TypeVar("StatusT", bound=Snapshot)


@dataclass(frozen=True)
class StatusView(Generic[StatusT]):
    """How one daemon's status, or another snapshot that it answers with at `route`, is shown.

    picture, lines: pure; from the status and the wall clock (s since the epoch) to a renderable, or to plain lines.
    """

    program: str
    kind: type[StatusT]
    picture: Callable[[StatusT, float], RenderableType]
    lines: Callable[[StatusT, float], list[str]]
    default_socket: Path
    default_config: Path
    route: str = localclient.STATUS_ROUTE
    drawn_route: str | None = None
    """Asked instead where the picture is drawn, which a terminal has less room for than a pipe."""


@dataclass(frozen=True)
class Answer(Generic[StatusT]):
    body: bytes
    status: StatusT


@dataclass(frozen=True)
class NoAnswer:
    """No usable answer: what to tell the user, and the exit code."""

    message: str
    code: int = EXIT_NOT_RUNNING


def show(
    view: StatusView[StatusT],
    socket: Path,
    *,
    as_json: bool,
    watch: bool,
    console: Console | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Print the status, once or until Ctrl-C. Returns 0 (healthy), 1 (degraded) or 2 (not running).

    console: where it is drawn; the standard output if not given.
    pause: waits between two looks of `watch`.
    """
    console = console or Screen()
    drawn = console.is_terminal and not console.is_dumb_terminal and not as_json
    if drawn and view.drawn_route is not None:
        view = replace(view, route=view.drawn_route)
    if watch and drawn:
        return _watch_drawn(view, socket, console, pause)
    code = EXIT_NOT_RUNNING
    try:
        while True:
            code = _print_once(view, socket, console, as_json=as_json, drawn=drawn)
            if not watch:
                return code
            pause(WATCH_S)
    except KeyboardInterrupt:
        return code
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code


def _print_once(view: StatusView[StatusT], socket: Path, console: Console, *, as_json: bool, drawn: bool) -> int:
    answer = ask(view, socket)
    if isinstance(answer, NoAnswer):
        tell(answer.message)
        return answer.code
    if drawn:
        console.print(_picture(view, answer.status, console))
    else:
        if as_json:
            say_json(answer.body, file=console.file)
        else:
            # Not console.print: rich would wrap long lines, also into a pipe.
            say("\n".join(view.lines(answer.status, time.time())), file=console.file)
        console.file.flush()
    return exit_code(answer.status.warnings)


def _watch_drawn(view: StatusView[StatusT], socket: Path, console: Console, pause: Callable[[float], None]) -> int:
    code = EXIT_NOT_RUNNING
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                answer = ask(view, socket)
                if isinstance(answer, NoAnswer):
                    picture: RenderableType = Text(answer.message, style="red")
                    code = answer.code
                else:
                    picture = _picture(view, answer.status, console)
                    code = exit_code(answer.status.warnings)
                live.update(Group(picture, Text("Ctrl-C ends", style="dim")), refresh=True)
                pause(WATCH_S)
    except KeyboardInterrupt:
        return code


def table_console() -> Console:
    """Returns the standard output, wide enough for tables: a narrower terminal breaks lines, and loses no column."""
    console = Screen()
    return console if console.width >= MIN_DRAWN_COLUMNS else Screen(width=MIN_DRAWN_COLUMNS)


def _picture(view: StatusView[StatusT], status: StatusT, console: Console) -> RenderableType:
    if console.width >= MIN_DRAWN_COLUMNS:
        return view.picture(status, time.time())
    return Text("\n".join(view.lines(status, time.time())))


def ask(view: StatusView[StatusT], socket: Path) -> Answer[StatusT] | NoAnswer:
    """Asks the daemon behind `socket` once."""
    try:
        body = localclient.fetch(socket, view.route)
        return Answer(body, msgspec.json.decode(body, type=view.kind))
    except RefusedError as error:
        return NoAnswer(f"{view.program} cannot show that: {error.message}", code=1)
    except NotRunningError:
        command = start_command(view, socket, UNIT_FOLDERS)
        return NoAnswer(f"{view.program} is not running: nothing answers at {socket}. Start it:\n    {command}")
    except PermissionError:
        return NoAnswer(f"No permission to ask {view.program} at {socket}. {_way_in(socket)}")
    except msgspec.MsgspecError as error:
        return NoAnswer(
            f"{view.program} answers at {socket}, but not as this release expects ({error}). "
            "Restart the daemon after an upgrade, or use the command of its own installation.",
            code=1,
        )


def start_command(view: StatusView[StatusT], socket: Path, unit_folders: Iterable[Path]) -> str:
    """The command that starts the daemon: its systemd unit's where one is installed for this socket."""
    if socket == view.default_socket:
        if any((folder / f"{view.program}.service").exists() for folder in unit_folders):
            return f"systemctl start {view.program}"
        return f"{view.program} run --config {view.default_config}"
    return f"{view.program} run --config FILE"


def _way_in(socket: Path) -> str:
    """Which group gives access: that of the socket, or of the folder that hides it."""
    for place in (socket, *socket.parents):
        try:
            facts = place.stat()
        except OSError:
            continue
        wanted = stat.S_IWGRP if stat.S_ISSOCK(facts.st_mode) else stat.S_IXGRP
        if facts.st_gid == 0 or not facts.st_mode & wanted:
            break
        try:
            group = grp.getgrgid(facts.st_gid).gr_name
        except KeyError:
            group = str(facts.st_gid)
        return f"Join the group {group}: sudo usermod -aG {group} $USER, then log in again."
    return "Ask again with sudo."
