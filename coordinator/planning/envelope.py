"""Concave envelopes of the set values: what a panel can be worth at most when experts may be chosen in
shares.

Per prompt each set value is `psi(sum of beta_n over the panel)` with psi concave, or a maximum. For any
touching point t >= 0 and u(t) = psi(t) - t psi'(t), the panel S is worth at most `u(t) + sum_{n in S}
gamma_n(t)` where

    gamma_n(t) = psi'(t) beta_n      if beta_n <= t    (the tangent of psi at t)
                 psi(beta_n) - u(t)  if beta_n > t     (lifted: smaller than the tangent, exact for n alone)

Proof: with no expert above t this is the tangent. With one, a, the bound needs psi(a) - u >= psi(a + s) - u -
psi'(t) s for s >= 0, true as psi' <= psi'(t) beyond t. A second one, b, adds psi(L + b) - psi(L) with L >= t;
that is at most psi(t + b) - psi(t), and psi(t + b) - psi(b) <= t psi'(b) <= t psi'(t), so at most gamma_b.
For a maximum the same holds with `u + sum (p_n - u)+` (the dual of facility location, Cornuejols, Fisher,
Nemhauser 1977). So *every* t gives a valid linear bound; the tightest solves a convex program (`relaxation`).
Members that are held already enter through psi alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, SetValue

_LARGEST_BETA = 60.0
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


def settle(
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
        self.beta = -np.log(np.maximum(rows, np.exp(-_LARGEST_BETA)))

    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        touching, steps, spread = settle(self.beta, shares, near)
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
