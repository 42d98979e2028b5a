"""What a panel can be worth at most: concave envelopes of the set values, and their best bound under the limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, SetValue

_MAX_BETA = 60.0
"""-log of the smallest survival that is told apart from 0 (1e-26), far below any tie."""
_SingleArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Tangent:
    """A valid linear bound `constant + slope @ x` and what it was made of.

    touching: (M,) points t. steps: (n, M) such that -steps @ steps.T is the envelope's second derivative at
    the shares that the points were chosen for.
    """

    touching: FloatArray
    constant: float
    slope: FloatArray
    steps: FloatArray


class Envelope(ABC):
    """The envelope of one value over n free experts on top of a held panel."""

    @abstractmethod
    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        """The tangent for shares x (n,), its points sought from `near` on.

        blur in [0, 1]: how far the search rounds kinks off (best-of-S only); any blur gives a valid bound.
        """

    @abstractmethod
    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        """Constant and slope (n,) of the bound for any touching points (M,), by definition."""


@singledispatch
def envelope(value: SetValue, rows: FloatArray, held: FloatArray) -> Envelope:
    """The envelope of `value` over experts with states `rows` (n, M) on top of the state `held` (M,).

    A further set value registers its own envelope here. Raises TypeError for a value without one.
    """
    raise TypeError(f"No envelope is known for the set value {type(value).__name__}.")


def touching_points(
    beta: FloatArray, shares: FloatArray, near: FloatArray | None, floor: FloatArray | float = 0.0
) -> tuple[FloatArray, ...]:
    """Touching points, not under `floor`, of `psi(sum beta)` with min(beta, t) (n, M) and 1 / (1 - shares
    above t) (M,).

    The envelope at x is the minimum over t, reached where `sum x_n min(t, beta_n) = t`. The left side is
    concave in t, so Newton's method from above falls to the largest root; `sum x_n beta_n` is above.
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
    """psi(t) = 1 - held * exp(-t), beta = -log(1 - p)."""

    def __init__(self, rows: FloatArray, held: FloatArray) -> None:
        self.rows, self.held = rows, held
        self.beta = -np.log(np.maximum(rows, np.exp(-_MAX_BETA)))

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
    """u + sum x_n (p_n - u)+ with u >= held; the kink is blurred while searching, exact in the bound.

    Blurred, (d)+ is (d + sqrt(d^2 + 4 eps^2)) / 2: the value that a logarithmic barrier of weight eps^2 gives
    it.
    """

    def __init__(self, rows: FloatArray, held: FloatArray) -> None:
        self.rows, self.held = rows, held
        self.single = rows.astype(np.float32)
        self.top = np.maximum(held, rows.max(axis=0))

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
        """First and second derivative of the blurred (p - u)+, both (n, M), in single precision: they steer
        only.
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
        return float(level.mean()), np.asarray(np.maximum(self.rows - level, 0.0).mean(axis=1))


@envelope.register
def _(value: Coverage, rows: FloatArray, held: FloatArray) -> Envelope:
    return _CoverageEnvelope(rows, held)


@envelope.register
def _(value: BestOf, rows: FloatArray, held: FloatArray) -> Envelope:
    return _BestOfEnvelope(rows, held)


_SHARPNESS = 0.03
"""A bound is sharp enough when it could fall by no more than this share of its height over the target."""
_PATIENCE = 5
"""Steps without a better bound before giving up; the kinks of best-of-S can stall the iteration."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A proven upper bound. shares: (n,) the relaxed choice. reduced: (n,) reduced costs at the bound."""

    upper: float
    shares: FloatArray
    reduced: FloatArray


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
    """Bound the value over shares with `costs` (C, n) within `room` (C,), C >= 1, `room` positive.

    Ends as soon as the bound is at most `target` (the node is worthless), the iteration's own gap is below
    `precision`, or `stop` says so.
    """
    scaled = costs / room[:, None]
    limits, count = scaled.shape
    shares = np.full(count, 0.5 * min(1.0, 1.0 / float(scaled.sum(axis=1).max())))
    for _ in range(2):
        tangent = envelope.at(shares, None, 1.0)
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
    return best


def _linear_start(slope: FloatArray, scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A starting price (C,) and interior shares (n,): the linear problem under the tightest limit alone."""
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
    """The longest step, at most 1, that keeps all positions positive, with a margin."""
    steepest = max(float((-move / place).max()) for place, move in zip(positions, moves, strict=True))
    return min(1.0, 0.97 / steepest) if steepest > 0.0 else 1.0


def _bound(tangent: Tangent, price: FloatArray, scaled: FloatArray, shares: FloatArray) -> Bound:
    reduced = tangent.slope - price @ scaled
    upper = tangent.constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
    return Bound(upper, shares, reduced)
