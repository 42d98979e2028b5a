"""SIGHUP: reads the configuration again and applies what can change in a running daemon."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Generic, TypeVar

import structlog

from moe2.common.config import Settings
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.common.sdnotify import Notifier
from moe2.common.settingschange import Change, changes, merged

log = structlog.get_logger()
S = TypeVar("S", bound=Settings)


class Reload(Generic[S]):
    """Keeps the settings that a daemon runs with.

    load: reads the configuration; None where it did not come from a file.
    apply: takes the former settings and those that hold from now on; called also if nothing changed, as the files that
    the settings name may have. It raises `Moe2Error` before it has changed anything.
    """

    def __init__(
        self,
        running: S,
        *,
        load: Callable[[], S] | None,
        apply: Callable[[S, S], None],
        notifier: Notifier,
    ) -> None:
        self.running = running
        self._load = load
        self._apply = apply
        self._notifier = notifier
        self._refused: str | None = None
        self._pending: tuple[Change, ...] = ()

    def reload(self) -> None:
        """Apply what can be applied; say what cannot. A configuration that cannot be used changes nothing."""
        if self._load is None:
            log.warning("reload_ignored", reason="the settings did not come from a file")
            return
        # As Type=notify-reload wants it, systemd.service(5); other types ignore it.
        self._notifier.notify("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        try:
            wanted = self._load()
            settings = merged(self.running, wanted)
            self._apply(self.running, settings)
        except Moe2Error as error:
            self._refused = str(error)
            faults = error.faults if isinstance(error, ConfigError) else [str(error)]
            log.error("configuration_refused", faults=faults)
        else:
            told = changes(self.running, wanted)
            self.running, self._refused, self._pending = settings, None, told.needs_restart
            log.info("configuration_reloaded", applied={change.key: str(change.new) for change in told.applied})
            for change in told.needs_restart:
                log.warning("restart_needed", key=change.key, running=str(change.old), configured=str(change.new))
        finally:
            self._notifier.notify("READY=1")

    def warnings(self) -> list[HealthWarning]:
        """That the daemon does not run with what its configuration says."""
        warnings = [
            HealthWarning(
                code="restart_needed",
                severity=Severity.NOTICE,
                message=f"{change.key} is {_shown(change.old)} in the running daemon, "
                f"{_shown(change.new)} in its configuration.",
                remedy="Restart the daemon to apply it; SIGHUP cannot.",
            )
            for change in self._pending
        ]
        if self._refused is not None:
            warnings.append(
                HealthWarning(
                    code="configuration_refused",
                    severity=Severity.DEGRADED,
                    message=f"The changed configuration cannot be used, the former one holds: {self._refused}",
                    remedy="Correct it (`check-config` tells what is wrong), and reload again.",
                )
            )
        return warnings


def _shown(value: object) -> str:
    """Short enough for a status: of lists and tables only that they differ is told."""
    if value is None:
        return "not set"
    if isinstance(value, tuple | list | dict):
        return f"a list of {len(value)}"
    return str(value)
