"""No command of either program ends in a traceback, whatever the terminal, the rights and the disk are like.

All commands are walked from the programs' own parsers, so that a new one is walked as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from moe2.agent import __main__ as agent
from moe2.common.terminal.commandline import ALWAYS, Command
from moe2.coordinator import __main__ as coordinator

_REPOSITORY = Path(__file__).parents[2]
_PROGRAMS: dict[str, ModuleType] = {"agent": agent, "coordinator": coordinator}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="capabilities and /dev/full")]


@dataclass(frozen=True)
class Walked:
    """A command as the parser has it."""

    program: str
    path: tuple[str, ...]
    parser: Command

    def __str__(self) -> str:
        return " ".join((self.program, *self.path))


def _commands(program: str, parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Walked]:
    assert isinstance(parser, Command)
    inner = [action for action in parser.filled()._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner or not inner[0].required:
        yield Walked(program, path, parser)
    for action in inner:
        for name, command in action.choices.items():
            yield from _commands(program, command, (*path, name))


COMMANDS = [walked for name, module in _PROGRAMS.items() for walked in _commands(name, module._parser())]


@dataclass(frozen=True)
class Condition:
    """What is odd. stdout: a file, "broken pipe", or None for one that is closed. forbidden: files may not be read.

    config: the files that commands are given: "missing", "good", or what cannot be used in another way.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    stdout: str | None = "output"
    forbidden: bool = False
    config: str = "good"

    def __str__(self) -> str:
        return self.name


_NARROW = {"COLUMNS": "40", "LINES": "10"}
_NO_HOME = {"HOME": "/proc", "XDG_CACHE_HOME": "/proc", "XDG_CONFIG_HOME": "/proc"}
_NO_UTF8 = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
CONDITIONS = [
    Condition("a locale that is not UTF-8", {"LANG": "en_US.ISO-8859-1", "LC_ALL": "en_US.ISO-8859-1"}),
    Condition("the C locale, 40 columns, a read-only home", {"LC_ALL": "C", **_NO_UTF8, **_NARROW, **_NO_HOME}),
    Condition("a broken pipe", stdout="broken pipe"),
    Condition("a closed standard output", stdout=None),
    Condition("a Turkish locale, 20 columns", {"LANG": "tr_TR.ISO-8859-9", "COLUMNS": "20", "LINES": "5"}),
    Condition("no locale, 20 columns, a broken pipe", {"COLUMNS": "20", **_NO_UTF8}, stdout="broken pipe"),
    Condition("a full disk", stdout="/dev/full"),
    Condition("missing files, the POSIX locale", {"LC_ALL": "POSIX", **_NO_UTF8}, config="missing"),
    Condition("no rights", forbidden=True, config="forbidden"),
    Condition("no rights to the state", forbidden=True),
    Condition("a folder as configuration", config="folder"),
    Condition("bytes as configuration", config="bytes"),
    Condition("an empty configuration", config="empty"),
]
_OUTPUTS = CONDITIONS[:7]
"""Those that change where or how text is written, help included."""


class Host:
    """A folder with what commands need, and a process under a condition that runs them."""

    def __init__(self, folder: Path, condition: Condition) -> None:
        self.condition = condition
        self.folder = folder
        self.errors = folder / "errors"
        self.output = folder / "output"
        for name in ("good", "state-agent", "state-coordinator"):
            (folder / name).mkdir()
        self._write_configurations()
        (folder / "folder").mkdir()
        (folder / "bytes").write_bytes(bytes(range(256)) * 4)
        (folder / "empty").write_bytes(b"")
        (folder / "forbidden").write_text("secret", encoding="utf-8")
        (folder / "forbidden").chmod(0)
        if condition.forbidden:
            for name in ("state-agent", "state-coordinator"):
                (folder / name).chmod(0)
        self._process = self._start()

    def _write_configurations(self) -> None:
        # Characters that Latin-1 and ASCII lack, and models and sockets that are not there.
        (self.folder / "good/agent.toml").write_text(
            f"""# Ωmega, 中文
[agent]
name = "Ω-Käfer 中"
state_dir = "{self.folder}/state-agent"
socket = "{self.folder}/none/agent.sock"
[coordinator]
url = "ws://127.0.0.1:9"
[sensors]
families = []
[[models]]
name = "a"
path = "{self.folder}/Ω中.gguf"
""",
            encoding="utf-8",
        )
        (self.folder / "good/coordinator.toml").write_text(
            f"""# Ωmega, 中文
[coordinator]
state_dir = "{self.folder}/state-coordinator"
socket = "{self.folder}/none/coordinator.sock"
""",
            encoding="utf-8",
        )

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))},
            "PYTHONPATH": os.pathsep.join([str(_REPOSITORY / "dev"), str(_REPOSITORY)]),
            "LOCPATH": str(self.folder / "locales"),
            "TERM": "xterm",
            # Nobody has this address, RFC 5737: a coordinator that is complete fails to listen, instead of serving.
            "MOE2_COORDINATOR__API__HOST": "203.0.113.1",
            **self.condition.environment,
        }
        if "ISO-8859" in environment.get("LANG", ""):
            self._make_locale(environment["LANG"])
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        argv = [sys.executable, "-m", "tests.fakes.commandline", str(orders), str(answers)]
        if os.geteuid() == 0:
            # Root may read everything, unless it lacks the capabilities that let it.
            argv = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *argv]
        closed = ">&-" if self.condition.stdout is None else ">/dev/null"
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closed} </dev/null', "sh", *argv],
            pass_fds=(orders, answers),
            env=environment,
            cwd=_REPOSITORY,
        )
        os.close(orders)
        os.close(answers)
        return process

    def _make_locale(self, name: str) -> None:
        locales = self.folder / "locales"
        locales.mkdir()
        language, _, encoding = name.partition(".")
        made = subprocess.run(
            ["localedef", "-i", language, "-f", encoding, str(locales / name)],
            capture_output=True,
            check=False,
        )
        if made.returncode > 1:
            pytest.skip("this system cannot make the locale")

    def run(self, walked: Walked, *arguments: str) -> tuple[int, str]:
        """The command's exit status (negative for a signal) and what it wrote to standard error."""
        stdout = self.condition.stdout
        order = {
            "program": walked.program,
            "arguments": [*walked.path, *arguments],
            "stderr": str(self.errors),
            "stdout": str(self.output) if stdout == "output" else stdout,
        }
        os.write(self._orders, json.dumps(order).encode() + b"\n")
        status = int(os.read(self._answers, 64))
        return os.waitstatus_to_exitcode(status), self.errors.read_bytes().decode(errors="replace")

    def arguments(self, walked: Walked) -> list[str]:
        """What the command needs, with files that are as the condition has them."""
        arguments: list[str] = []
        for action in walked.parser._actions:
            if isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
                continue
            if not action.option_strings:
                if action.nargs not in ("?", "*"):
                    arguments.append(self._value(action, walked))
            elif action.required or action.dest in ("config", "socket"):
                arguments += [action.option_strings[0], self._value(action, walked)]
        return arguments

    def _value(self, action: argparse.Action, walked: Walked) -> str:
        if action.choices:
            return str(next(iter(action.choices)))
        if action.type is Path or action.dest in ("config", "socket"):
            if self.condition.config != "good":
                return str(self.folder / self.condition.config)
            return str(self.folder / "good" / (f"{walked.program}.toml" if action.dest == "config" else action.dest))
        return "Ω"

    def end(self) -> None:
        """No more commands."""
        os.close(self._orders)
        os.close(self._answers)
        self._process.wait()


@pytest.fixture(scope="module", params=CONDITIONS, ids=str)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host under one of the conditions."""
    condition: Condition = request.param
    if condition.forbidden and os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything here")
    one = Host(tmp_path_factory.mktemp("host"), condition)
    yield one
    one.end()


OPTIONS = [
    (walked, action)
    for walked in COMMANDS
    for action in walked.parser._actions
    if action.option_strings
    and not isinstance(action, argparse._HelpAction | argparse._VersionAction)
    # That one ends by Ctrl-C only.
    and action.dest not in ("config", "socket", "watch")
    and not action.required
]


def _assert_is_told(walked: Walked, code: int, said: str) -> None:
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert code in {**ALWAYS, **walked.parser.exits}, said


@pytest.mark.parametrize("walked", COMMANDS, ids=str)
def test_a_command_ends_without_a_traceback(host: Host, walked: Walked) -> None:
    """With a documented exit status, and with words where it failed."""
    code, said = host.run(walked, *host.arguments(walked))
    _assert_is_told(walked, code, said)


@pytest.mark.parametrize("host", [CONDITIONS[1], CONDITIONS[8]], ids=str, indirect=True)
@pytest.mark.parametrize(("walked", "action"), OPTIONS, ids=lambda one: getattr(one, "dest", None) or str(one))
def test_an_option_ends_without_a_traceback(host: Host, walked: Walked, action: argparse.Action) -> None:
    """Every option that a command can do without, one at a time, with a value that may be of no use."""
    value = [] if action.nargs == 0 else [host._value(action, walked)]
    code, said = host.run(walked, *host.arguments(walked), action.option_strings[0], *value)
    _assert_is_told(walked, code, said)


@pytest.mark.parametrize("host", _OUTPUTS, ids=str, indirect=True)
@pytest.mark.parametrize("walked", COMMANDS, ids=str)
def test_help_ends_without_a_traceback(host: Host, walked: Walked) -> None:
    """The same for what explains the command."""
    code, said = host.run(walked, "--help")
    _assert_is_told(walked, code, said)
