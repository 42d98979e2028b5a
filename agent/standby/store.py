"""What was measured of waiting, on disk: a restarted agent begins with it, and tells its age."""

from __future__ import annotations

from pathlib import Path

import msgspec

from moe2.agent.standby.transitions import Measured
from moe2.common.clock import is_clock_wrong
from moe2.common.errors import Moe2Error
from moe2.common.standby import IdlePower
from moe2.common.statefile import replace_file

FILE_NAME = "standby.json"
MAX_FILE_BYTES = 1024 * 1024
MAX_KEPT_S = 90 * 86_400.0
"""Figures that are older say little of a host that has been updated since."""


class StoredIdle(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The idle power of one state in one power mode, as of `at_unix_s`.

    files: SHA-256 of the files that the models in memory had, by name, where they were known.
    """

    power_mode: str | None = None
    idle: IdlePower
    at_unix_s: float
    files: dict[str, str] = {}


class StoredStandby(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is kept of how this host waits."""

    idle: tuple[StoredIdle, ...] = ()
    transitions: tuple[Measured, ...] = ()


def load_standby(state_dir: Path, now_unix_s: float) -> StoredStandby:
    """Returns what was stored, without what is too old; nothing where no file is.

    Where the clock is wrong now, or was when something was measured, its age is not known and it is kept. Raises
    Moe2Error if there is a file that cannot be used.
    """
    path = state_dir / FILE_NAME
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Moe2Error(f"{path} is too large to be the agent's.", remedy="Remove it; all of it is measured again.")
        stored = msgspec.json.decode(path.read_bytes(), type=StoredStandby)
    except FileNotFoundError:
        return StoredStandby()
    except OSError as error:
        raise Moe2Error(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        remedy = "Remove it; all of it is measured again."
        raise Moe2Error(f"{path} is not what this release writes: {error}.", remedy=remedy) from error

    def is_kept(at_unix_s: float) -> bool:
        return now_unix_s - at_unix_s <= MAX_KEPT_S or is_clock_wrong(now_unix_s) or is_clock_wrong(at_unix_s)

    return StoredStandby(
        idle=tuple(one for one in stored.idle if is_kept(one.at_unix_s)),
        transitions=tuple(one for one in stored.transitions if is_kept(one.at_unix_s) and one.duration_s >= 0),
    )


def store_standby(state_dir: Path, stored: StoredStandby) -> None:
    """Writes it in place of what was stored. Raises OSError."""
    replace_file(state_dir / FILE_NAME, msgspec.json.format(msgspec.json.encode(stored), indent=2), mode=0o644)
