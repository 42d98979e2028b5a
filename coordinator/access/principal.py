"""Who asks: an app's key as the rest of the coordinator sees it. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moe2.coordinator.budgets import NO_BUDGETS, Budgets


class Scope(StrEnum):
    """What a key may do."""

    INFER = "infer"
    """Send prompts, ask for plans, give feedback."""
    OBSERVE = "observe"
    """Read the fleet, the metrics, the events and the page."""


@dataclass(frozen=True)
class DailyLimits:
    """What one key may use up per day (UTC). None: no limit."""

    energy_j: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Principal:
    """Whom a request is charged to.

    key_id: None where the coordinator asks for no keys. budgets: defaults for requests that set none of their own;
    they come before their category's. requests_per_minute: None is no limit.
    """

    key_id: str | None = None
    name: str = "anybody"
    scopes: frozenset[Scope] = frozenset(Scope)
    daily: DailyLimits = DailyLimits()
    budgets: Budgets = NO_BUDGETS
    requests_per_minute: float | None = None


ANYBODY = Principal()
"""Who asks where no keys are required."""
