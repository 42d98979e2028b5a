"""`--help` of every command of both programs, and how errors become exit codes."""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from moe2.agent.__main__ import _parser as agent_parser
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.terminal.commandline import ALWAYS, EXIT_CONFIG, Command, execute, program
from moe2.coordinator.__main__ import _parser as coordinator_parser


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and every one below it."""
    if isinstance(parser, Command):
        parser.filled()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)


ALL = {command.prog: command for make in (agent_parser, coordinator_parser) for command in commands(make())}
each_command = pytest.mark.parametrize("name", ALL)


def test_all_commands_are_looked_at() -> None:
    """Those below a command, too."""
    assert {"moe2-agent run", "moe2-coordinator agents enrol-token create"} <= set(ALL)


@each_command
def test_every_command_says_what_it_does(name: str) -> None:
    """In a sentence, and in the list of commands in a few words."""
    assert re.fullmatch(r"[A-Z`].*[.]", ALL[name].description or "", re.DOTALL)
    for action in ALL[name]._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest for choice in action._choices_actions if choice.help}
            assert told == set(action.choices)


@each_command
def test_every_command_tells_its_exit_statuses(name: str) -> None:
    """0 and 1 as they are for it, and those that every command has."""
    command = ALL[name]
    assert isinstance(command, Command)
    _, _, section = command.format_help().partition("\nexit status:\n")
    told = {int(code) for code in re.findall(r"^  (\d+) +\S", section, re.MULTILINE)}
    assert told == {*ALWAYS, *command.exits}
    assert 0 in told


@each_command
def test_help_fits_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns; only command lines that are to be copied may be longer."""
    monkeypatch.setenv("COLUMNS", "80")
    text = ALL[name].format_help().partition("\nexamples:")[0]
    assert [line for line in text.splitlines() if len(line) > 80] == []


@each_command
def test_commands_that_read_the_configuration_name_file_and_variables(name: str) -> None:
    """And only those."""
    text = ALL[name].format_help()
    reads = any("--config" in action.option_strings for action in ALL[name]._actions)
    prefix = name.split()[0].replace("-", "_").upper()
    assert (f"{prefix}__SECTION__KEY" in text) == reads
    assert (f"/etc/moe2/{name.split()[0].removeprefix('moe2-')}.toml" in text) == reads


@each_command
def test_every_option_is_explained(name: str) -> None:
    """Positional words too; those without have a name that says it."""
    unexplained = [
        action.dest for action in ALL[name]._actions if action.option_strings and not (action.help or "").strip()
    ]
    assert unexplained == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError(["a: wrong.", "b: wrong."]), EXIT_CONFIG, "a: wrong.\nb: wrong."),
        (Moe2Error("It broke.", remedy="Mend it."), 1, "It broke. Mend it."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes_and_sentences(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what a person can mend."""

    def act(_: argparse.Namespace) -> int:
        raise error

    parser, commands = program("prog", "A program.")
    commands.add_parser("go", help="go", description="Go.").set_defaults(act=act)
    monkeypatch.setattr(sys, "argv", ["prog", "go"])
    assert execute(parser) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_terminal_that_lacks_characters_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output with an arrow and a dash is written to an ASCII terminal; only these two characters are lost."""
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["test"])
    parser = argparse.ArgumentParser()
    parser.set_defaults(act=lambda _: print("→ 3 J – unmeasured", flush=True) or 0)
    assert execute(parser) == 0
    assert written.getvalue() == b"? 3 J ? unmeasured\n"


@pytest.mark.parametrize("side", ["agent", "coordinator"])
def test_status_waits_for_nothing_that_only_daemons_need(side: str) -> None:
    """It is asked for often, on slow processors too; these packages alone take seconds to import there."""
    script = (
        f"import sys; from moe2.{side}.__main__ import main; sys.argv[1:] = ['status', '--socket', '/none']\n"
        "try: main()\n"
        "except SystemExit: print(*{'aiohttp', 'asyncio', 'numpy', 'pydantic', 'structlog'} & sys.modules.keys())"
    )
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "is not running" in asked.stderr
    assert asked.stdout.strip() == ""


# --- A daemon's end ---------------------------------------------------------------------------------------------------

DAEMON = """
import os, signal, sys
from moe2.common.terminal.commandline import add_run_and_check, execute, program
from pathlib import Path

def act(arguments):
    {body}

parser, commands = program("moe2-test", "A daemon.")
add_run_and_check(commands, "test", Path("none.toml"), run=act, check_config=act)
sys.exit(execute(parser))
"""


def ended(body: str, command: str = "run") -> tuple[int, str]:
    """Exit status and standard error of a program whose commands do `body`."""
    done = subprocess.run(
        [sys.executable, "-c", DAEMON.format(body=body), command], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_daemon_that_a_broken_connection_ends_says_so() -> None:
    """Of a command it means that nobody reads on; a daemon's connections are not its output."""
    broken = "raise BrokenPipeError(32, 'Broken pipe')"
    code, said = ended(broken)
    assert code == 1
    assert "Broken pipe" in said
    assert ended(broken, "check-config") == (141, "")


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "moe2-test: ended by SIGTERM before it was up."),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "moe2-test: interrupted before it was up."),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "Fatal Python error: Segmentation fault"),
    ],
)
def test_a_daemon_that_ends_before_it_is_up_says_why(body: str, code: int, said: str) -> None:
    """Its log is not empty, whatever it was."""
    status, text = ended(body)
    assert status == code
    assert said in text


def test_a_reload_before_a_daemon_is_up_does_not_end_it() -> None:
    """There is nothing to read again yet."""
    assert ended("os.kill(os.getpid(), signal.SIGHUP); return 0") == (0, "")
