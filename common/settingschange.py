"""What may change in the settings of a running daemon. PURE: two settings in; what is applied and what is not out.

A key is a setting's dotted path, such as "agents.tls.certificate". A table that may be left out is a key itself (is it
there?) beside those in it; a list of tables, or tables that the user names, are one key.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from moe2.common.config import Settings

S = TypeVar("S", bound=Settings)
ABSENT = "not there"
PRESENT = "there"


@dataclass(frozen=True)
class Change:
    """A setting that differs. The values are for people."""

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


def keys(kind: type[Settings], prefix: str = "") -> list[str]:
    """Every key of a settings type."""
    found = []
    for name, field in kind.model_fields.items():
        section, optional = section_of(field.annotation)
        if section is None or optional:
            found.append(prefix + name)
        if section is not None:
            found += keys(section, f"{prefix}{name}.")
    return found


def changes(old: S, new: S, live: Set[str]) -> Changes:
    """What differs, by what can be applied to a running daemon and what cannot."""
    found = _differences(old, new, "")
    return Changes(
        tuple(change for change in found if change.key in live),
        tuple(change for change in found if change.key not in live),
    )


def merged(old: S, new: S, live: Set[str], prefix: str = "") -> S:
    """`old` with those of `new`'s values that can be applied."""
    update: dict[str, Any] = {}
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        section, _ = section_of(field.annotation)
        if section is not None and isinstance(before, Settings) and isinstance(after, Settings):
            update[name] = merged(before, after, live, f"{prefix}{name}.")
        elif section is None and prefix + name in live:
            update[name] = after
    return old.model_copy(update=update)


def _differences(old: Settings, new: Settings, prefix: str) -> list[Change]:
    found = []
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        section, _ = section_of(field.annotation)
        if section is None:
            if before != after:
                found.append(Change(prefix + name, before, after))
        elif isinstance(before, Settings) and isinstance(after, Settings):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before is not after:
            found.append(Change(prefix + name, *(PRESENT if there else ABSENT for there in (before, after))))
    return found
