"""Named health warnings: what is wrong, and what to do about it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    NOTICE = "notice"
    """Worth knowing; the host does its work."""
    DEGRADED = "degraded"
    """Something that should work does not; `status` exits with 1."""


class HealthWarning(msgspec.Struct, frozen=True, kw_only=True):
    """One warning. `code` is stable and documented; `remedy` is a sentence an operator can act on."""

    code: str
    severity: Severity
    message: str
    remedy: str
