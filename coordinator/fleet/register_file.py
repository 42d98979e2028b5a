"""The file of the register: one JSON file, replaced as a whole, changed by one process at a time.

The commands change it as well as the daemon, which therefore checks whether it has changed before it uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.statefile import Stamp, locked, read_plain, replace_file, stamp_of
from moe2.coordinator.fleet.register import Register

FILE_NAME = "enrolment.json"
T = TypeVar("T")


class RegisterStore(Protocol):
    """The place that keeps the register: this coordinator's file, or the database that coordinators share."""

    @property
    def is_believed(self) -> bool:
        """Whether what it says can be believed now."""

    def current(self) -> Register:
        """Returns the register. Raises `Moe2Error` if it cannot be used."""

    def change(self, change: Callable[[Register], tuple[T, Register]]) -> T:
        """Applies `change` to the register and keeps its outcome. Blocks.

        Raises `Moe2Error` if it cannot be used, and whatever `change` raises.
        """


class RegisterFile:
    """The register's file in a state directory; a `RegisterStore`. Nobody but its owner may read it."""

    is_believed = True

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._known: tuple[Stamp | None, Register] = (None, Register())

    def current(self) -> Register:
        """Returns the register, read only if the file was replaced. Raises `Moe2Error` if it cannot be used."""
        with self._explained():
            found = stamp_of(self.path)
            if found != self._known[0]:
                register = Register() if found is None else msgspec.json.decode(read_plain(self.path), type=Register)
                self._known = (found, register)
        return self._known[1]

    def change(self, change: Callable[[Register], tuple[T, Register]]) -> T:
        """Applies `change` to the register in the file and keeps its outcome.

        Raises `Moe2Error` if the file cannot be used, and whatever `change` raises.
        """
        with self._explained(), locked(self.path):
            before = self.current()
            told, after = change(before)
            if after is not before:
                replace_file(self.path, msgspec.json.format(msgspec.json.encode(after), indent=1))
        return told

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Moe2Error(
                f"The register of agents {self.path} cannot be used: {error.strerror or error}.",
                remedy=file_remedy(
                    error, "Run the command as root or as the coordinator's user, and look at coordinator.state_dir."
                ),
            ) from error
        except msgspec.MsgspecError as error:
            raise Moe2Error(
                f"The register of agents {self.path} cannot be understood: {error}.",
                remedy="Restore it from a backup, or remove it and enrol the agents again.",
            ) from error
