"""The file in which an operator's wishes, the sleeping hosts and what was tried with them outlive a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from moe2.common.statefile import read_plain, replace_file
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


class MemoryFile:
    """The file in a coordinator's state directory. Trouble with it is logged; the fleet is served without it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "provisioning.json"
        self._written: Memory | None = None

    def read(self) -> Memory:
        """What was kept; nothing where there is no file, or none that can be understood."""
        try:
            return msgspec.json.decode(read_plain(self.path), type=Memory)
        except FileNotFoundError:
            return Memory()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("provisioning_unreadable", path=str(self.path), reason=str(error))
            return Memory()

    def write(self, memory: Memory) -> None:
        """Replaces what was kept where it differs. Blocks."""
        if memory == self._written:
            return
        try:
            replace_file(self.path, msgspec.json.encode(memory) + b"\n")
            self._written = memory
        except OSError as error:
            log.error("provisioning_not_kept", path=str(self.path), reason=error.strerror or str(error))
