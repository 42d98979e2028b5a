"""One expert's energy in one power mode, learned from its own requests. PURE.

Only measured (or simulated) joules are learned from: a lower bound or an unknown figure would teach a saving that does
not exist. The formulas are those of `moe2.common.cost`.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

from moe2.agent.energy.attribution import DEFAULT_PREFILL_WEIGHT, TokenWeight
from moe2.agent.learning.guesses import RatioForecast
from moe2.agent.learning.regression import RelativeRegression, around
from moe2.agent.learning.residuals import AGREEING, ResidualPool
from moe2.common.cost import EnergyProfile, RequestShape, energy_features
from moe2.common.energy import Attribution, Energy, Quality, Scope, worst_quality

_FULL_COVERAGE = 0.98
_USABLE = (Quality.MEASURED_COUNTER, Quality.MEASURED_INTEGRATED, Quality.SIMULATED)
_FEWEST_SAMPLES = 3
_PREFILL_WEIGHT_RANGE = (1 / 500, 1.0)
_ENOUGH_FOR_WEIGHT = 10
_MEMORY = 50


class EnergyModel:
    """Learns what requests cost in joules with `observe`; `profile` is what is known."""

    def __init__(self) -> None:
        self._total: RelativeRegression | None = None
        self._marginal: RelativeRegression | None = None
        self._residuals = ResidualPool()
        self._qualities: deque[Quality] = deque(maxlen=_MEMORY)
        self._scope: Scope | None = None
        self._idle_w: float | None = None
        self._effort = RatioForecast()
        self._n_requests = 0
        self._n_exclusive = 0
        self.changes = 0
        """How often the cost was found to have changed."""

    @classmethod
    def starting_from(cls, profile: EnergyProfile) -> EnergyModel:
        """A model whose law is taken over (from another power mode, or stored) but not confirmed by any request."""
        model = cls()
        model._total = around(profile.coefficients)
        model._scope = profile.scope
        model._qualities.append(profile.quality)
        return model

    @property
    def profile(self) -> EnergyProfile | None:
        """What is known; None before any request's energy was measured."""
        if self._total is None:
            return None
        e0, *by_token = self._total.coefficients
        e1, e2, e3 = (each * self._effort.expected for each in by_token)
        return EnergyProfile(
            coefficients=(e0, e1, e2, e3),
            spread=self._residuals.spread,
            quality=worst_quality(self._qualities),
            scope=self._scope,
            idle_w=self._idle_w,
            n_requests=self._n_requests,
        )

    def token_weight(self, decode: float = 1.0) -> TokenWeight:
        """The weight of this expert's tokens in a split (`decode`: see `TokenWeight`).

        The ratio of prefilled to decoded tokens is learned from requests that had the device for themselves, whose
        joules do not depend on the split; before ten of them it is the default.
        """
        ratio = DEFAULT_PREFILL_WEIGHT
        if self._marginal is not None and self._n_exclusive >= _ENOUGH_FOR_WEIGHT:
            prefill_j, own_j, shared_j, _ = self._marginal.coefficients
            if own_j + shared_j > 0:
                lowest, highest = _PREFILL_WEIGHT_RANGE
                ratio = min(highest, max(lowest, prefill_j / (own_j + shared_j)))
        return TokenWeight(decode=decode, prefill=decode * ratio)

    def observe(
        self, shape: RequestShape, energy: Energy, mean_occupancy: float | None = None, *, effort: float = 1.0
    ) -> None:
        """Learn from a request's energy. shape: with the occupancy that was to be expected at its arrival.

        effort: what a decoded token took beside one that was not guessed.

        Energy that is unknown, of too few samples for a single request, or of a part of its time is passed over. What
        is partial only because other programs were on the device is learned from: it is what a request costs there.
        """
        joules = energy.joules
        if joules is None or joules <= 0 or not _is_whole(energy) or shape.decoded_tokens < 1:
            return
        if energy.n_samples is not None and energy.n_samples < _FEWEST_SAMPLES:
            return
        if energy.scope != self._scope:
            # Another sensor measures another part of the host: what was learned does not carry over.
            self._forget(energy.scope)
        changed = self._compare(shape, joules)
        prompt, *decoded = energy_features(msgspec.structs.replace(shape, occupancy=mean_occupancy or shape.occupancy))
        features = (prompt, *(each * effort for each in decoded))
        self._effort.observe(effort)
        if self._total is None:
            self._total = _prior(shape, joules)
        self._total.observe(features, joules)
        self._observe_marginal(shape, features, energy)
        self._qualities.append(energy.quality)
        self._idle_w = energy.idle_w
        self._n_requests += 1
        if changed:
            self.changes += 1
            self._total = self._total.repaced(AGREEING)
            self._n_requests = AGREEING

    def _observe_marginal(self, shape: RequestShape, features: tuple[float, ...], energy: Energy) -> None:
        marginal_j = energy.marginal_joules
        if marginal_j is None or marginal_j <= 0 or energy.attribution is not Attribution.EXCLUSIVE:
            return
        if self._marginal is None:
            self._marginal = _prior(shape, marginal_j)
        self._marginal.observe(features, marginal_j)
        self._n_exclusive += 1

    def _compare(self, shape: RequestShape, joules: float) -> bool:
        """Add what a prediction made at its arrival would have been off by; True if the cost has changed."""
        profile = self.profile
        mean_j = profile.mean_j(shape) if profile is not None else 0.0
        return mean_j > 0 and self._residuals.add(math.log(joules / mean_j))

    def _forget(self, scope: Scope | None) -> None:
        self._total = self._marginal = None
        self._residuals.clear()
        self._qualities.clear()
        self._n_requests = self._n_exclusive = 0
        self._scope = scope


def _prior(shape: RequestShape, joules: float) -> RelativeRegression:
    """A prior from one request: half of a decoded token's cost its own, half shared by the batch."""
    token_j = joules / (shape.decoded_tokens + DEFAULT_PREFILL_WEIGHT * shape.prompt_tokens)
    prefill_j = DEFAULT_PREFILL_WEIGHT * token_j
    return RelativeRegression(
        mean=(prefill_j, 0.5 * token_j, 0.5 * token_j, 0.0),
        scale=(2 * prefill_j, 0.5 * token_j, 0.5 * token_j, 0.1 * token_j),
    )


def _is_whole(energy: Energy) -> bool:
    """Return whether the figure covers the whole request, on every device that it used."""
    is_shared = energy.quality is Quality.PARTIAL and energy.coverage is not None
    return energy.quality in _USABLE or (is_shared and (energy.coverage or 0.0) >= _FULL_COVERAGE)
