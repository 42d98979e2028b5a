"""Predictions of how many tokens of a prompt have to be prefilled, learned per model from requests that ran. PURE.

Before a request runs only its bytes are known. How many tokens they make depends on the model's vocabulary, its chat
template and what a prefix cache already holds; it is learned as a line: prefilled = l0 + l1 * estimated.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from moe2.common.cost import RequestShape
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.request import Demand

_FORGETTING = 0.98
"""Factor on a request's weight at each later request: the line looks back on about 50."""
_PRIOR_WEIGHT = 1.0
"""Number of requests that the plain estimate (l0 = 0, l1 = 1) weighs as much as."""


class PromptLengths:
    """The learned line of each model, from the estimated length of a prompt to the tokens that are prefilled."""

    def __init__(self, saved: Mapping[str, LineSums] | None = None) -> None:
        self._lines = {model: line for model, line in (saved or {}).items() if line.is_sound}

    @property
    def saved(self) -> dict[str, LineSums]:
        """What a restarted coordinator has to know: a copy of each model's line."""
        return {model: msgspec.structs.replace(line) for model, line in self._lines.items()}

    def observe(self, model: str, estimated_tokens: int, prefilled_tokens: int) -> None:
        """Learn from a request that ran: its prompt's estimated length and the tokens that its expert prefilled."""
        self._lines.setdefault(model, LineSums()).observe(float(estimated_tokens), float(prefilled_tokens))

    def ran(self, model: str, demand: Demand, usage: JobUsage, foreseen: RequestShape) -> None:
        """Learn from a job's usage. foreseen: the shape that was predicted for it.

        What was foreseen in the cache is taken off each prediction, so it counts as read here: to learn it as well
        would take it off twice. What nobody foresaw, such as a template that all prompts begin with, is learned.
        """
        if usage.prompt_tokens is not None:
            unforeseen = max(0, usage.cached_tokens - foreseen.cached_tokens)
            self.observe(model, demand.prompt_tokens, usage.prompt_tokens - unforeseen)

    def demand_on(self, model: str, demand: Demand) -> Demand:
        """`demand` with the prompt's length that is predicted for a model; unchanged for a model that never ran."""
        line = self._lines.get(model)
        if line is None:
            return demand
        return Demand(max(1, round(line.at(demand.prompt_tokens))), demand.max_tokens)


class LineSums(msgspec.Struct, kw_only=True):
    """A line fitted by least squares with forgetting; errors count relative to the estimate.

    The sums are over requests of 1 and of w, w x, w x^2, w y, w x y, with x estimated, y prefilled and w = 1 / x^2.
    """

    count: float = 0.0
    w: float = 0.0
    wx: float = 0.0
    wxx: float = 0.0
    wy: float = 0.0
    wxy: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether the sums can have been learned; a damaged file can say anything."""
        return self.w > 0.0 and min(self.count, self.wx, self.wxx, self.wy, self.wxy) >= 0.0

    def observe(self, estimated: float, prefilled: float) -> None:
        """Takes in a prompt of `estimated` tokens of which `prefilled` were read."""
        weight = 1 / max(1.0, estimated) ** 2
        self.count = _FORGETTING * self.count + 1
        self.w = _FORGETTING * self.w + weight
        self.wx = _FORGETTING * self.wx + weight * estimated
        self.wxx = _FORGETTING * self.wxx + weight * estimated * estimated
        self.wy = _FORGETTING * self.wy + weight * prefilled
        self.wxy = _FORGETTING * self.wxy + weight * estimated * prefilled

    def at(self, estimated: float) -> float:
        """The predicted tokens for an estimate; never below 0, and never falling as the estimate rises."""
        scatter = self.wxx - self.wx**2 / self.w
        common = self.wxy - self.wx * self.wy / self.w
        slope = max(0.0, (common + _PRIOR_WEIGHT) / (scatter + _PRIOR_WEIGHT))
        change = (self.wy - self.wx) / self.w * self.count / (self.count + _PRIOR_WEIGHT)
        offset = change + (1 - slope) * self.wx / self.w
        return max(0.0, offset + slope * estimated)
