"""How many tokens a prompt will have to be prefilled with, learned per model from requests that have run. PURE.

Before a request runs only its bytes are known. What comes of them depends on the model's vocabulary, its chat template
and what a prefix cache already holds, and is learned as a line: prefilled = l0 + l1 * estimated.
"""

from __future__ import annotations

from moe2.coordinator.choosing.request import Demand

_FORGETTING = 0.98
"""Weight that a request keeps at each later one: looks back on about 50."""
_PRIOR_WEIGHT = 1.0
"""Requests that the plain estimate (l0 = 0, l1 = 1) counts for."""


class PromptLengths:
    """Learns with `observe`; `demand_on` is the demand as it will be for one model."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def observe(self, model: str, estimated_tokens: int, prefilled_tokens: int) -> None:
        """A prompt's estimate, and what its expert had to prefill."""
        self._lines.setdefault(model, _Line()).observe(float(estimated_tokens), float(prefilled_tokens))

    def demand_on(self, model: str, demand: Demand) -> Demand:
        """`demand` with the prompt's length as that model's requests have turned out."""
        line = self._lines.get(model)
        if line is None:
            return demand
        return Demand(max(1, round(line.at(demand.prompt_tokens))), demand.max_tokens)


class _Line:
    """Least squares with forgetting; errors count relative to the estimate."""

    def __init__(self) -> None:
        # Sums over requests of 1, and of w, w x, w x^2, w y, w x y with w = 1 / x^2.
        self._count = self._w = self._wx = self._wxx = self._wy = self._wxy = 0.0

    def observe(self, estimated: float, prefilled: float) -> None:
        weight = 1 / max(1.0, estimated) ** 2
        self._count = _FORGETTING * self._count + 1
        self._w = _FORGETTING * self._w + weight
        self._wx = _FORGETTING * self._wx + weight * estimated
        self._wxx = _FORGETTING * self._wxx + weight * estimated * estimated
        self._wy = _FORGETTING * self._wy + weight * prefilled
        self._wxy = _FORGETTING * self._wxy + weight * estimated * prefilled

    def at(self, estimated: float) -> float:
        """Never below 0, and never falling with the estimate."""
        scatter = self._wxx - self._wx**2 / self._w
        common = self._wxy - self._wx * self._wy / self._w
        slope = max(0.0, (common + _PRIOR_WEIGHT) / (scatter + _PRIOR_WEIGHT))
        change = (self._wy - self._wx) / self._w * self._count / (self._count + _PRIOR_WEIGHT)
        offset = change + (1 - slope) * self._wx / self._w
        return max(0.0, offset + slope * estimated)
