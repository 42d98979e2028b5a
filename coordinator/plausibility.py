"""Which figures of an agent are believed. PURE. One NaN would spoil a sum for good."""

from __future__ import annotations

from typing import TypeGuard

MOST_PLAUSIBLE = 1e12
"""Larger figures are an agent's defect."""


def is_plausible(value: float | None) -> TypeGuard[float]:
    """False for unknown, negative, infinite and NaN."""
    return value is not None and 0 <= value < MOST_PLAUSIBLE
