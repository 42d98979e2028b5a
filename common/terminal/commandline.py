"""What both command lines share: what every `--help` tells, how errors become exit codes, options that all have."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import io
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from moe2.common import __version__
from moe2.common.errors import ConfigError, Moe2Error, file_remedy
from moe2.common.terminal.output import tell

EXIT_USAGE = 2
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h; systemd can be told not to restart on it."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell shows of a program that SIGPIPE has ended."""

_REMEDIES = {
    errno.EACCES: "Ask as a user who may, such as with sudo, or join the group that owns it.",
    errno.EPERM: "Ask as a user who may, such as with sudo.",
    errno.EADDRINUSE: "Another program listens there: stop it, or choose another port.",
}

HELP_COLUMNS = 79
EXITS = {0: "done", 1: "failed; the reason is on standard error"}
"""What most commands end with. `ALWAYS` is added to every command's own."""
ALWAYS = {
    EXIT_USAGE: "wrong usage",
    EXIT_CONFIG: "the configuration cannot be used; every fault is on standard error",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_BROKEN_PIPE: "whoever read the output has ended, such as `head`",
}


@contextmanager
def optional_packages(what: str, extra: str) -> Iterator[None]:
    """Imports within need an extra of moe2. Raises Moe2Error that names it where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise Moe2Error(
            f"{what} needs a package that is missing ({error.name}).", remedy=f"Install moe2[{extra}]."
        ) from error


@contextmanager
def stopped_alike() -> Iterator[None]:
    """Have SIGTERM and a terminal's hang-up end what is within as Ctrl-C does, with KeyboardInterrupt.

    Signals that are ignored, as by `nohup`, stay so.
    """

    def stop(_number: int, frame: FrameType | None) -> None:
        # Whatever Ctrl-C does now, such as cancelling the task of an event loop. A job that a shell has put in the
        # background ignores Ctrl-C, and has to end all the same.
        act = signal.getsignal(signal.SIGINT)
        (act if callable(act) else signal.default_int_handler)(signal.SIGINT, frame)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Command(argparse.ArgumentParser):
    """A program or one of its commands; `--help` reads like a manual page.

    exits: what an exit status means, in addition to those that every command has. examples: command lines, each with
    what it does ("# ..." on the line before). fill: gives the command its arguments once it is called: what it
    imports for that, no other command waits for. Commands added to a `Command` are of this type too.
    """

    def __init__(
        self,
        *args: Any,
        exits: Mapping[int, str] | None = None,
        examples: Sequence[str] = (),
        fill: Callable[[Command], None] | None = None,
        **details: Any,
    ) -> None:
        details.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **details)
        self.exits = dict(EXITS if exits is None else exits)
        self.examples = tuple(examples)
        self._fill = fill

    def filled(self) -> Command:
        """Returns the command itself, with all its arguments."""
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)
        return self

    def parse_known_args(self, *args: Any, **details: Any) -> Any:
        """As in `argparse`, which calls this for each command on the way to the last one."""
        self.filled()
        return super().parse_known_args(*args, **details)

    def format_help(self) -> str:
        """The usual help, then environment, files, exit status and examples."""
        description, self.description = self.description, _filled(self.description or "")
        try:
            return super().format_help() + "".join(f"\n{part}" for part in self._sections())
        finally:
            self.description = description

    def _sections(self) -> list[str]:
        sections = []
        program = self.prog.split()[0]
        options = {option: action for action in self._actions for option in action.option_strings}
        if "--config" in options:
            variable = program.replace("-", "_").upper()
            sections.append(
                "environment:\n"
                + _item(
                    f"{variable}__SECTION__KEY", f"overrides KEY in [SECTION], such as {variable}__LOG__LEVEL=debug"
                )
            )
        files = []
        if "--config" in options:
            files.append(
                _item(str(options["--config"].default), "the configuration; docs/settings.md explains each key")
            )
        if "--socket" in options:
            files.append(_item(str(options["--socket"].default), "where the running daemon answers"))
        if files:
            sections.append("files:\n" + "".join(files))
        exits = sorted({**ALWAYS, **self.exits}.items())
        sections.append("exit status:\n" + "".join(_item(str(code), meaning) for code, meaning in exits))
        if self.examples:
            sections.append("examples:\n" + "".join(f"  {line}\n" for line in self.examples))
        return sections


# argparse has no public name for what `add_subparsers` returns.
Commands = argparse._SubParsersAction
Act = Callable[[argparse.Namespace], int]
"""What a command does: from its arguments to an exit status."""


def program(name: str, description: str, *, examples: Sequence[str] = ()) -> tuple[Command, Commands[Command]]:
    """A parser with `--version`, and where its commands are added. Each command sets its function as `act`."""
    parser = Command(prog=name, description=description, examples=examples)
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    return parser, add_commands(parser)


def add_commands(command: Command) -> Commands[Command]:
    """Where the commands below a command, or a program, are added."""
    return command.add_subparsers(required=True, metavar="COMMAND", title="commands")


def add_run_and_check(commands: Commands[Command], daemon: str, config: Path, *, run: Act, check_config: Act) -> None:
    """`run` and `check-config`, which every daemon has. config: where its configuration is by default."""
    program = f"moe2-{daemon}"
    running = commands.add_parser(
        "run",
        help=f"run the {daemon} in the foreground",
        description=f"Run the {daemon} in the foreground, as its systemd unit does. SIGTERM and SIGINT let running "
        f"requests end within {daemon}.drain_s; SIGHUP reads the configuration again and applies what can change.",
        exits={0: "stopped by a signal", 1: "could not start or go on; the reason is on standard error"},
        examples=(f"{program} run --config {daemon}.toml",),
    )
    add_config(running, config)
    running.set_defaults(act=run, is_daemon=True)

    checking = commands.add_parser(
        "check-config",
        help="check the configuration and say what is wrong with it",
        description="Check the configuration, the environment's part of it included, and the files without which the "
        f"{daemon} would not start, and say all that is wrong with them. Changes and starts nothing.",
        exits={0: "good", 1: "what it names cannot be read, or the answer cannot be written"},
    )
    checking.add_argument(
        "--without-files", action="store_true", help="do not look at tokens and certificates, as for another host"
    )
    add_config(checking, config)
    checking.set_defaults(act=check_config)


def execute(parser: argparse.ArgumentParser) -> int:
    """Parse argv and act; returns the process's exit code. Errors are told on stderr in a sentence."""
    _open_what_is_closed()
    _write_what_can_be_written()
    try:
        code = _act(parser)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        code = EXIT_BROKEN_PIPE
    except OSError as error:
        code = _tell(parser, f"standard output cannot be written: {error.strerror or error}.")
    finally:
        _give_up_unwritable_output()
    return code


def _act(parser: argparse.ArgumentParser) -> int:
    arguments = parser.parse_args()
    is_daemon = getattr(arguments, "is_daemon", False)
    if is_daemon:
        _leave_no_end_unsaid(parser.prog)
    try:
        return int(arguments.act(arguments))
    except KeyboardInterrupt:
        if is_daemon:
            _tell(parser, "interrupted before it was up.")
        return EXIT_INTERRUPTED
    except Exception as error:
        cause = _only(error)
        if isinstance(cause, ConfigError):
            tell(f"{parser.prog}: the configuration cannot be used:\n{cause}")
            return EXIT_CONFIG
        # A daemon's pipes and connections are not its output, and its end is never a matter of course.
        if not is_daemon and (isinstance(cause, BrokenPipeError) or _is_of_the_output(cause)):
            raise cause from None
        told = _told(cause)
        if told is None:
            raise
        return _tell(parser, told)


def _only(error: BaseException) -> BaseException:
    """Return the error that a task group wraps, where it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _is_of_the_output(error: BaseException) -> bool:
    """Return whether the error comes from writing to a stream: it then names no file."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO)


def _told(error: BaseException) -> str | None:
    """Return a sentence for what the system, and not a defect of moe2, is the cause of; None for anything else."""
    if isinstance(error, Moe2Error):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        remedy = file_remedy(error, _REMEDIES.get(error.errno or 0, ""))
        return f"{place}{error.strerror or str(error) or type(error).__name__}.{' ' if remedy else ''}{remedy}"
    return None


def _leave_no_end_unsaid(program: str) -> None:
    """Has a daemon say what ends it: a crash below Python, or a signal before it handles signals itself.

    Until then there is no configuration to read again, so that SIGHUP means nothing.
    """
    faulthandler.enable()

    def end(number: int, _: FrameType | None) -> None:
        tell(f"{program}: ended by {signal.Signals(number).name} before it was up.")
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _tell(parser: argparse.ArgumentParser, sentence: str) -> int:
    tell(f"{parser.prog}: {sentence}")
    return 1


def _open_what_is_closed() -> None:
    """Give standard streams that are closed a place: else the next file that is opened would take theirs."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process


def _give_up_unwritable_output() -> None:
    """Keep the interpreter from complaining at its exit of what could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write_what_can_be_written() -> None:
    """Replace characters that the terminal's encoding lacks by question marks; to write them would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def add_config(parser: argparse.ArgumentParser, default: Path) -> None:
    """`--config FILE`"""
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help="default: %(default)s")


def add_socket(parser: argparse.ArgumentParser, default: Path) -> None:
    """`--socket PATH`, of the running daemon."""
    parser.add_argument("--socket", type=Path, default=default, metavar="PATH", help="default: %(default)s")


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, HELP_COLUMNS) for part in text.split("\n\n"))


def _item(word: str, meaning: str) -> str:
    """A word, and what it means, indented as argparse does."""
    head = f"  {word:<21} "
    if len(head) > 24:
        return (
            f"  {word}\n"
            + textwrap.fill(meaning, HELP_COLUMNS, initial_indent=" " * 24, subsequent_indent=" " * 24)
            + "\n"
        )
    return textwrap.fill(meaning, HELP_COLUMNS, initial_indent=head, subsequent_indent=" " * 24) + "\n"
