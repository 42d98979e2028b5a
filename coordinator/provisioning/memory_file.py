"""The file in which an operator's wishes, the sleeping hosts and what was tried with them outlive a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from moe2.common.statefile import read_json, write_json
from moe2.coordinator.fleet.table import Sleeper
from moe2.coordinator.provisioning.steering import Away, Wishes
from moe2.coordinator.provisioning.trials import Trial

log = structlog.get_logger()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept."""

    wishes: Wishes = Wishes()
    sleepers: tuple[Sleeper, ...] = ()
    trials: tuple[Trial, ...] = ()
    not_woken: dict[str, str] = {}
    """Names of hosts that could not be woken and were not seen since, by their keys."""
    away: tuple[Away, ...] = ()
    """What mode act has put to sleep or unloaded and not seen back."""
    changed_unix_s: dict[str, tuple[float, ...]] = {}
    """When each host has changed its state in the last day, by its key."""


class MemoryFile:
    """The file in a coordinator's state directory. Trouble with it is logged; the fleet is served without it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "provisioning.json"
        self._written: Memory | None = None

    def read(self) -> Memory:
        """What was kept; nothing where there is no file, or none that can be understood."""
        memory, reason = read_json(self.path, Memory)
        if reason is not None:
            log.warning("provisioning_unreadable", path=str(self.path), reason=reason)
        return memory or Memory()

    def write(self, memory: Memory) -> None:
        """Replaces what was kept where it differs. Blocks."""
        if memory == self._written:
            return
        reason = write_json(self.path, memory)
        if reason is None:
            self._written = memory
        else:
            log.error("provisioning_not_kept", path=str(self.path), reason=reason)
