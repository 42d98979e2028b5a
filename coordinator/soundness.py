"""Reports with figures that cannot be: one broken agent must not spoil the choice for the whole fleet. PURE.

The decoder checks types only. Decisions are arithmetic over all experts, where one NaN, or a negative number of slots,
would break every request.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from moe2.common.cost import LatencyProfile, Spread
from moe2.common.health import HealthWarning, Severity
from moe2.common.messages import ExpertReport, Report

MOST = 1e15
"""Above any count, byte size or coefficient that a host could mean."""
MOST_SPREAD = 20.0
"""Of a natural logarithm: predictions that are off by a factor of half a billion."""

_SHOWN_ONLY = {"performance", "idle_w", "measured_age_s"}
"""For people; no decision rests on them."""


def sound(report: Report) -> Report:
    """The report without the experts whose figures cannot be, and with a warning for each of those."""
    faults = {expert.model: fault for expert in report.experts if (fault := fault_in(expert))}
    if not faults:
        return report
    warnings = tuple(
        HealthWarning(
            code="report_unsound",
            severity=Severity.DEGRADED,
            message=f"What it reports of {model!r} cannot be: {fault}. It gets no requests.",
            remedy="Restart the agent; if that does not help, remove its learned profiles and report the defect.",
        )
        for model, fault in faults.items()
    )
    return msgspec.structs.replace(
        report,
        experts=tuple(expert for expert in report.experts if expert.model not in faults),
        warnings=(*report.warnings, *warnings),
    )


def fault_in(expert: ExpertReport) -> str | None:
    """The first figure that cannot be; None if all can."""
    if expert.slots < 1 or expert.context_tokens < 1:
        return f"{expert.slots} slots, {expert.context_tokens} tokens of context"
    if expert.parameters == 0:
        return "parameters is 0"
    if expert.latency is not None and expert.latency.slots < 1:
        return f"latency.slots is {expert.latency.slots}"
    return _fault(expert, "")


def _fault(value: Any, where: str) -> str | None:
    """Counts, sizes, seconds, joules and coefficients are finite and not negative; spreads are small."""
    if isinstance(value, Spread):
        return next((f"{where} is {part}" for part in (value.p50, value.p95) if not abs(part) <= MOST_SPREAD), None)
    if isinstance(value, int | float):
        return None if math.isfinite(value) and 0 <= value <= MOST else f"{where} is {value}"
    parts: dict[str, Any] = {}
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value).items()
        parts = {f"{where}.{name}".lstrip("."): part for name, part in fields if name not in _SHOWN_ONLY}
        if isinstance(value, LatencyProfile):
            # A batch that tends to empty has a negative m0.
            parts[f"{where}.occupancy"] = tuple(map(abs, value.occupancy))
    elif isinstance(value, tuple):
        parts = {f"{where}[{place}]": part for place, part in enumerate(value)}
    return next((fault for name, part in parts.items() if (fault := _fault(part, name))), None)
