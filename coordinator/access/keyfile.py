"""Where the API keys are kept: one JSON file of the daemon's user, replaced whole."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from moe2.common.errors import Moe2Error
from moe2.coordinator.access.keys import KeySet

KEYS_FILE = "keys.json"
_DRAFT = f".{KEYS_FILE}.draft-"
Stamp = tuple[int, int, int, int]


class KeyFileError(Moe2Error):
    """A key file that cannot be used. Says where it is wrong, never what it holds."""


class KeyFile:
    """The key file in a coordinator's state directory. A file that is not there holds no keys."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / KEYS_FILE

    def stamp(self) -> Stamp | None:
        """Changes whenever the file does; None where there is none. Raises `KeyFileError`."""
        try:
            facts = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        return facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size

    def read(self) -> KeySet:
        """Raises `KeyFileError`."""
        try:
            content = _content(self.path)
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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._give_to_owner(lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A command that was killed has left its draft; nobody else can be writing one now.
            for draft in self.path.parent.glob(f"{_DRAFT}*"):
                draft.unlink(missing_ok=True)
            yield self.read()
        finally:
            os.close(lock)

    def write(self, keys: KeySet) -> None:
        """Replace the file: a reader sees the old keys or the new ones, also after a crash. Raises `KeyFileError`."""
        content = keys.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
        try:
            # mkstemp makes the file for its owner only, 0600.
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=_DRAFT)
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    self._give_to_owner(file.fileno())
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except OSError:
                with suppress(OSError):
                    os.unlink(name)
                raise
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def _give_to_owner(self, descriptor: int) -> None:
        """What root makes with the command belongs to the daemon's user, who owns the directory."""
        if os.geteuid() == 0:
            facts = os.stat(self.path.parent)
            os.fchown(descriptor, facts.st_uid, facts.st_gid)

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


def _content(path: Path) -> bytes:
    """Of a plain file. The command may run as root, in a directory of the daemon's user: no link leads it astray."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _fault(error: ValidationError) -> str:
    """The first fault and its place. Without the value: it may be the digest of a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
