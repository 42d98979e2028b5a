"""The one way by which commands write: whatever text comes from a host, a model or the network drives no terminal.

A board's name in a device tree, a model's metadata, an agent's error: a terminal would obey the control characters in
them. A table is drawn without them, lines have them replaced, and a JSON document has them escaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO, Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.segment import Segment

from moe2.common.terminal.figures import printable_lines

# C0 but the newline, DEL and C1 drive a terminal; bidirectional marks have it show text in another order.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Screen(Console):
    """A console on which text is text: neither control characters in it nor what looks like rich's markup count."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders into segments; the only ones that may move the cursor are rich's own."""
        for segment in super().render(renderable, options):
            # Left out, not replaced: rich has reckoned with no width for them.
            yield segment if segment.control else segment._replace(text=_OBEYED.sub("", segment.text))


def transfer_bars() -> Progress:
    """Bars for files that are on their way, on standard error where that is a terminal."""
    console = Screen(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def say(text: str, *, file: IO[str] | None = None) -> None:
    """Writes a line, or several, for people or a pipe. file: the standard output if not given."""
    (file or sys.stdout).write(printable_lines(text) + "\n")


def tell(text: str) -> None:
    """Writes a line, or several, to the standard error."""
    say(text, file=sys.stderr)


def say_json(document: object, *, file: IO[str] | None = None, indent: int | None = None) -> None:
    """Writes a value, or encoded JSON, as one document. indent: spaces of each level; None for one line."""
    encoded = document if isinstance(document, bytes) else msgspec.json.encode(document)
    text = (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()
    (file or sys.stdout).write(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
