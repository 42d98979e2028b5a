"""Upper bounds on what a panel can be worth: concave envelopes of the set values, maximised under the limits.

`envelope` gives the concave envelope of a set value over shares of experts, as a family of linear bounds (`Tangent`).
`solve` finds shares within the limits whose tangent proves the lowest bound (`Bound`), by an interior-point iteration;
`solve_by_columns` does so for many experts from the few that matter.
Any tangent and any prices give a valid bound, so rounding and early stops only make it looser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe2.coordinator.planning.values import (
    BestOf,
    BoolArray,
    Coverage,
    FloatArray,
    IntArray,
    SetValue,
    rank_among_twins,
)

_MAX_BETA = 60.0
"""-log of the smallest survival that is told apart from 0 (1e-26), far below any tie."""
_SHARPNESS = 0.03
"""A bound is sharp enough when it could fall by no more than this share of its height over the target."""
_DESCENTS = 40
"""Most subgradient steps."""
_PRICE_PACE = 0.1
"""How far prices move in a subgradient step, compared with touching points."""
_PATIENCE = 5
"""Steps without a better bound before giving up; the kinks of best-of-set can stall the iteration."""
_MAX_COLUMNS = 96
"""Most experts that a relaxation is solved for at once; the time grows with their number cubed."""
_JOINING_COLUMNS = 32
"""Most experts that join a relaxation in a further round."""
_ROUNDS = 4
_PRICING_S_EACH = 6e-9
"""Seconds kept for a bound on all experts while that of some of them is looked for, for each expert and prompt."""
_OVERTIME_S = 0.001
"""Seconds by which that may be late: without it there is no bound at all."""
_SingleArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Tangent:
    """A valid linear bound `constant + slope @ x` on the value at shares x (n,), over M prompts."""

    touching: FloatArray
    """(M,) the points t where the bound touches the envelope, one for each prompt."""
    constant: float
    slope: FloatArray
    """(n,)"""
    steps: FloatArray
    """(n, M) such that -steps @ steps.T is the envelope's second derivative at the shares it was made for."""


class Envelope(ABC):
    """The concave envelope of a set value over shares of n free experts, on top of a held panel."""

    @abstractmethod
    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        """The tangent at `shares` (n,), 0..1.

        near: (M,) touching points to start the search from; None starts anew. blur: 0..1, how far the search rounds
        kinks off (best-of-set only). Any start and any blur give a valid bound.
        """

    @abstractmethod
    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        """The constant and the slope (n,) of the bound for any touching points (M,), straight from the definition."""

    def rise(self, touching: FloatArray, joined: BoolArray) -> FloatArray | None:
        """(M,) M times the derivative of the bound by the touching points where just the `joined` (n,) experts share.

        None for an envelope without kinks, whose bound `solve` finds sharp enough.
        """
        return None


@singledispatch
def envelope(value: SetValue, rows: FloatArray, held: FloatArray) -> Envelope:
    """The envelope of `value` over experts with states `rows` (n, M) on top of the state `held` (M,).

    A further set value registers its own envelope here. Raises TypeError for a value without one.
    """
    raise TypeError(f"No envelope is known for the set value {type(value).__name__}.")


def touching_points(
    beta: FloatArray, shares: FloatArray, near: FloatArray | None, floor: FloatArray | float = 0.0
) -> tuple[FloatArray, ...]:
    """The touching points t (M,) of a value `psi(sum beta)`; min(beta, t) (n, M); 1 / (1 - shares above t) (M,).

    beta: (n, M) what each expert adds on each prompt. near: (M,) points to start from; None starts anew. floor: least
    value of t. The envelope at x is the minimum over t, reached where `sum x_n min(t, beta_n) = t`. The left side is
    concave in t, so Newton's method started above the largest root, at `sum x_n beta_n`, falls to it.
    """
    top = shares @ beta
    touching = top if near is None else np.minimum(near, top)
    for _ in range(3 if near is None else 2):
        steps = np.minimum(beta, touching)
        lifted = shares @ (beta >= touching).astype(np.float64)
        reached = shares @ steps
        below = reached - touching * lifted
        # Where the present point is under the root, start again from above.
        moved = np.where(reached <= touching, below / np.maximum(1.0 - lifted, 1e-9), top)
        touching = np.minimum(np.maximum(moved, 0.0), top)
    touching = np.maximum(touching, floor)
    steps = np.minimum(beta, touching)
    lifted = shares @ (beta >= touching).astype(np.float64)
    return touching, steps, 1.0 / np.maximum(1.0 - lifted, 1e-2)


class _CoverageEnvelope(Envelope):
    """The envelope of coverage: psi(t) = 1 - held * exp(-t), with beta = -log(1 - p)."""

    def __init__(self, rows: FloatArray, held: FloatArray) -> None:
        self.rows, self.held = rows, held

    @cached_property
    def beta(self) -> FloatArray:
        """(n, M) what each expert adds on each prompt."""
        return np.asarray(-np.log(np.maximum(self.rows, np.exp(-_MAX_BETA))))

    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        touching, steps, spread = touching_points(self.beta, shares, near)
        survive = np.exp(-touching)
        weight = self.held * survive / len(self.held)
        constant = 1.0 - float(weight @ (1.0 + touching))
        # beta > t is the same as survive > rows, and there the slope is survive (1 + t) - rows.
        slope = steps @ weight + np.maximum(survive - self.rows, 0.0) @ (self.held / len(self.held))
        return Tangent(touching, constant, slope, steps * np.sqrt(weight * spread))

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        survive = np.exp(-touching)
        constant = 1.0 - self.held * survive * (1.0 + touching)
        lifted = survive * (1.0 + touching) - self.rows
        slope = np.where(self.beta <= touching, survive * self.beta, lifted) * self.held
        return float(constant.mean()), np.asarray(slope.mean(axis=1))


class _BestOfEnvelope(Envelope):
    """The envelope of best-of-set: the minimum of u + sum x_n (p_n - u)+ over u >= held.

    The kink of (d)+ is blurred while u is searched, and exact in the bound. Blurred, it is
    (d + sqrt(d^2 + 4 eps^2)) / 2, the value that a logarithmic barrier of weight eps^2 gives it.
    """

    def __init__(self, rows: FloatArray, held: FloatArray) -> None:
        self.rows, self.held = rows, held

    @cached_property
    def single(self) -> _SingleArray:
        """(n, M) the chances in single precision, which steer the search."""
        return self.rows.astype(np.float32)

    @cached_property
    def top(self) -> FloatArray:
        """(M,) the highest level that a touching point can have."""
        return np.asarray(np.maximum(self.held, self.rows.max(axis=0)))

    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        width = 0.01 + 0.1 * blur
        single = shares.astype(np.float32)
        low, high = self.held, self.top
        level = (low + high) / 2 if near is None else near
        for _ in range(4 if near is None else 2):
            steps, bends = self._slopes(level, width)
            excess, bend = single @ steps - 1.0, single @ bends
            low, high = np.where(excess > 0.0, level, low), np.where(excess > 0.0, high, level)
            moved = level + excess / np.maximum(bend, 1e-9)
            level = np.where((moved > low) & (moved < high), moved, (low + high) / 2)
        # The curvature is that of the last but one points: it only steers, the bound is exact at the last.
        weight = np.where(level > self.held + 1e-6, 1.0 / np.maximum(bend, 1e-2), 0.0)
        constant, slope = self.linear(level)
        return Tangent(level, constant, slope, np.asarray(steps * np.sqrt(weight / len(self.held)), np.float64))

    def _slopes(self, level: FloatArray, width: float) -> tuple[_SingleArray, _SingleArray]:
        """The first and second derivative of the blurred (p - u)+, (n, M) each.

        They are in single precision, because they only steer the search.
        """
        distance = self.single - level.astype(np.float32)
        square = distance * distance
        square += np.float32(4.0 * width * width)
        root = np.sqrt(square)
        steps = distance / root
        steps += 1.0
        steps *= 0.5
        square *= root
        return steps, np.float32(2.0 * width * width) / square

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        level = np.maximum(touching, self.held)
        mean = float(level.mean())
        # The mean of (p - u)+ is that of max(p, u) less that of u: less memory is written, and a product averages.
        slope = np.maximum(self.rows, level) @ np.full(len(level), 1.0 / len(level)) - mean
        return mean, np.maximum(slope, 0.0)

    def rise(self, touching: FloatArray, joined: BoolArray) -> FloatArray:
        level = np.maximum(touching, self.held)
        above = (self.rows[joined] > level).sum(axis=0)
        # A touching point below what is held counts as that.
        return np.where((touching <= self.held) & (above == 0), 0.0, 1.0 - above)


@envelope.register
def _(value: Coverage, rows: FloatArray, held: FloatArray) -> Envelope:
    return _CoverageEnvelope(rows, held)


@envelope.register
def _(value: BestOf, rows: FloatArray, held: FloatArray) -> Envelope:
    return _BestOfEnvelope(rows, held)


@dataclass(frozen=True, eq=False)
class Bound:
    """A proven upper bound on the value of the panels over n free experts."""

    upper: float
    shares: FloatArray
    """(n,) shares of experts, 0..1: the relaxed choice that the bound was found at."""
    reduced: FloatArray
    """(n,) reduced costs: by how much a share raises the bound, less the price of what it uses."""
    touching: FloatArray
    """(M,) the touching points of the tangent that proves it."""
    price: FloatArray
    """(C,) the prices of the limits, each for all of its room."""

    @property
    def floor(self) -> float:
        """No panel is worth more than this and the sum of its members' reduced costs."""
        return self.upper - float(np.maximum(self.reduced, 0.0).sum())


def solve_by_columns(
    value: SetValue,
    experts: IntArray,
    held: FloatArray,
    costs: FloatArray,
    room: FloatArray,
    *,
    target: float,
    precision: float,
    stop: Callable[[float], bool],
) -> Bound | None:
    """The bound of `solve`, from the few experts that matter where there are many; None where the time was up before.

    experts: (n,) places of the free experts. held: (M,) state of the panel that they join. costs: (C, n). room: (C,).
    stop: returns True where no more is left than the seconds that it is given.
    Touching points and prices that hold for some of the experts hold for all once every reduced cost is known; those
    with positive ones join in the next round.
    """
    in_time = _PRICING_S_EACH * len(experts) * len(held) if len(experts) > _MAX_COLUMNS else 0.0
    if len(experts) <= _MAX_COLUMNS:
        whole = envelope(value, value.states[experts], held)
        return solve(whole, costs, room, target=target, precision=precision, stop=lambda: stop(0.0))
    scaled = costs / room[:, None]
    chosen = _first_columns(value.alone[experts], scaled.max(axis=0), value.twins[experts])
    best: Bound | None = None
    for _ in range(_ROUNDS):
        if stop(in_time if best else 0.0):
            break
        some = solve(
            envelope(value, value.states[experts[chosen]], held),
            costs[:, chosen],
            room,
            target=target,
            precision=precision,
            stop=lambda: stop(in_time),
        )
        found = _of_everyone(some, chosen, value, experts, held, scaled, lambda: stop(-_OVERTIME_S))
        if found is None:
            break
        best = found if best is None or found.upper < best.upper else best
        joining = np.flatnonzero(found.reduced > 0.0)
        joining = joining[~np.isin(joining, chosen)]
        if best.upper <= target or len(joining) == 0:
            break
        joining = joining[np.argsort(-found.reduced[joining], kind="stable")[:_JOINING_COLUMNS]]
        chosen = np.sort(np.append(chosen, joining))
    return best


def _first_columns(worth: FloatArray, burden: FloatArray, twin: IntArray) -> IntArray:
    """(n',) the experts that a relaxation starts with: those worth most, and those worth most for their burden."""
    gain = worth - float(worth[np.isfinite(worth)].min(initial=0.0))
    # Of many with the same states the cheapest come first, and the others once there is none of other states.
    rank = rank_among_twins(twin, burden)
    by_worth = np.lexsort([-worth, rank])[: _MAX_COLUMNS // 2]
    by_thrift = np.lexsort([-gain / (burden + 1e-9), rank])[: _MAX_COLUMNS // 2]
    return np.union1d(by_worth, by_thrift)


def _of_everyone(
    some: Bound,
    chosen: IntArray,
    value: SetValue,
    experts: IntArray,
    held: FloatArray,
    scaled: FloatArray,
    stop: Callable[[], bool],
) -> Bound | None:
    """The bound for all n experts by the touching points and the prices of that for the `chosen` ones.

    None where `stop` returned True before all reduced costs were known.
    """
    shares = np.zeros(len(experts))
    shares[chosen] = some.shares
    kinds, kind = np.unique(value.twins[experts], return_inverse=True)
    slopes, constant = np.empty(len(kinds)), 0.0
    for start in range(0, len(kinds), _MAX_COLUMNS):
        if stop():
            return None
        part = slice(start, start + _MAX_COLUMNS)
        constant, slopes[part] = envelope(value, value.states[kinds[part]], held).linear(some.touching)
    slope = slopes[kind]
    price = _repriced(some.price, slope, scaled, stop)
    reduced = slope - price @ scaled
    upper = constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
    return Bound(upper, shares, reduced, some.touching, price)


def _repriced(price: FloatArray, slope: FloatArray, scaled: FloatArray, stop: Callable[[], bool]) -> FloatArray:
    """The prices (C,), each in turn the one that proves most beside the others, for experts of `slope` (n,).

    scaled: (C, n). Once `stop` returns True prices stay as they are: any are valid. The best price of one limit is what
    is gained per unit of it by the last expert that has room, when they are taken by that. Prices of some of the
    experts are too low where others join them.
    """
    price = price.copy()
    for place, used in enumerate(scaled):
        if stop():
            break
        rate = (slope - price @ scaled) / np.maximum(used, 1e-12) + price[place]
        order = np.argsort(-rate, kind="stable")
        last = int(np.searchsorted(np.cumsum(used[order]), 1.0))
        price[place] = max(0.0, float(rate[order[last]])) if last < len(order) else 0.0
    return price


def solve(
    envelope: Envelope,
    costs: FloatArray,
    room: FloatArray,
    *,
    target: float,
    precision: float,
    stop: Callable[[], bool],
    iterations: int = 30,
) -> Bound:
    """The lowest upper bound found on the value over shares whose `costs` (C, n) keep within `room` (C,).

    C >= 1, and `room` is positive. The iteration ends as soon as the bound is at most `target` (no better panel is
    there), its own gap is below `precision`, `stop` returns True, or `iterations` are done.
    """
    scaled = costs / room[:, None]
    limits, count = scaled.shape
    shares = np.full(count, 0.5 * min(1.0, 1.0 / float(scaled.sum(axis=1).max())))
    tangent = envelope.at(shares, None, 1.0)
    for _ in range(2):
        if stop():
            break
        _, chosen = _linear_start(tangent.slope, scaled)
        shares = (shares + chosen) / 2
        tangent = envelope.at(shares, None, 1.0)
    price, _ = _linear_start(tangent.slope, scaled)
    rest = 1.0 - shares
    slack = 1.0 - scaled @ shares
    scale = float(tangent.slope.mean()) + 1e-12
    reduced = tangent.slope - price @ scaled
    low, high = np.maximum(-reduced, 0.3 * scale), np.maximum(reduced, 0.3 * scale)
    diagonal = np.diag_indices(count)
    best, stalled = _bound(tangent, price, scaled, shares), 0
    for _ in range(iterations):
        worth = tangent.constant + float(tangent.slope @ shares)
        sharp = best.upper - worth <= max(precision, _SHARPNESS * (best.upper - target))
        if best.upper <= target or sharp or stalled == _PATIENCE or stop():
            break
        gap = float(shares @ low + rest @ high + slack @ price)
        centre = 0.1 * gap / (2 * count + limits)
        pull_low, pull_high, pull = centre / shares, centre / rest, centre / slack
        low_rate, high_rate, rate = low / shares, high / rest, price / slack
        system = tangent.steps @ tangent.steps.T
        system += (scaled.T * rate) @ scaled
        system[diagonal] += low_rate + high_rate + 1e-14
        try:
            move = np.linalg.solve(system, tangent.slope + pull_low - pull_high - scaled.T @ pull)
        except np.linalg.LinAlgError:  # too close to a corner; every bound so far stays valid
            break
        used = scaled @ move
        low_move = pull_low - low - low_rate * move
        high_move = pull_high - high + high_rate * move
        price_move = pull - price + rate * used
        primal = _reach((shares, rest, slack), (move, -move, -used))
        dual = _reach((low, high, price), (low_move, high_move, price_move))
        shares = shares + primal * move
        rest = 1.0 - shares
        slack = 1.0 - scaled @ shares
        if min(shares.min(), rest.min(), slack.min()) <= 0.0:  # rounding: as close to a corner as numbers go
            break
        low, high, price = low + dual * low_move, high + dual * high_move, price + dual * price_move
        tangent = envelope.at(shares, tangent.touching, min(1.0, gap / scale))
        found = _bound(tangent, price, scaled, shares)
        stalled = 0 if found.upper < best.upper else stalled + 1
        if found.upper < best.upper:
            best = found
    return _descended(envelope, best, scaled, target, stop)


def _descended(envelope: Envelope, best: Bound, scaled: FloatArray, target: float, stop: Callable[[], bool]) -> Bound:
    """A lower bound that subgradient steps find from `best`; the interior-point iteration stalls at kinks.

    scaled: (C, n). The steps are Polyak's, towards `target`, along the mean of the present and the former subgradients,
    and shorter after some that found nothing.
    """
    touching, price, reduced, upper = best.touching, best.price, best.reduced, best.upper
    course, charge = np.zeros(len(touching)), np.zeros(len(price))
    pace, stalled = 1.0, 0
    for _ in range(_DESCENTS):
        rise = envelope.rise(touching, reduced > 0.0)
        if rise is None or best.upper <= target or stop():
            break
        spare = 1.0 - scaled[:, reduced > 0.0].sum(axis=1)
        course, charge = (course + rise) / 2, (charge + spare) / 2
        slope = float(course @ rise) / len(rise) + _PRICE_PACE * float(charge @ spare)
        if slope <= 0.0:
            course, charge = rise, spare
            slope = float(rise @ rise) / len(rise) + _PRICE_PACE * float(spare @ spare)
        step = pace * (upper - target) / max(slope, 1e-12)
        touching = np.clip(touching - step * course, 0.0, None)
        price = np.maximum(price - step * _PRICE_PACE * charge, 0.0)
        constant, lift = envelope.linear(touching)
        reduced = lift - price @ scaled
        upper = constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
        if upper < best.upper:
            best, stalled = Bound(upper, best.shares, reduced, touching, price), 0
        elif (stalled := stalled + 1) == _PATIENCE:
            touching, price, reduced, upper = best.touching, best.price, best.reduced, best.upper
            pace, stalled = pace * 0.6, 0
    return best


def _linear_start(slope: FloatArray, scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Starting prices (C,) and interior shares (n,), from the linear problem under the tightest limit alone."""
    limits, count = scaled.shape
    tight = int(scaled.sum(axis=1).argmax())
    ratio = slope / (scaled[tight] + 1e-9)
    order = np.argsort(-ratio, kind="stable")
    used = np.cumsum(scaled[tight][order])
    last = min(int(np.searchsorted(used, 1.0)), count - 1)
    # One unit of every limit is never worth more than all the gains together.
    worth = min(float(ratio[order[last]]), float(slope.sum())) + 1e-12
    price = np.full(limits, 0.05 * worth)
    price[tight] = worth
    chosen = np.zeros(count)
    chosen[order[:last]] = 1.0
    return price, 0.9 * chosen / max(1.0, float((scaled @ chosen).max()))


def _reach(positions: tuple[FloatArray, ...], moves: tuple[FloatArray, ...]) -> float:
    """The longest step, at most 1, that keeps all positions positive with a margin."""
    steepest = max(float((-move / place).max()) for place, move in zip(positions, moves, strict=True))
    return min(1.0, 0.97 / steepest) if steepest > 0.0 else 1.0


def _bound(tangent: Tangent, price: FloatArray, scaled: FloatArray, shares: FloatArray) -> Bound:
    """The bound that a tangent and prices (C,) >= 0 of the scaled limits prove, by Lagrangian duality."""
    reduced = tangent.slope - price @ scaled
    upper = tangent.constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
    return Bound(upper, shares, reduced, tangent.touching, price)
