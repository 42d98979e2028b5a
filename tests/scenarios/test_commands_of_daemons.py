"""What the programs show of running daemons on odd terminals, where hosts, models and requests have hostile names."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import sysfs
from tests.fakes.fleet import fleet
from tests.scenarios.test_commandlines import COMMANDS, Condition, Host, Walked, _assert_is_told

pytestmark = pytest.mark.slow

NAME = "Ω-[/x] [bold]"
HOSTILE = "Ω\x1b]0;mine\x07\x1b[2J\x9b31m[/x]\u202e"
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
TERMINAL = "terminal"
CONDITIONS = [
    Condition("a wide terminal", {"COLUMNS": "200"}, stdout=TERMINAL),
    Condition("a terminal of 30 columns in the C locale", {"COLUMNS": "30", **_C}, stdout=TERMINAL),
    Condition("a pipe in a locale that is not UTF-8", {"LANG": "en_US.ISO-8859-1", "LC_ALL": "en_US.ISO-8859-1"}),
    Condition("a broken pipe", stdout="broken pipe"),
    Condition("a full disk", stdout="/dev/full"),
]
SHOWN = [
    ("agent status", ()),
    ("agent status", ("--json",)),
    ("agent models", ()),
    ("agent models", ("--json",)),
    ("coordinator status", ()),
    ("coordinator status", ("--json",)),
    ("coordinator status", ("--calibration",)),
    ("coordinator plan", ("hello",)),
    ("coordinator plan", ("hello", "--json")),
    ("coordinator fleet show", ()),
    ("coordinator models show", ()),
    ("coordinator models show", ("--json",)),
    ("coordinator ledger", ()),
    ("coordinator ledger", ("--requests",)),
    ("coordinator ledger", ("--standing", "--json")),
    ("coordinator agents list", ()),
    ("coordinator agents list", ("--json",)),
    ("coordinator keys list", ()),
]


@contextmanager
def _terminal(written: list[bytes]) -> Iterator[str]:
    """The path of a terminal; what is written there is collected."""
    ours, theirs = os.openpty()

    def read() -> None:
        # Reading ends with an error once nobody has the other side open.
        with suppress(OSError):
            while piece := os.read(ours, 65536):
                written.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def _run(host: Host, walked: Walked, arguments: tuple[str, ...]) -> tuple[int, str, str]:
    """The exit status, what it wrote to standard error, and what to standard output."""
    condition = host.condition
    host.output.unlink(missing_ok=True)
    if condition.stdout != TERMINAL:
        code, said = host.run(walked, *arguments)
        return code, said, host.output.read_bytes().decode(errors="replace") if host.output.exists() else ""
    written: list[bytes] = []
    with _terminal(written) as path:
        host.condition = replace(condition, stdout=path)
        code, said = host.run(walked, *arguments)
        host.condition = condition
    return code, said, b"".join(written).decode(errors="replace")


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
async def test_what_is_shown_of_running_daemons_is_told_and_drives_no_terminal(
    tmp_path: Path, condition: Condition
) -> None:
    """No traceback, a documented exit status, and no control sequences but those of styles."""
    commands = {str(walked): walked for walked in COMMANDS}
    tree = tmp_path / "tree"
    sysfs.orin_nx(tree)
    sysfs.device_tree(tree, f"Board {HOSTILE}", "nvidia,tegra234")
    sysfs.write(tree, "proc/cpuinfo", f"model name : Processor {HOSTILE}")
    (tree / "run").mkdir()
    async with fleet(tmp_path, agent={"name": NAME}, sensors_root=tree) as running:
        async with await running.chat("hello") as answer:
            assert answer.status == 200
        await running.quiet()
        config = tmp_path / "shown.toml"
        config.write_text(
            f'[coordinator]\nstate_dir = "{tmp_path}"\nsocket = "{tmp_path}/none.sock"\n[api]\nkeys = "required"\n'
        )
        folder = tmp_path / "host"
        folder.mkdir()
        host = Host(folder, condition)
        try:
            for name, options in SHOWN:
                walked = commands[name]
                asks = any(action.dest == "socket" for action in walked.parser._actions)
                socket = tmp_path / ("one.sock" if walked.program == "agent" else "coordinator.sock")
                place = ("--socket", str(socket)) if asks else ("--config", str(config))
                code, said, shown = await asyncio.to_thread(_run, host, walked, (*options, *place))
                _assert_is_told(walked, code, said)
                text = _SGR.sub("", shown).replace("\r\n", "\n") + said
                assert [char for char in text if not (char.isprintable() or char == "\n" or ord(char) == 0xA0)] == []
                if condition.stdout in (TERMINAL, "output"):
                    assert code in (0, 1), said
                    assert shown or name == "coordinator keys list"
        finally:
            host.end()
