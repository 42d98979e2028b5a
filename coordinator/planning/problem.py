"""A planning problem as an immutable value: what panels of experts are worth, what they cost, and what is allowed.

`Problem` holds a set value, the experts' `Costs`, the cost of `Aggregation` and the `PanelBudgets`; it turns budgets
into limits on sums over the members (`SumLimit`) and on the largest member (`MaxLimit`), which all solvers work with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np

from moe2.common.errors import Moe2Error
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, SetValue

ROUNDING = 1e-12
"""Relative slack of every comparison with a limit, because sums in another order differ by rounding."""


class ProblemError(Moe2Error):
    """A planning problem is inconsistent: shapes that differ, NaN, negative costs, or unknown names."""


class Quantile(StrEnum):
    """The prediction that limits hold for; p95 is the default, because limits are meant for the bad case."""

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


def _sound_table(vectors: Sequence[Sequence[float] | FloatArray]) -> FloatArray | None:
    """Vectors of costs as rows of one read-only table; None where they differ in length or `_costs` finds a fault."""
    try:
        table = np.array(vectors, dtype=np.float64)
    except ValueError:
        return None
    # Both comparisons are false for NaN.
    if table.ndim != 2 or (table.size and not (table.min() >= 0.0 and table.max() < np.inf)):
        return None
    table.flags.writeable = False
    return table


class _Vectors:
    """Base of frozen dataclasses whose fields are vectors of costs: it checks them and makes them read-only."""

    def __post_init__(self) -> None:
        given = {name: figures for name, figures in vars(self).items() if figures is not None}
        # All at once, as a request has several; one by one it is found which of them is at fault.
        rows = _sound_table(list(given.values()))
        for place, (name, figures) in enumerate(given.items()):
            object.__setattr__(self, name, _costs(name, figures) if rows is None else rows[place])


@dataclass(frozen=True, eq=False)
class Costs(_Vectors):
    """What each expert costs for this request at one quantile; every field has the shape (N,)."""

    energy_j: FloatArray
    """Joules of the whole answer."""
    queue_s: FloatArray
    """Seconds in the expert's queue."""
    transmit_s: FloatArray
    """Seconds of a round trip to its host."""
    prefill_s: FloatArray
    """Seconds to read the prompt."""
    decode_s: FloatArray
    """Seconds to write the answer after its first token."""
    per_token_s: FloatArray | None = None
    """Seconds per output token; None where no budget limits them."""

    @property
    def first_token_s(self) -> FloatArray:
        """(N,) seconds until each expert's first token: queue, transmission and prefill."""
        return self.queue_s + self.transmit_s + self.prefill_s

    @property
    def delay_s(self) -> FloatArray:
        """(N,) seconds until each expert's whole answer."""
        return self.first_token_s + self.decode_s


@dataclass(frozen=True, eq=False)
class Aggregation(_Vectors):
    """The cost of putting k answers together, on top of the members' own; (N + 1,) by k = 0..N, never falling."""

    energy_j: FloatArray
    delay_s: FloatArray
    """Seconds that are added to the delay."""
    first_token_s: FloatArray
    """Seconds that are added to the time to the first token. Where only whole answers can be put together, the parts
    of the members' `Costs.first_token_s` have to hold the whole delay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, figures in vars(self).items():
            if (figures[1:] < figures[:-1]).any():
                raise ProblemError(f"aggregation {name} falls with the panel's size; it must never fall.")

    @classmethod
    def free(cls, experts: int) -> Aggregation:
        """An aggregation that costs nothing, for panels of up to `experts` members."""
        nothing = np.zeros(experts + 1)
        return cls(energy_j=nothing, delay_s=nothing, first_token_s=nothing)


@dataclass(frozen=True)
class PanelBudgets:
    """What a panel is allowed to cost; None sets no limit. Raises ProblemError for a budget that makes no sense."""

    energy_j: float | None = None
    """Most joules of all members together."""
    delay_s: float | None = None
    """Most seconds until the whole answer."""
    first_token_s: float | None = None
    """Most seconds until the first token."""
    per_token_s: float | None = None
    """Most seconds per output token."""
    power_w: float | None = None
    """The fleet's cap in watts, on what it draws already and what the members add."""
    drawn_w: float = 0.0
    """Watts that the fleet draws already."""
    max_experts: int | None = None
    """Most members of a panel."""
    quantile: Quantile = Quantile.P95
    """The predictions that the limits hold for."""
    one_runs: bool = False
    """True where only one member will run at all, so that energy and power are limited for each member alone."""
    one_at_a_time: bool = False
    """True where members never run at the same time, so that power is limited for each member alone."""

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
    """A limit on a sum over the k members: `sum(cost[n] for members) + by_size[k] <= limit`."""

    limit_kind: Limit
    cost: FloatArray
    """(N,)"""
    by_size: FloatArray
    """(N + 1,)"""
    limit: float

    def total(self, members: IntArray | list[int]) -> float:
        """The left side of the limit for one panel."""
        return float(self.cost[members].sum() + self.by_size[len(members)])


@dataclass(frozen=True, eq=False)
class MaxLimit:
    """A limit on the largest cost of the k members: `max(cost[n] for members) + by_size[k] <= limit`."""

    limit_kind: Limit
    cost: FloatArray
    """(N,)"""
    by_size: FloatArray
    """(N + 1,)"""
    limit: float

    def total(self, members: IntArray | list[int]) -> float:
        """The left side of the limit for one panel of at least one member."""
        return float(self.cost[members].max() + self.by_size[len(members)])


PanelLimit: TypeAlias = SumLimit | MaxLimit


def exceeds(total: FloatArray, limit: float) -> BoolArray:
    """True where `total` exceeds `limit` by more than rounding, elementwise; every solver compares in this way."""
    return np.asarray(total > limit + ROUNDING * abs(limit))


@lru_cache(maxsize=64)
def _are_distinct(names: tuple[str, ...]) -> bool:
    """True where no name is there twice; remembered, because a fleet is planned with for each request."""
    return len(set(names)) == len(names)


@lru_cache(maxsize=64)
def _places(names: tuple[str, ...]) -> Mapping[str, int]:
    """The place of each name."""
    return {name: place for place, name in enumerate(names)}


@dataclass(frozen=True, eq=False)
class Problem:
    """The problem of maximising `value` over the non-empty panels that keep `budgets`.

    Feasible panels stay feasible when a member leaves. Raises ProblemError where the fields are inconsistent.
    """

    names: tuple[str, ...]
    """N distinct expert names; their alphabetical order settles the last ties, whatever their order here."""
    value: SetValue
    p50: Costs
    """Costs predicted at the median."""
    p95: Costs
    """Costs predicted at the 95th percentile."""
    aggregation: Aggregation
    budgets: PanelBudgets = field(default_factory=PanelBudgets)
    power_w: FloatArray | None = None
    """(N,) watts that each expert adds to the fleet's power while it runs; needed under a power budget."""
    ruled_out: Mapping[str, str] = field(default_factory=dict)
    """Reasons in words by name of the experts that the request or their own state rules out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        experts = len(self.names)
        if experts == 0 or not _are_distinct(self.names):
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
        if self.ruled_out and (unknown := sorted(self.ruled_out.keys() - _places(self.names).keys())):
            raise ProblemError(f"ruled_out names experts that are not in the fleet: {', '.join(unknown)}.")
        if self.budgets.power_w is not None and self.power_w is None:
            raise ProblemError("A power budget needs power_w, the watts that each expert adds.")
        if self.budgets.per_token_s is not None and self.costs.per_token_s is None:
            raise ProblemError("A budget per output token needs per_token_s for each expert.")

    @property
    def costs(self) -> Costs:
        """The predicted costs that the limits hold for."""
        return self.p50 if self.budgets.quantile is Quantile.P50 else self.p95

    @cached_property
    def is_ruled_out(self) -> BoolArray:
        """(N,) True for the experts that are ruled out."""
        found = np.zeros(len(self.names), dtype=np.bool_)
        places = _places(self.names)
        found[[places[name] for name in self.ruled_out]] = True
        return found

    @property
    def largest_panel(self) -> int:
        """The most members that a panel may have."""
        return min(self.budgets.max_experts or len(self.names), len(self.names))

    @property
    def runs_together(self) -> bool:
        """True where several members of a panel may draw power at the same time."""
        return not (self.budgets.one_runs or self.budgets.one_at_a_time)

    def sum_limits(self) -> tuple[SumLimit, ...]:
        """The limits on sums over the members: energy, and power where members run together."""
        limits = []
        if self.budgets.energy_j is not None and not self.budgets.one_runs:
            limits.append(SumLimit(Limit.ENERGY, self.costs.energy_j, self.aggregation.energy_j, self.budgets.energy_j))
        if self.budgets.power_w is not None and self.power_w is not None and self.runs_together:
            limits.append(SumLimit(Limit.POWER, self.power_w, self._drawn_w(), self.budgets.power_w))
        return tuple(limits)

    def max_limits(self) -> tuple[MaxLimit, ...]:
        """The limits on the largest member: delay, first token, seconds per token, and energy where only one runs."""
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
        """(N + 1,) the watts that the fleet draws already, the same for each size of panel."""
        return np.full(len(self.names) + 1, self.budgets.drawn_w)

    def breaches(self, members: list[int]) -> list[tuple[Limit, float, float]]:
        """The limits that a non-empty panel breaks, as (limit, needed, allowed)."""
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
        """True where a panel is not empty, breaks no limit and has no member that is ruled out."""
        if not members or any(self.names[member] in self.ruled_out for member in members):
            return False
        return not self.breaches(members)
