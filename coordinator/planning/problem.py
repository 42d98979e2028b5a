"""One coarse selection as an immutable value: what panels are worth, what they cost, and what the request
allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from moe2.common.errors import Moe2Error
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, SetValue

ROUNDING = 1e-12
"""Relative slack of every comparison with a limit: sums in another order differ by rounding only."""


class ProblemError(Moe2Error):
    """A planning problem that makes no sense: shapes that differ, NaN, negative costs, unknown names."""


class Quantile(StrEnum):
    """Which prediction the limits hold for. p95 is the default: limits are meant for the bad case."""

    P50 = "p50"
    P95 = "p95"


class Limit(StrEnum):
    """A budget that a panel must keep."""

    ENERGY = "energy_j"
    POWER = "power_w"
    DELAY = "delay_s"
    FIRST_TOKEN = "first_token_s"  # noqa: S105  (a duration's name, no secret)
    PER_TOKEN = "per_token_s"  # noqa: S105  (a duration's name, no secret)
    PANEL_SIZE = "max_experts"


def _costs(name: str, figures: Sequence[float] | FloatArray) -> FloatArray:
    """`figures` as a read-only float64 vector without NaN, infinity or negative numbers, or ProblemError."""
    array = np.array(figures, dtype=np.float64)
    if array.ndim != 1:
        raise ProblemError(f"{name} must be one number per entry, not an array of shape {array.shape}.")
    # Both comparisons are false for NaN.
    if len(array) and not (array.min() >= 0.0 and array.max() < np.inf):
        index = int(np.argmin((array >= 0.0) & (array < np.inf)))
        raise ProblemError(
            f"{name}[{index}] is {array[index]}; it must be a finite number and not negative.",
            remedy="Exclude an expert whose cost is unknown, with a reason.",
        )
    array.flags.writeable = False
    return array


class _Vectors:
    """Turns every field of a frozen dataclass into a checked read-only vector."""

    def __post_init__(self) -> None:
        for name, figures in list(vars(self).items()):
            if figures is not None:
                object.__setattr__(self, name, _costs(name, figures))


@dataclass(frozen=True, eq=False)
class Costs(_Vectors):
    """What each expert costs for this request at one quantile; every field has shape (N,).

    energy_j: joules of the whole answer. queue_s, transmit_s, prefill_s, decode_s: the parts of its delay in
    seconds. per_token_s: seconds per output token, None where no request bounds it.
    """

    energy_j: FloatArray
    queue_s: FloatArray
    transmit_s: FloatArray
    prefill_s: FloatArray
    decode_s: FloatArray
    per_token_s: FloatArray | None = None

    @property
    def first_token_s(self) -> FloatArray:
        """Seconds until each expert's first token: queue, transmission and prefill. Shape (N,)."""
        return self.queue_s + self.transmit_s + self.prefill_s

    @property
    def delay_s(self) -> FloatArray:
        """Seconds until each expert's whole answer. Shape (N,)."""
        return self.first_token_s + self.decode_s


@dataclass(frozen=True, eq=False)
class Aggregation(_Vectors):
    """What putting k answers together costs on top of the members; index k = 0..N, never falling, shape (N +
    1,).

    first_token_s is what aggregation adds to the time to first token (where only a whole answer can be
    aggregated, let the members' `first_token_s` parts hold the whole delay).
    """

    energy_j: FloatArray
    delay_s: FloatArray
    first_token_s: FloatArray

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, figures in vars(self).items():
            if (figures[1:] < figures[:-1]).any():
                raise ProblemError(f"aggregation {name} falls with the panel's size; it must never fall.")

    @classmethod
    def free(cls, experts: int) -> Aggregation:
        """No aggregation cost at any size of panel."""
        nothing = np.zeros(experts + 1)
        return cls(energy_j=nothing, delay_s=nothing, first_token_s=nothing)


@dataclass(frozen=True)
class PanelBudgets:
    """What the request allows; None is no limit. Limits hold for the predictions at `quantile`.

    power_w: the fleet's cap in watts, for what it draws already (drawn_w) and the members' extra draw. one_at_a_time:
    members never run at once, so power is bounded for each alone and not for all together. one_runs: only one member of
    the panel will run at all, so energy is, too.
    """

    energy_j: float | None = None
    delay_s: float | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None
    power_w: float | None = None
    drawn_w: float = 0.0
    max_experts: int | None = None
    quantile: Quantile = Quantile.P95
    one_runs: bool = False
    one_at_a_time: bool = False

    def __post_init__(self) -> None:
        for name in ("energy_j", "delay_s", "first_token_s", "per_token_s", "power_w", "drawn_w"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit >= 0.0):
                raise ProblemError(
                    f"The budget {name} is {limit}; it must be a finite number and not negative.",
                    remedy="Leave it out for no limit.",
                )
        if self.max_experts is not None and self.max_experts < 1:
            raise ProblemError(f"max_experts is {self.max_experts}; a panel has at least one expert.")


@dataclass(frozen=True, eq=False)
class SumLimit:
    """`sum(cost[n] for members) + by_size[k] <= limit`."""

    limit_kind: Limit
    cost: FloatArray
    by_size: FloatArray
    limit: float

    def total(self, members: IntArray | list[int]) -> float:
        """Left side for one panel."""
        return float(self.cost[members].sum() + self.by_size[len(members)])


@dataclass(frozen=True, eq=False)
class MaxLimit:
    """`max(cost[n] for members) + by_size[k] <= limit`."""

    limit_kind: Limit
    cost: FloatArray
    by_size: FloatArray
    limit: float

    def total(self, members: IntArray | list[int]) -> float:
        """Left side for one panel of at least one member."""
        return float(self.cost[members].max() + self.by_size[len(members)])


PanelLimit: TypeAlias = SumLimit | MaxLimit


def exceeds(total: FloatArray, limit: float) -> BoolArray:
    """`total > limit` beyond rounding, elementwise; the one comparison that every solver means."""
    return np.asarray(total > limit + ROUNDING * abs(limit))


@dataclass(frozen=True, eq=False)
class Problem:
    """Maximise `value` over non-empty panels within `budgets`. Feasible panels stay feasible when a member
    leaves.

    names: N distinct expert names; their alphabetical order breaks the last ties, whatever the order here.
    p50, p95: predicted costs. power_w: (N,) watts a running expert adds to the fleet, needed under a power
    budget. ruled_out: experts that the request or their state rules out, with the reason in words. Raises
    ProblemError.
    """

    names: tuple[str, ...]
    value: SetValue
    p50: Costs
    p95: Costs
    aggregation: Aggregation
    budgets: PanelBudgets = field(default_factory=PanelBudgets)
    power_w: FloatArray | None = None
    ruled_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        experts = len(self.names)
        if experts == 0 or len(set(self.names)) != experts:
            raise ProblemError("A plan needs at least one expert, and distinct names.")
        if self.power_w is not None:
            object.__setattr__(self, "power_w", _costs("power_w", self.power_w))
        shapes = {
            "value": self.value.experts,
            "power_w": experts if self.power_w is None else len(self.power_w),
        }
        for label, costs in (("p50", self.p50), ("p95", self.p95)):
            for name, figures in vars(costs).items():
                if figures is not None:
                    shapes[f"{label}.{name}"] = len(figures)
        for name, figures in vars(self.aggregation).items():
            shapes[f"aggregation.{name} (one longer)"] = len(figures) - 1
        for label, length in shapes.items():
            if length != experts:
                raise ProblemError(f"{label} is for {length} experts, but {experts} are named.")
        if unknown := sorted(set(self.ruled_out) - set(self.names)):
            raise ProblemError(f"ruled_out names experts that are not in the fleet: {', '.join(unknown)}.")
        if self.budgets.power_w is not None and self.power_w is None:
            raise ProblemError("A power budget needs power_w, the watts that each expert adds.")
        if self.budgets.per_token_s is not None and self.costs.per_token_s is None:
            raise ProblemError("A budget per output token needs per_token_s for each expert.")

    @property
    def costs(self) -> Costs:
        """The predictions that the limits hold for."""
        return self.p50 if self.budgets.quantile is Quantile.P50 else self.p95

    @property
    def largest_panel(self) -> int:
        """Most members that a panel may have."""
        return min(self.budgets.max_experts or len(self.names), len(self.names))

    @property
    def runs_together(self) -> bool:
        """True where members of a panel may draw power at the same time."""
        return not (self.budgets.one_runs or self.budgets.one_at_a_time)

    def sum_limits(self) -> tuple[SumLimit, ...]:
        """The budgets on sums over the members: energy and power."""
        limits = []
        if self.budgets.energy_j is not None and not self.budgets.one_runs:
            limits.append(SumLimit(Limit.ENERGY, self.costs.energy_j, self.aggregation.energy_j, self.budgets.energy_j))
        if self.budgets.power_w is not None and self.power_w is not None and self.runs_together:
            limits.append(SumLimit(Limit.POWER, self.power_w, self._drawn_w(), self.budgets.power_w))
        return tuple(limits)

    def max_limits(self) -> tuple[MaxLimit, ...]:
        """The budgets on the slowest member (delay, first token, seconds per token), or the costliest if one runs."""
        budgets, costs, aggregation = self.budgets, self.costs, self.aggregation
        limits = []
        if budgets.energy_j is not None and budgets.one_runs:
            limits.append(MaxLimit(Limit.ENERGY, costs.energy_j, aggregation.energy_j, budgets.energy_j))
        if budgets.power_w is not None and self.power_w is not None and not self.runs_together:
            limits.append(MaxLimit(Limit.POWER, self.power_w, self._drawn_w(), budgets.power_w))
        if budgets.delay_s is not None:
            limits.append(MaxLimit(Limit.DELAY, costs.delay_s, aggregation.delay_s, budgets.delay_s))
        if budgets.first_token_s is not None:
            limits.append(
                MaxLimit(Limit.FIRST_TOKEN, costs.first_token_s, aggregation.first_token_s, budgets.first_token_s)
            )
        if budgets.per_token_s is not None and costs.per_token_s is not None:
            nothing = np.zeros(len(self.names) + 1)
            limits.append(MaxLimit(Limit.PER_TOKEN, costs.per_token_s, nothing, budgets.per_token_s))
        return tuple(limits)

    def _drawn_w(self) -> FloatArray:
        """What the fleet draws already, whatever the panel's size. Shape (N + 1,)."""
        return np.full(len(self.names) + 1, self.budgets.drawn_w)

    def breaches(self, members: list[int]) -> list[tuple[Limit, float, float]]:
        """The limits that a non-empty panel breaks, each with what it needs and what is allowed."""
        found: list[tuple[Limit, float, float]] = []
        if len(members) > self.largest_panel:
            found.append((Limit.PANEL_SIZE, float(len(members)), float(self.largest_panel)))
        limits: tuple[PanelLimit, ...] = (*self.sum_limits(), *self.max_limits())
        for limit in limits:
            needed = limit.total(members)
            if exceeds(np.asarray(needed), limit.limit):
                found.append((limit.limit_kind, needed, limit.limit))
        return found

    def is_feasible(self, members: list[int]) -> bool:
        """True where the panel is not empty, breaks no limit and has no member that is ruled out."""
        if not members or any(self.names[member] in self.ruled_out for member in members):
            return False
        return not self.breaches(members)
