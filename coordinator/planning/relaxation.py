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

from dataclasses import dataclass

import numpy as np

from moe2.coordinator.planning.envelope import Envelope
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
    iterations: int = 30,
) -> Bound:
    """Bound the value over shares with `costs` (C, n) within `room` (C,), C >= 1, every entry of `room`
    positive.

    Stops as soon as the bound is at most `target` (the node is worthless), or the iteration's own gap is
    below `precision`.
    """
    scaled = costs / room[:, None]
    count = scaled.shape[1]
    shares = np.full(count, 0.5 * min(1.0, 1.0 / float(scaled.sum(axis=1).max())))
    slack = 1.0 - scaled @ shares
    touching = envelope.touch(shares)
    constant, slope = envelope.linear(touching)
    scale = float(slope.mean()) + 1e-12
    low = np.full(count, scale)
    high = np.full(count, scale)
    price = np.full(len(scaled), scale * count / len(scaled))
    best = _bound(constant, slope, price, scaled, shares)
    for _ in range(iterations):
        complementarity = float(shares @ low + (1.0 - shares) @ high + slack @ price)
        if best.upper <= target or complementarity <= precision:
            break
        centre = 0.15 * complementarity / (2 * count + len(scaled))
        steps, weight = envelope.curvature(shares, touching)
        system = (steps * weight) @ steps.T
        system += (scaled.T * (price / slack)) @ scaled
        system[np.diag_indices(count)] += low / shares + high / (1.0 - shares) + 1e-14
        right = slope + centre / shares - centre / (1.0 - shares) - scaled.T @ (centre / slack)
        move = np.linalg.solve(system, right)
        used = scaled @ move
        low_move = centre / shares - low - low / shares * move
        high_move = centre / (1.0 - shares) - high + high / (1.0 - shares) * move
        price_move = centre / slack - price + price / slack * used
        primal = 0.98 * min(1.0, _reach(shares, move), _reach(1.0 - shares, -move), _reach(slack, -used))
        dual = 0.98 * min(1.0, _reach(low, low_move), _reach(high, high_move), _reach(price, price_move))
        shares = shares + primal * move
        slack = 1.0 - scaled @ shares
        low, high, price = low + dual * low_move, high + dual * high_move, price + dual * price_move
        touching = envelope.touch(shares)
        constant, slope = envelope.linear(touching)
        found = _bound(constant, slope, price, scaled, shares)
        if found.upper < best.upper:
            best = found
    return best


def _reach(position: FloatArray, move: FloatArray) -> float:
    """How far along `move` the positive `position` stays positive."""
    falling = move < 0.0
    return float((-position[falling] / move[falling]).min(initial=np.inf))


def _bound(
    constant: float, slope: FloatArray, price: FloatArray, scaled: FloatArray, shares: FloatArray
) -> Bound:
    reduced = slope - price @ scaled
    upper = constant + float(price.sum()) + float(np.maximum(reduced, 0.0).sum())
    return Bound(upper, shares, reduced)
