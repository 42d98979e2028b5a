"""Files that a daemon's start needs beside its configuration, looked at without starting it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.terminal.output import tell


@dataclass(frozen=True)
class Needed:
    """What one setting needs. paths: its files, None where not set. load: raises `Moe2Error` as a start does."""

    setting: str
    paths: tuple[Path | None, ...]
    load: Callable[[], object]


def check_files(needed: Iterable[Needed]) -> None:
    """Loads each. Says which ones this user may not look at; raises `ConfigError` with all that cannot be used."""
    faults = []
    for one in needed:
        if barred := next((path for path in one.paths if path is not None and _is_barred(path)), None):
            tell(f"{one.setting}: whether it can be used is not known, as you may not read {barred}. Ask with sudo.")
            continue
        try:
            one.load()
        except ConfigError as error:
            faults += error.faults
        except Moe2Error as error:
            faults.append(f"{one.setting}: {error}")
    if faults:
        raise ConfigError(faults)


def _is_barred(path: Path) -> bool:
    try:
        path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        return False
    return False
