"""The files in which what the slow level knows and learned prices outlive a restart; nothing else here touches any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from moe2.common.health import HealthWarning, Severity
from moe2.common.statefile import read_json, write_json
from moe2.common.status import AgentRow
from moe2.coordinator.fleet.table import Sleeper
from moe2.coordinator.provisioning.figures import Fleet
from moe2.coordinator.provisioning.price_book import SavedPrices
from moe2.coordinator.provisioning.steering import Away, Wishes
from moe2.coordinator.provisioning.trials import Trial

log = structlog.get_logger()
PRICES_VERSION = 1
KEEP_FLEET_EVERY_S = 600.0
SMALL_FLEET_HOSTS = 100
"""A file of so many hosts is written that often; of more, as much more seldom."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the slow level knows and cannot find again after a restart of the coordinator."""

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


class KnownFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet as a coordinator knew it, for whoever asks while none runs. agents: those connected or asleep then."""

    at_unix_s: float
    agents: tuple[AgentRow, ...]


class FleetFile:
    """The file of the latest known fleet in a coordinator's state directory. Nobody serves by it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "fleet.json"
        self._kept: tuple[frozenset[str], float] | None = None
        """The hosts whose watts were known when it was written last, and when that was."""

    def read(self) -> KnownFleet | None:
        """Returns the fleet that was kept; None where there is no file, or none that this release understands."""
        return read_json(self.path, KnownFleet)[0]

    def is_due(self, fleet: Fleet, now_unix_s: float) -> bool:
        """Returns whether to write: now and then, and when the watts of hosts become known, or are no more."""
        if self._kept is None:
            return True
        known, at_unix_s = self._kept
        large = max(1.0, len(fleet.hosts) / SMALL_FLEET_HOSTS)
        is_old = not 0.0 <= now_unix_s - at_unix_s < KEEP_FLEET_EVERY_S * large
        return is_old or len(known ^ _with_known_watts(fleet)) >= large

    def write(self, fleet: Fleet, rows: Sequence[AgentRow], now_unix_s: float) -> None:
        """Replaces what was kept. fleet: the figures in `rows`. Blocks."""
        agents = tuple(row for row in rows if row.connected or row.asleep)
        reason = write_json(self.path, KnownFleet(at_unix_s=now_unix_s, agents=agents))
        if reason is not None:
            log.error("fleet_not_kept", path=str(self.path), reason=reason)
        self._kept = _with_known_watts(fleet), now_unix_s


def _with_known_watts(fleet: Fleet) -> frozenset[str]:
    return frozenset(host.key for host in fleet.hosts if host.awake_w is not None)


class PriceFile:
    """The file of the prices in a coordinator's state directory. Prices can be learned again, so that no trouble with
    the file ends the coordinator: it is told in `warnings`."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "prices.json"
        self._unread: str | None = None
        """Why what the file held was not taken over."""
        self._unwritten: str | None = None
        """Why the latest prices are not in the file."""

    def read(self) -> SavedPrices:
        """What was kept; nothing where there is no file, or none that can be understood."""
        saved, reason = read_json(self.path, SavedPrices)
        if saved is not None and saved.version != PRICES_VERSION:
            reason = f"it is of version {saved.version}, and this release knows {PRICES_VERSION}"
            saved = None
        if reason is not None:
            self._unread = reason
        return saved or SavedPrices()

    def write(self, saved: SavedPrices) -> None:
        """Replace what was kept; a reader sees the former file or the new one, also after a crash. Blocks."""
        self._unwritten = write_json(self.path, saved)
        if self._unwritten is None:
            self._unread = None

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What an operator should know of the file."""
        warnings = []
        if self._unread is not None:
            warnings.append(
                HealthWarning(
                    code="prices_unreadable",
                    severity=Severity.NOTICE,
                    message=f"The prices in {self.path} cannot be used and are learned anew: {self._unread}.",
                    remedy="Nothing needs to be done: the file is replaced when the first prices are kept.",
                )
            )
        if self._unwritten is not None:
            warnings.append(
                HealthWarning(
                    code="prices_not_kept",
                    severity=Severity.DEGRADED,
                    message=f"The prices of average budgets cannot be kept in {self.path}: {self._unwritten}.",
                    remedy="Make room on the disk, or make the folder writable for the daemon's user.",
                )
            )
        return tuple(warnings)
