"""Where the register is kept: one JSON file, replaced as a whole, changed by one process at a time.

The commands change it as well as the daemon, which therefore looks whether it has changed before it uses it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from moe2.common.errors import Moe2Error
from moe2.coordinator.enrolment.register import Register

FILE_NAME = "enrolment.json"
T = TypeVar("T")


class RegisterFile:
    """The file in a state directory. Nobody but its owner may read it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._known: tuple[tuple[int, int, int] | None, Register] = (None, Register())

    def current(self) -> Register:
        """What the file holds now; read only if it was replaced. Raises `Moe2Error` for one that cannot be used."""
        with self._explained():
            stamp, register = self._known
            try:
                found = self.path.stat()
            except FileNotFoundError:
                if stamp is not None:
                    self._known = (None, Register())
                return self._known[1]
            # A replaced file is another inode, however coarse the clock of the file system is.
            if stamp != (stamp := (found.st_ino, found.st_mtime_ns, found.st_size)):
                register = msgspec.json.decode(self._read(), type=Register)
                self._known = (stamp, register)
        return register

    def change(self, change: Callable[[Register], tuple[T, Register]]) -> T:
        """Apply `change` to what the file holds now, and keep its outcome. Raises `Moe2Error`, and what it raises."""
        with self._explained(), self._locked():
            before = self.current()
            told, after = change(before)
            if after is not before:
                self._replace(msgspec.json.format(msgspec.json.encode(after), indent=1))
        return told

    def _read(self) -> bytes:
        # No links: root's command must not be led to other files by the daemon's user.
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return file.read()

    def _replace(self, content: bytes) -> None:
        draft = self.path.with_name(f".{FILE_NAME}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                self._own(file.fileno())
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise

    def _own(self, descriptor: int) -> None:
        """What root's command wrote is to be the daemon's, whose directory it is."""
        if os.geteuid() == 0:
            owner = self.path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{FILE_NAME}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            # Only what was made here is given away: another name of somebody's file could stand there.
            self._own(descriptor)
        except FileExistsError:
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A process that was killed has left its draft; nobody else can be writing one now.
            for draft in self.path.parent.glob(f".{FILE_NAME}.[0-9]*"):
                draft.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Moe2Error(
                f"The register of agents {self.path} cannot be used: {error.strerror or error}.",
                remedy="Run the command as root or as the coordinator's user, and look at coordinator.state_dir.",
            ) from error
        except msgspec.MsgspecError as error:
            raise Moe2Error(
                f"The register of agents {self.path} cannot be understood: {error}.",
                remedy="Restore it from a backup, or remove it and enrol the agents again.",
            ) from error
