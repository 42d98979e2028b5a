"""The best bound that a concave envelope gives under the sum limits: a small interior-point method with a
certificate.

Maximise the envelope G(x) over shares 0 <= x <= 1 with A x <= b (energy, power, panel size, each scaled to b
= 1). Every iterate holds touching points t and multipliers y >= 0, and any such pair proves, by weak duality,

    value(S) <= u(t) + y b + sum_n max(0, gamma_n(t) - y A_n)      for every feasible S.

So the bound is valid whenever the iteration stops; more iterations only tighten it. The terms `gamma_n - y
A_n` are reduced costs: an expert whose forced presence or absence pushes the bound under the incumbent can be
fixed. Method: primal-dual path following (Wright, Primal-Dual Interior-Point Methods, 1997, chapter 6), one n
x n system per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe2.coordinator.planning.envelope import Envelope, Tangent
from moe2.coordinator.planning.values import FloatArray

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
