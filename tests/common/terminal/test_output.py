"""What commands write: foreign text is shown, and drives no terminal."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from moe2.common.terminal.output import Screen, say, say_json

_REPOSITORY = Path(__file__).parents[3]
_COMMANDS = [
    *sorted((_REPOSITORY / "agent/cli").glob("*.py")),
    *sorted((_REPOSITORY / "coordinator/cli").glob("*.py")),
    *sorted((_REPOSITORY / "common/terminal").glob("*.py")),
    *(_REPOSITORY / side / "__main__.py" for side in ("agent", "coordinator")),
]
# A new title, red, a line above overwritten, a C1 sequence, and text from right to left.
HOSTILE = "\x1b]0;mine\x07\x1b[31mred\rover\x9b2J\u202e[/x] [bold]"


def _drawn(renderable: object) -> str:
    file = io.StringIO()
    Screen(file=file, width=160, force_terminal=True, color_system="truecolor").print(renderable)
    return file.getvalue()


def _table(cell: str | Text) -> Table:
    table = Table("heading")
    table.add_row(cell)
    return table


@pytest.mark.parametrize("shape", [str, Text, _table, lambda text: _table(Text(text, "red"))])
def test_a_screen_shows_foreign_text_and_does_not_obey_it(shape: type[str]) -> None:
    """Whatever rich draws it in; the only sequences are those of styles, and markup is text."""
    drawn = _drawn(shape(HOSTILE))
    drawn = re.sub("\x1b\\[[0-9;]*m", "", drawn)
    assert all(char.isprintable() or char == "\n" for char in drawn)
    assert "]0;mine[31mredover2J[/x] [bold]" in drawn


def test_a_screen_still_draws_in_colour() -> None:
    """Styles are not foreign text."""
    assert "\x1b[31m" in _drawn(Text("red", style="red"))


def test_lines_are_text() -> None:
    """Line by line, for people and for pipes."""
    file = io.StringIO()
    say(f"{HOSTILE}\nsecond", file=file)
    first, second = file.getvalue().splitlines()
    assert first.isprintable()
    assert second == "second"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_says_the_same_and_drives_no_terminal(indent: int | None) -> None:
    """JSON has escapes for what a terminal would obey; msgspec leaves DEL, C1 and bidirectional marks as they are."""
    file = io.StringIO()
    say_json({"name": HOSTILE}, file=file, indent=indent)
    assert all(char.isprintable() or char == "\n" for char in file.getvalue())
    assert json.loads(file.getvalue()) == {"name": HOSTILE}


@pytest.mark.parametrize("path", _COMMANDS, ids=lambda path: str(path.relative_to(_REPOSITORY)))
def test_commands_write_in_no_other_way(path: Path) -> None:
    """No console of rich's own, no print, and no write to a stream: output.py has the one door."""
    if path.name == "output.py":
        return
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    others = {"Console", "print", "sys.stdout.write", "sys.stderr.write", "console.file.write"}
    assert not calls & others
