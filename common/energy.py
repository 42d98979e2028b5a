"""The energy record: joules with how they were obtained. Null is not zero.

Every place that shows or adds up energy (reports, receipts, ledgers, metrics, tables) uses these types, so that an
unmeasured joule can never turn into a 0 on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Quality(StrEnum):
    """How a figure was obtained. Declaration order is from best to worst."""

    EXACT = "exact"
    """Known without measuring: work that never ran spent nothing."""
    MEASURED_COUNTER = "measured_counter"
    """Difference of a hardware energy counter."""
    MEASURED_INTEGRATED = "measured_integrated"
    """Power samples integrated over the window."""
    PARTIAL = "partial"
    """Measured, but the sensor did not cover the whole window; the figure is a lower bound."""
    ESTIMATED = "estimated"
    """Computed from a model of the device, not measured."""
    SIMULATED = "simulated"
    """From a simulated host's documented profile."""
    UNMEASURED = "unmeasured"
    """Unknown; `joules` is None."""


_WORSENESS = {quality: rank for rank, quality in enumerate(Quality)}


class Scope(StrEnum):
    """Which part of the host a figure covers. Figures of different scopes are not comparable without saying so."""

    GPU_BOARD = "gpu_board"
    MODULE_INPUT = "module_input"
    MODULE_RAILS = "module_rails"
    CPU_PACKAGE = "cpu_package"
    PSYS = "psys"
    WALL = "wall"
    """The whole host, as a metered plug sees it; it contains every other scope."""


class Attribution(StrEnum):
    """How a request's share of the device's energy was found."""

    EXCLUSIVE = "exclusive"
    TOKEN_SHARE = "token_share"  # noqa: S105 - no password
    SLOT_SHARE = "slot_share"


class Energy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Energy of one window or one request.

    joules: total energy in J, idle share included; None if unknown.
    marginal_joules: energy above the idle baseline in J; None if unknown.
    source: the sensor, such as "nvml.total_energy", "ina3221", "rapl" or "profile:<id>".
    coverage: share of the window that samples cover, 0..1.
    reason: why the figure is partial or unmeasured.
    """

    joules: float | None = None
    marginal_joules: float | None = None
    quality: Quality = Quality.UNMEASURED
    scope: Scope | None = None
    source: str | None = None
    coverage: float | None = None
    n_samples: int | None = None
    max_gap_s: float | None = None
    idle_w: float | None = None
    attribution: Attribution | None = None
    reason: str | None = None


class WholeEnergy(Energy, frozen=True, kw_only=True, omit_defaults=False):
    """The same record for readers outside the fleet: its JSON has every key, unknown ones as null.

    On the wire between agents and coordinator a missing key is null; a client must not have to guess that.
    """

    @classmethod
    def of(cls, energy: Energy) -> WholeEnergy:
        """The record with the figures of another one, which may be whole itself."""
        return energy if isinstance(energy, cls) else cls(**msgspec.structs.asdict(energy))


def unmeasured(reason: str) -> Energy:
    """An unknown energy, with the reason that is shown to the user."""
    return Energy(reason=reason)


NEVER_RAN = Energy(joules=0.0, marginal_joules=0.0, quality=Quality.EXACT, reason="it never ran")
"""The energy of work that was refused or cancelled before it began."""


def worst_quality(qualities: Iterable[Quality]) -> Quality:
    """The worst of several qualities: what a sum of such figures may claim. `UNMEASURED` for none at all."""
    return max(qualities, key=_WORSENESS.__getitem__, default=Quality.UNMEASURED)


def total(parts: Iterable[Energy]) -> Energy:
    """The sum of several energies.

    The sum is None as soon as one part is None: a sum that silently left a part out would understate. Its quality is
    the worst of the parts, its scope and source are kept only where all parts agree.
    """
    parts = tuple(parts)
    if not parts:
        return unmeasured("nothing was measured")
    if len(parts) == 1:
        return parts[0]
    scopes = {part.scope for part in parts}
    sources = {part.source for part in parts}
    reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
    if len(scopes - {None}) > 1:
        reasons.append("sum over different scopes: " + ", ".join(sorted(str(s) for s in scopes if s)))
    return Energy(
        joules=_sum_known(part.joules for part in parts),
        marginal_joules=_sum_known(part.marginal_joules for part in parts),
        quality=worst_quality(part.quality for part in parts),
        scope=scopes.pop() if len(scopes) == 1 else None,
        source=sources.pop() if len(sources) == 1 else None,
        reason="; ".join(reasons) or None,
    )


def _sum_known(values: Iterable[float | None]) -> float | None:
    total_joules = 0.0
    for value in values:
        if value is None:
            return None
        total_joules += value
    return total_joules
