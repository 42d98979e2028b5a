"""Which processes on a device are this agent's, and which are somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_MAX_GENERATIONS = 64


def strangers(process_ids: Iterable[int]) -> tuple[str, ...]:
    """Return those processes that are neither this one nor descend from it, such as "python3 (4711)".

    A process that has ended, or that belongs to another PID namespace and cannot be seen, is nobody's.
    """
    return tuple(_described(pid) for pid in sorted(process_ids) if _is_alive(pid) and not _is_ours(pid))


def _is_alive(process_id: int) -> bool:
    if process_id <= 0:
        # How NVML names a process that another PID namespace hides; to the kernel, 0 is our own process group.
        return False
    # Not /proc: systemd's ProtectProc=invisible hides other users' processes there.
    try:
        os.kill(process_id, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _is_ours(process_id: int) -> bool:
    for _ in range(_MAX_GENERATIONS):
        if process_id == os.getpid():
            return True
        parent = _parent(process_id)
        if parent is None or parent <= 1:
            return False
        process_id = parent
    return False


def _parent(process_id: int) -> int | None:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
        # The name, in parentheses, may hold anything.
        return int(status.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _described(process_id: int) -> str:
    try:
        name = Path(f"/proc/{process_id}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {process_id}"
    return f"{name} ({process_id})"
