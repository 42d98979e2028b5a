"""Where the API keys are kept: one JSON file of the daemon's user, replaced whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from moe2.common.errors import Moe2Error
from moe2.common.statefile import Stamp, locked, read_plain, replace_file, stamp_of
from moe2.coordinator.access.keys import KeySet

KEYS_FILE = "keys.json"


class KeyFileError(Moe2Error):
    """A key file that cannot be used. Says where it is wrong, never what it holds."""


class KeyFile:
    """The key file in a coordinator's state directory. A file that is not there holds no keys."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / KEYS_FILE

    def stamp(self) -> Stamp | None:
        """Changes whenever the file does; None where there is none. Raises `KeyFileError`."""
        try:
            return stamp_of(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self) -> KeySet:
        """Raises `KeyFileError`."""
        try:
            content = read_plain(self.path)
        except FileNotFoundError:
            return KeySet()
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            return KeySet.model_validate_json(content)
        except ValidationError as error:
            raise self._unusable(_fault(error)) from None

    @contextmanager
    def changing(self) -> Iterator[KeySet]:
        """The keys, while nobody else changes them: `write` within the block. Raises `KeyFileError`."""
        try:
            with locked(self.path):
                yield self.read()
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, keys: KeySet) -> None:
        """Replace the file: a reader sees the old keys or the new ones, also after a crash. Raises `KeyFileError`."""
        content = keys.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
        try:
            replace_file(self.path, content)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unreadable(self, error: OSError) -> KeyFileError:
        if isinstance(error, PermissionError):
            return KeyFileError(
                f"The API keys in {self.path} cannot be read: {error.strerror or error}.",
                remedy="Run the command with sudo; for the daemon, give the file to its user.",
            )
        return self._unusable(f"{error.strerror or error}")

    def _unusable(self, why: str) -> KeyFileError:
        return KeyFileError(
            f"The API keys in {self.path} cannot be used: {why}.",
            remedy="Restore the file, or move it away and make new keys with `moe2-coordinator keys create`.",
        )

    def _unwritable(self, error: OSError) -> KeyFileError:
        return KeyFileError(
            f"The API keys in {self.path} cannot be changed: {error.strerror or error}.",
            remedy="Run the command as the daemon's user, or with sudo.",
        )


def _fault(error: ValidationError) -> str:
    """The first fault and its place. Without the value: it may be the digest of a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
