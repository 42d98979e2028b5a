"""Why the demo cannot go on."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 25


class DemoError(Exception):
    """`str()` is for the person who runs the demo. log: lines from the log of the process that is to blame."""

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user wants it to end."""


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
