"""SIGHUP: the settings are read again, and what may change in a running daemon is applied.

The settings types say by the mark `LIVE` which of their fields are applied. A key is a setting's dotted path, such as
"agents.tls.certificate".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Generic, TypeVar, get_args

import structlog
from pydantic.fields import FieldInfo

from moe2.common.config import LIVE, Settings
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.common.sdnotify import Notifier

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
        """The warning that the daemon does not run with what its configuration says."""
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


ABSENT = "not there"
PRESENT = "there"


@dataclass(frozen=True)
class Change:
    """A changed setting; its values are for people."""

    key: str
    old: object
    new: object


@dataclass(frozen=True)
class Changes:
    """applied: what holds from now on. needs_restart: what the running daemon keeps as it was."""

    applied: tuple[Change, ...]
    needs_restart: tuple[Change, ...]


def section_of(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings type of a table, and whether it may be left out; None for anything else, lists of tables too."""
    for candidate in (annotation, *(get_args(annotation) if type(None) in get_args(annotation) else ())):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate, candidate is not annotation
    return None, False


def is_live(field: FieldInfo) -> bool:
    """Whether a change of this setting is applied to a running daemon."""
    return LIVE in field.metadata


def changes(old: S, new: S) -> Changes:
    """What differs, by what can be applied to a running daemon and what cannot."""
    found = _differences(old, new, "")
    return Changes(
        applied=tuple(change for change, live in found if live),
        needs_restart=tuple(change for change, live in found if not live),
    )


def merged(old: S, new: S) -> S:
    """`old` with those of `new`'s values that can be applied."""
    update: dict[str, Any] = {}
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        section, _ = section_of(field.annotation)
        if section is not None and isinstance(before, Settings) and isinstance(after, Settings):
            update[name] = merged(before, after)
        elif section is None and is_live(field):
            update[name] = after
    return old.model_copy(update=update)


def _differences(old: Settings, new: Settings, prefix: str) -> list[tuple[Change, bool]]:
    """Each with whether it can be applied."""
    found = []
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        section, _ = section_of(field.annotation)
        if section is None:
            if before != after:
                found.append((Change(prefix + name, before, after), is_live(field)))
        elif isinstance(before, Settings) and isinstance(after, Settings):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before is not after:
            # A table that appears or goes is a change of its own, which nothing applies.
            told = (PRESENT if there else ABSENT for there in (before, after))
            found.append((Change(prefix + name, *told), False))
    return found
