"""`moe2-coordinator status`: asks the daemon over its socket and draws the answer."""

from __future__ import annotations

from pathlib import Path


def show_status(socket: Path, *, as_json: bool, watch: bool) -> int:
    """Print the status; returns the exit code: 0 healthy, 1 degraded, 2 not running."""
    raise NotImplementedError
