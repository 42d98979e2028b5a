"""The store of API keys: one JSON file of the daemon's user, and the keys in force, read anew whenever it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Protocol

import structlog
from pydantic import ValidationError

from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.health import HealthWarning, Severity
from moe2.common.statefile import Stamp, locked, read_plain, replace_file, stamp_of
from moe2.coordinator.keys.keys import KeyRecord, KeySet, KeyState, Refusal, check

log = structlog.get_logger()

KEYS_FILE = "keys.json"


class KeyFileError(Moe2Error):
    """A key file cannot be used. The message says where it is wrong, never what it holds."""


class KeySource(Protocol):
    """The place where a coordinator's keys come from: its own file, or its copy of those that coordinators share."""

    @property
    def is_believed(self) -> bool:
        """Whether what it says can be believed now."""

    def stamp(self) -> object:
        """Returns what changes whenever the keys do. Raises `KeyFileError`."""

    def read(self) -> KeySet:
        """Returns the keys. Raises `KeyFileError`."""


class KeyFile:
    """The key file in a coordinator's state directory; a `KeySource`. A missing file holds no keys."""

    is_believed = True

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / KEYS_FILE

    def stamp(self) -> Stamp | None:
        """Returns a stamp that changes whenever the file does; None where there is no file. Raises `KeyFileError`."""
        try:
            return stamp_of(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self) -> KeySet:
        """Returns the keys in the file. Raises `KeyFileError`."""
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
        """Locks the file and yields its keys, to be changed by `write` within the block. Raises `KeyFileError`."""
        try:
            with locked(self.path):
                yield self.read()
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, keys: KeySet) -> None:
        """Replaces the file: a reader sees the old keys or the new ones, also after a crash. Raises `KeyFileError`."""
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
            remedy=file_remedy(error, "Run the command as the daemon's user, or with sudo."),
        )


def _fault(error: ValidationError) -> str:
    """Describes the first fault and its place, without the value, which may be the digest of a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


class KeyRing:
    """The keys in force. A key that is made or revoked counts from the next question on.

    A file that is damaged while the coordinator runs changes nothing: the former keys stay in force, with a warning.
    clock: seconds since the epoch. Raises `KeyFileError` if the file cannot be used from the start.
    """

    def __init__(self, file: KeySource, *, clock: Callable[[], float] = time) -> None:
        self._file = file
        self._clock = clock
        self._fault: KeyFileError | None = None
        # The stamp first: a change between the two is seen at the next look.
        self._stamp: object = file.stamp()
        self._records = file.read().by_id()

    def check(self, presented: str) -> KeyRecord | Refusal:
        """Returns the record of a presented key, or why it is refused."""
        if not self._file.is_believed:
            return Refusal.COPY_TOO_OLD
        self._refresh()
        return check(presented, self._records, self._clock())

    def is_active(self, key_id: str) -> bool:
        """Whether a key that was accepted would still be."""
        if not self._file.is_believed:
            return False
        self._refresh()
        record = self._records.get(key_id)
        return record is not None and record.state(self._clock()) is KeyState.ACTIVE

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns warnings about a damaged key file and about a lack of active keys."""
        if not self._file.is_believed:
            # Why that is has a warning of its own.
            return ()
        self._refresh()
        if self._fault:
            return (
                HealthWarning(
                    code="keys_damaged",
                    severity=Severity.DEGRADED,
                    message=f"{self._fault.message} The former keys stay in force.",
                    remedy=self._fault.remedy or "",
                ),
            )
        now_unix_s = self._clock()
        if not any(record.state(now_unix_s) is KeyState.ACTIVE for record in self._records.values()):
            return (
                HealthWarning(
                    code="no_keys",
                    severity=Severity.DEGRADED,
                    message="API keys are required, but there is no active one: every request is answered with 401.",
                    remedy="Make one: `moe2-coordinator keys create NAME`.",
                ),
            )
        return ()

    def _refresh(self) -> None:
        """Reads the file if it has changed; otherwise it costs one stat(2), a microsecond."""
        try:
            stamp = self._file.stamp()
        except KeyFileError as error:
            if not isinstance(self._stamp, KeyFileError):
                self._stamp = error
                self._keep_former(error)
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._records = self._file.read().by_id()
        except KeyFileError as error:
            self._keep_former(error)
            return
        self._fault = None
        log.info("keys_read", keys=len(self._records))

    def _keep_former(self, fault: KeyFileError) -> None:
        self._fault = fault
        log.error("keys_damaged", reason=fault.message)
