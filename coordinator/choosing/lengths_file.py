"""The file in which learned lengths of prompts and answers outlive a restart; `lengths` itself touches no file."""

from __future__ import annotations

from pathlib import Path

import structlog

from moe2.common.statefile import read_json, write_json
from moe2.coordinator.choosing.lengths import VERSION, SavedLengths

log = structlog.get_logger()


class LengthsFile:
    """The file in a coordinator's state directory. Trouble with it is logged: lengths can be learned anew."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "lengths.json"

    def read(self) -> SavedLengths:
        """What was kept; nothing where there is no file, or none that can be understood."""
        saved, reason = read_json(self.path, SavedLengths)
        if saved is not None and saved.version != VERSION:
            reason = f"it is of version {saved.version}"
            saved = None
        if reason is not None:
            log.warning("lengths_unreadable", path=str(self.path), reason=reason)
        return saved or SavedLengths()

    def write(self, saved: SavedLengths) -> None:
        """Replaces what was kept; a reader sees the former file or the new one. Blocks."""
        reason = write_json(self.path, saved)
        if reason is not None:
            log.error("lengths_not_kept", path=str(self.path), reason=reason)
