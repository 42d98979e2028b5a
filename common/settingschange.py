"""What may change in the settings of a running daemon. PURE: two settings in; what is applied and what is not out.

The settings types say by the mark `LIVE` which of their fields are applied. A key is a setting's dotted path, such as
"agents.tls.certificate". A table that may be left out is a key itself (is it there?) beside those in it; a list of
tables, or tables that the user names, are one key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic.fields import FieldInfo

from moe2.common.config import LIVE, Settings

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
