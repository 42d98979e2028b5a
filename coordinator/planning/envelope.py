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

import numpy as np

from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, FreeEnergy, SetValue

_LARGEST_BETA = 60.0
"""-log of the smallest survival that is told apart from 0 (1e-26), far below any tie."""
_TINY = 1e-300


class Envelope(ABC):
    """The envelope of one value over n free experts on top of a held panel; arrays are (n, M) and (M,).

    `touch` picks the touching points for shares x (n,), `linear` is the valid bound at touching points t
    (constant and slope per expert, means over prompts), `curvature` gives V (n, M) and w (M,) such that -V
    diag(w) V^T is the second derivative of the envelope at x.
    """

    @abstractmethod
    def touch(self, shares: FloatArray) -> FloatArray: ...

    @abstractmethod
    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]: ...

    @abstractmethod
    def curvature(self, shares: FloatArray, touching: FloatArray) -> tuple[FloatArray, FloatArray]: ...

    @abstractmethod
    def restrict(self, kept: np.typing.NDArray[np.intp]) -> Envelope:
        """The envelope over some of the free experts only."""


def envelope(value: SetValue, rows: FloatArray, held: FloatArray) -> Envelope:
    """The envelope of `value` over experts with states `rows` (n, M), on top of a panel with state `held`
    (M,).
    """
    if isinstance(value, Coverage):
        return _CoverageEnvelope(rows, held)
    if isinstance(value, FreeEnergy):
        if value.in_logarithms:
            return _FreeEnergyEnvelope(np.exp(np.maximum(rows, -600.0)), np.exp(held), value)
        return _FreeEnergyEnvelope(rows, held, value)
    if isinstance(value, BestOf):
        return _BestOfEnvelope(rows, held)
    raise TypeError(f"No envelope is known for the set value {type(value).__name__}.")


class _SumEnvelope(ABC):
    """What coverage and free energy share: the touching points of `psi(sum beta)`.

    The envelope at x is the minimum over t, reached where `sum x_n min(t, beta_n) = t`; that equation's left
    side is concave in t, so Newton's method from above falls to the largest root.
    """

    beta: FloatArray

    def touch(self, shares: FloatArray) -> FloatArray:
        touching = shares @ self.beta
        for _ in range(3):
            above = self.beta >= touching
            lifted = shares @ above
            below = shares @ np.where(above, 0.0, self.beta)
            touching = np.where(lifted < 1.0, below / np.maximum(1.0 - lifted, 1e-9), touching)
        return np.asarray(touching)

    def _steps(self, shares: FloatArray, touching: FloatArray) -> tuple[FloatArray, FloatArray]:
        """min(t, beta) and 1 / (1 - shares above t)."""
        room = 1.0 - shares @ (self.beta >= touching)
        return np.minimum(self.beta, touching), 1.0 / np.maximum(room, 1e-3)


class _CoverageEnvelope(_SumEnvelope, Envelope):
    """psi(t) = 1 - held * exp(-t), beta = -log(1 - p)."""

    def __init__(self, rows: FloatArray, held: FloatArray) -> None:
        self.rows, self.held = rows, held
        self.beta = -np.log(np.maximum(rows, np.exp(-_LARGEST_BETA)))

    def restrict(self, kept: np.typing.NDArray[np.intp]) -> Envelope:
        part = object.__new__(_CoverageEnvelope)
        part.rows, part.held, part.beta = self.rows[kept], self.held, self.beta[kept]
        return part

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        survive = np.exp(-touching)
        constant = 1.0 - self.held * survive * (1.0 + touching)
        slope = np.where(self.beta <= touching, survive * self.beta, survive * (1.0 + touching) - self.rows)
        return float(constant.mean()), np.asarray(slope @ self.held) / len(self.held)

    def curvature(self, shares: FloatArray, touching: FloatArray) -> tuple[FloatArray, FloatArray]:
        steps, spread = self._steps(shares, touching)
        return steps, self.held * np.exp(-touching) * spread / len(self.held)


class _FreeEnergyEnvelope(_SumEnvelope, Envelope):
    """psi(t) = tau log(held + t) - offset, beta = exp(-(l - min l) / tau)."""

    def __init__(self, rows: FloatArray, held: FloatArray, value: FreeEnergy) -> None:
        self.beta, self.held, self.value = rows, held, value
        self.alone = value.temperature * np.log(np.maximum(held + rows, _TINY))
        self.least = np.maximum(rows.min(axis=0), _TINY)

    def restrict(self, kept: np.typing.NDArray[np.intp]) -> Envelope:
        part = object.__new__(_FreeEnergyEnvelope)
        part.beta, part.held, part.value = self.beta[kept], self.held, self.value
        part.alone, part.least = self.alone[kept], self.least
        return part

    def touch(self, shares: FloatArray) -> FloatArray:
        return np.asarray(np.maximum(super().touch(shares), self.least))

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        tau = self.value.temperature
        total = self.held + touching
        constant = tau * (np.log(total) - touching / total)
        slope = np.where(self.beta <= touching, self.beta * (tau / total), self.alone - constant)
        return float(constant.mean()) - self.value.offset, np.asarray(slope.mean(axis=1))

    def curvature(self, shares: FloatArray, touching: FloatArray) -> tuple[FloatArray, FloatArray]:
        steps, spread = self._steps(shares, touching)
        total = self.held + touching
        return steps / total, self.value.temperature * spread / len(self.held)


class _BestOfEnvelope(Envelope):
    """u + sum x_n (p_n - u)+ with u >= held; the kink is rounded while searching, exact in `linear`."""

    def __init__(self, rows: FloatArray, held: FloatArray, rounding: float = 0.01) -> None:
        self.rows, self.held, self.rounding = rows, held, rounding

    def restrict(self, kept: np.typing.NDArray[np.intp]) -> Envelope:
        return _BestOfEnvelope(self.rows[kept], self.held, self.rounding)

    def touch(self, shares: FloatArray) -> FloatArray:
        # The rounded sum x_n sigma((p_n - u) / eps) falls in u; bisect it to 1, then u is never below the
        # held state.
        low, high = self.held.copy(), np.maximum(self.held, self.rows.max(axis=0))
        for _ in range(10):
            middle = (low + high) / 2
            more = shares @ self._sigma(middle) > 1.0
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.asarray((low + high) / 2)

    def _sigma(self, level: FloatArray) -> FloatArray:
        distance = self.rows - level
        return np.asarray(0.5 + 0.5 * distance / np.sqrt(distance * distance + 4 * self.rounding**2))

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        level = np.maximum(touching, self.held)
        return float(level.mean()), np.asarray(np.maximum(self.rows - level, 0.0).mean(axis=1))

    def curvature(self, shares: FloatArray, touching: FloatArray) -> tuple[FloatArray, FloatArray]:
        distance = self.rows - touching
        root = np.sqrt(distance * distance + 4 * self.rounding**2)
        bend = shares @ (2 * self.rounding**2 / root**3)
        weight = np.where(touching > self.held + 1e-9, 1.0 / np.maximum(bend, 1e-3), 0.0)
        return 0.5 + 0.5 * distance / root, weight / self.rows.shape[1]
