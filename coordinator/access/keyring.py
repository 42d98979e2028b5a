"""The API keys in force: read at the start, and again whenever their file has changed."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import structlog

from moe2.common.health import HealthWarning, Severity
from moe2.common.statefile import Stamp
from moe2.coordinator.access.keyfile import KeyFile, KeyFileError
from moe2.coordinator.access.keys import KeyRecord, KeyState, Refusal, check

log = structlog.get_logger()


class KeyRing:
    """Answers whose key it is. A key that is made or revoked counts from the next question on.

    A file that is damaged while the coordinator runs changes nothing: the keys of before stay in force, with a warning.
    clock: seconds since the epoch. Raises `KeyFileError` if the file cannot be used from the start.
    """

    def __init__(self, file: KeyFile, *, clock: Callable[[], float] = time) -> None:
        self._file = file
        self._clock = clock
        self._fault: KeyFileError | None = None
        # The stamp first: a change between the two is seen at the next look.
        self._stamp: Stamp | KeyFileError | None = file.stamp()
        self._records = file.read().by_id()

    def check(self, presented: str) -> KeyRecord | Refusal:
        """Whose key this is."""
        self._refresh()
        return check(presented, self._records, self._clock())

    def is_active(self, key_id: str) -> bool:
        """Whether a key that was accepted still would be."""
        self._refresh()
        record = self._records.get(key_id)
        return record is not None and record.state(self._clock()) is KeyState.ACTIVE

    def warnings(self) -> tuple[HealthWarning, ...]:
        self._refresh()
        if self._fault:
            return (
                HealthWarning(
                    code="keys_damaged",
                    severity=Severity.DEGRADED,
                    message=f"{self._fault.message} The keys of before stay in force.",
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
        """One stat(2), a microsecond; the file is read only if it has changed."""
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
