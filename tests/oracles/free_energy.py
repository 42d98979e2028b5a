"""A third set value, the negative free energy of a panel, which no request is planned with.

It shows that the search needs no more of a set value than its shape.

| value | state of expert n on prompt m | combined by | value of a panel |
|---|---|---|---|
| free energy | exp(-(l_nm - min l_m) / tau) | sum | tau * mean(log(state)) - mean(min l_m) |

Source: design.md, section 2. It is given with its sign turned, so that more is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moe2.coordinator.planning.bounds import Envelope, Tangent, envelope, touching_points
from moe2.coordinator.planning.values import CalibrationError, FloatArray, SetValue, calibrated

_WIDEST_EXPONENT = 600.0
"""exp(-600) is still a normal float64; a wider spread of losses is kept in logarithms instead."""
_TINY = 1e-300


class FreeEnergy(SetValue):
    """The negative free energy of a panel, `tau * E[log sum exp(-l_n / tau)]`: minus the gate's optimal objective.

    The pointwise optimum of `sum w_n l_n + tau sum w_n log w_n` over the simplex is `-tau log sum exp(-l_n /
    tau)` (design.md, section 2), so this is what a gate trained with that objective can reach on the panel.
    """

    kind = "free_energy"

    def __init__(self, losses: ArrayLike, temperature: float) -> None:
        """`losses` (M, N), not negative; `temperature` > 0 in the losses' unit. Raises CalibrationError."""
        if not (np.isfinite(temperature) and temperature > 0.0):
            raise CalibrationError(f"The temperature must be a positive number, not {temperature}.")
        array = calibrated("losses", losses, float(np.finfo(np.float64).max))
        self.temperature = float(temperature)
        least = array.min(axis=1)
        exponents = (array - least[:, None]).T / self.temperature
        self.in_logarithms = bool(exponents.max() > _WIDEST_EXPONENT)
        """States are logarithms, combined by logaddexp: sums would underflow."""
        if self.in_logarithms:
            self._keep(-exponents, -np.inf, np.logaddexp, more_is_better=True)
        else:
            self._keep(np.exp(-exponents), 0.0, np.add, more_is_better=True)
        self.offset = float(least.mean())
        alone = self.average(self.states)
        self.spread = float(self.average(self.state_of(list(range(self.experts)))) - alone.min())
        """What all the experts together are worth more than the worst of them alone."""

    def share(self, gap: float, value: float) -> float:
        """A difference of values as a share of `spread`: a free energy has no natural zero."""
        return gap / self.spread if self.spread else np.inf

    def average(self, state: FloatArray) -> FloatArray:
        if not self.in_logarithms:
            with np.errstate(divide="ignore"):
                state = np.log(state)
        return np.asarray(self.temperature * state.mean(axis=-1) - self.offset)


class FreeEnergyEnvelope(Envelope):
    """The envelope of the free energy: psi(t) = tau log(held + t) - offset, with beta = exp(-(l - min l) / tau)."""

    def __init__(self, rows: FloatArray, held: FloatArray, value: FreeEnergy) -> None:
        self.beta, self.held = rows, held
        self.temperature, self.offset = value.temperature, value.offset
        self.alone = np.log(np.maximum(held + rows, _TINY))
        self.least = np.maximum(rows.min(axis=0), _TINY)

    def at(self, shares: FloatArray, near: FloatArray | None = None, blur: float = 0.0) -> Tangent:
        touching, steps, spread = touching_points(self.beta, shares, near, self.least)
        total = self.held + touching
        scale = self.temperature / len(self.held)
        level = np.log(total)
        constant = scale * float((level - touching / total).sum()) - self.offset
        # Above t the tangent's slope t / total grows by log((held + beta) / total).
        slope = scale * (steps @ (1.0 / total) + np.maximum(self.alone - level, 0.0).sum(axis=1))
        return Tangent(touching, constant, slope, steps * (np.sqrt(scale * spread) / total))

    def linear(self, touching: FloatArray) -> tuple[float, FloatArray]:
        total = self.held + touching
        constant = self.temperature * (np.log(total) - touching / total)
        lifted = self.temperature * self.alone - constant
        slope = np.where(self.beta <= touching, self.beta * (self.temperature / total), lifted)
        return float(constant.mean()) - self.offset, np.asarray(slope.mean(axis=1))


@envelope.register
def _(value: FreeEnergy, rows: FloatArray, held: FloatArray) -> Envelope:
    if value.in_logarithms:
        # Raising what underflows to e^-600 can only raise the bound.
        return FreeEnergyEnvelope(np.exp(np.maximum(rows, -600.0)), np.exp(held), value)
    return FreeEnergyEnvelope(rows, held, value)
