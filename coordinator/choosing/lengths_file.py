"""The file in which learned lengths of prompts and answers outlive a restart; `lengths` itself touches no file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from moe2.common.statefile import read_plain, replace_file
from moe2.coordinator.choosing.lengths import VERSION, SavedLengths

log = structlog.get_logger()


class LengthsFile:
    """The file in a coordinator's state directory. Trouble with it is logged: lengths can be learned anew."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "lengths.json"

    def read(self) -> SavedLengths:
        """What was kept; nothing where there is no file, or none that can be understood."""
        try:
            saved = msgspec.json.decode(read_plain(self.path), type=SavedLengths)
        except FileNotFoundError:
            return SavedLengths()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("lengths_unreadable", path=str(self.path), reason=str(error))
            return SavedLengths()
        if saved.version != VERSION:
            log.warning("lengths_unreadable", path=str(self.path), reason=f"it is of version {saved.version}")
            return SavedLengths()
        return saved

    def write(self, saved: SavedLengths) -> None:
        """Replaces what was kept; a reader sees the former file or the new one. Blocks."""
        try:
            replace_file(self.path, msgspec.json.encode(saved) + b"\n")
        except OSError as error:
            log.error("lengths_not_kept", path=str(self.path), reason=error.strerror or str(error))
