"""Whether the agent's state can still be written: what it has learned, its checksums, what it serves.

Nothing of that is needed for an answer, so that nobody would notice until the next start.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from pathlib import Path

import structlog

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.common.errors import file_remedy
from moe2.common.health import HealthWarning, Severity
from moe2.common.statefile import write_fault

log = structlog.get_logger()

CHECK_S = 30.0


def state_fault_warning(folder: Path, fault: OSError) -> HealthWarning:
    """Returns what it means that nothing can be written into `folder`, and what to do. PURE."""
    otherwise = f"Let the agent's user write there; `ls -ld {folder}` shows who may, the unit's log as whom it runs."
    if fault.errno == errno.EROFS:
        otherwise = "The kernel log (`dmesg`) says why it is read-only, often errors of the disk; then mount it again."
    elif fault.errno in (errno.ENOSPC, errno.EDQUOT):
        otherwise = f"{file_remedy(fault, '')} `df -h {folder}` and `df -i {folder}` show what is left."
    elif fault.errno == errno.ENOENT:
        otherwise = f"Make {folder} again, for the agent's user."
    return HealthWarning(
        code="state_not_written",
        severity=Severity.DEGRADED,
        message=f"Nothing can be written into agent.state_dir, {folder}: {fault.strerror}. Requests are answered; what "
        "is learned about speed and joules, and what is to be served, would be lost at the next start.",
        remedy=otherwise,
    )


class StateDisk:
    """Looks again and again whether the folder of state can be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fault: OSError | None = None

    async def run(self) -> None:
        """Looks every `CHECK_S` seconds, until it is cancelled."""
        while True:
            fault = await in_daemon_thread(partial(write_fault, self._folder))
            if fault is not None and self._fault is None:
                log.error("state_not_written", folder=str(self._folder), error=fault.strerror)
            elif fault is None and self._fault is not None:
                log.info("state_written_again", folder=str(self._folder))
            self._fault = fault
            await asyncio.sleep(CHECK_S)

    def warnings(self) -> tuple[HealthWarning, ...]:
        """The warning that nothing can be written, while that is so."""
        return () if self._fault is None else (state_fault_warning(self._folder, self._fault),)
