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
    rest = 1.0 - shares
    slack = 1.0 - scaled @ shares
    tangent = envelope.at(shares, None, 1.0)
    scale = float(tangent.slope.mean()) + 1e-12
    low, high = np.full(count, scale), np.full(count, scale)
    price = np.full(limits, scale * count / limits)
    diagonal = np.diag_indices(count)
    best = _bound(tangent, price, scaled, shares)
    for _ in range(iterations):
        gap = float(shares @ low + rest @ high + slack @ price)
        if best.upper <= target or gap <= precision or stop():
            break
        centre = 0.1 * gap / (2 * count + limits)
        pull_low, pull_high, pull = centre / shares, centre / rest, centre / slack
        low_rate, high_rate, rate = low / shares, high / rest, price / slack
        system = tangent.steps @ tangent.steps.T
        system += (scaled.T * rate) @ scaled
        system[diagonal] += low_rate + high_rate + 1e-14
        move = np.linalg.solve(system, tangent.slope + pull_low - pull_high - scaled.T @ pull)
        used = scaled @ move
        low_move = pull_low - low - low_rate * move
        high_move = pull_high - high + high_rate * move
        price_move = pull - price + rate * used
        primal = _reach((shares, rest, slack), (move, -move, -used))
        dual = _reach((low, high, price), (low_move, high_move, price_move))
        shares = shares + primal * move
        rest = 1.0 - shares
        slack = 1.0 - scaled @ shares
        low, high, price = low + dual * low_move, high + dual * high_move, price + dual * price_move
        tangent = envelope.at(shares, tangent.touching, min(1.0, gap / scale))
        found = _bound(tangent, price, scaled, shares)
        if found.upper < best.upper:
            best = found
    return best


def _reach(positions: tuple[FloatArray, ...], moves: tuple[FloatArray, ...]) -> float:
    """The longest step, at most 1, that keeps all positions positive, with a margin."""
    steepest = max(float((-move / place).max()) for place, move in zip(positions, moves, strict=True))
    return min(1.0, 0.97 / steepest) if steepest > 0.0 else 1.0


def _bound(tangent: Tangent, price: FloatArray, scaled: FloatArray, shares: FloatArray) -> Bound:
    reduced = tangent.slope - price @ scaled
    upper = tangent.constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
    return Bound(upper, shares, reduced)
