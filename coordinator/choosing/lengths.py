"""The lengths of prompt and answer that requests are predicted by, learned from those that ran. PURE.

Before a request runs only its prompt's bytes are known. How many tokens they make depends on the model's vocabulary,
its chat template and what a prefix cache already holds; it is learned per model as a line: prefilled = l0 + l1 *
estimated.

How long an answer becomes where the client sets no limit is learned by category and model from answers that ended. The
logarithm of a length is taken as normal, which public traces of chats and of code come near to. A category and a model
each move the mean of all answers; what both have together moves it further (partial pooling). Where little was seen,
the mean is near what is known of the rest, and the p95 is wider. Before anything was seen, the length is assumed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from moe2.common.cost import RequestShape
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.forecast import IntArray, Roster
from moe2.coordinator.choosing.request import ASSUMED_ANSWER_TOKENS, Demand

_LINE_FORGETTING = 0.98
"""Factor on a request's weight at each later request: the line looks back on about 50."""
_LINE_PRIOR_WEIGHT = 1.0
"""Number of requests that the plain estimate (l0 = 0, l1 = 1) weighs as much as."""
MAX_CLASSES = 1024
"""Pairs of category and model that are remembered, the latest used ones: clients name categories as they like."""
_FORGETTING = 0.99
"""Factor on an answer's weight at each later one of its class: what is learned looks back on about 100."""
_PRIOR_WEIGHT = 1.0
"""Answers that the assumed length weighs as much as."""
_PRIOR_VARIANCE = 1.0
"""Of the logarithm: before lengths are known, two in three are taken to be within a factor of 2.7."""
_EFFECT_WEIGHT = 2.0
"""Answers that "like all others" weighs as much as for a category or a model."""
_CLASS_WEIGHT = 4.0
"""Answers that what category and model say weighs as much as for the two together."""
_MIN_DEVIATION = 0.05
_P95_Z = 1.6449
"""Standard normal quantile of 0.95."""
_EXACT_UP_TO = 16
_STEPS_PER_OCTAVE = 8
"""Longer lengths are rounded to steps of a twelfth, so that what is learned does not make every plan a new one."""
VERSION = 1


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
        self.count = _LINE_FORGETTING * self.count + 1
        self.w = _LINE_FORGETTING * self.w + weight
        self.wx = _LINE_FORGETTING * self.wx + weight * estimated
        self.wxx = _LINE_FORGETTING * self.wxx + weight * estimated * estimated
        self.wy = _LINE_FORGETTING * self.wy + weight * prefilled
        self.wxy = _LINE_FORGETTING * self.wxy + weight * estimated * prefilled

    def at(self, estimated: float) -> float:
        """The predicted tokens for an estimate; never below 0, and never falling as the estimate rises."""
        scatter = self.wxx - self.wx**2 / self.w
        common = self.wxy - self.wx * self.wy / self.w
        slope = max(0.0, (common + _LINE_PRIOR_WEIGHT) / (scatter + _LINE_PRIOR_WEIGHT))
        change = (self.wy - self.wx) / self.w * self.count / (self.count + _LINE_PRIOR_WEIGHT)
        offset = change + (1 - slope) * self.wx / self.w
        return max(0.0, offset + slope * estimated)


class LengthSums(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one class: weighted sums of 1, of ln(tokens) and of its square.

    category, model: None for all of them together.
    """

    category: str | None = None
    model: str | None = None
    weight: float = 0.0
    logs: float = 0.0
    squares: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether the figures can have been learned; a damaged file can say anything."""
        bound = 1.0 / (1.0 - _FORGETTING) + 1.0
        return 0.0 < self.weight <= bound and 0.0 <= self.logs <= 50.0 * bound and 0.0 <= self.squares <= 2500.0 * bound


class AnswerLengths:
    """The learned lengths of answers in tokens, by category and by the identity of the model that writes."""

    def __init__(self, saved: Sequence[LengthSums] = ()) -> None:
        self._sums: OrderedDict[tuple[str | None, str | None], LengthSums] = OrderedDict(
            ((one.category, one.model), one) for one in saved[-MAX_CLASSES:] if one.is_sound
        )

    @property
    def saved(self) -> tuple[LengthSums, ...]:
        """What a restarted coordinator has to know, the latest used classes last."""
        return tuple(self._sums.values())

    def ended(self, category: str, model: str, demand: Demand, n_tokens: int, *, is_cut: bool) -> bool:
        """Learns from an answer of `n_tokens` tokens; returns whether it taught anything.

        is_cut: it ended at a limit and not by itself. One that the client's own limit has cut says nothing, nor does
        one under a limit that usual answers do not keep: only the short ones would be counted.
        """
        if n_tokens < 1:
            return False
        if demand.max_tokens is not None and (is_cut or demand.max_tokens < self.of(category, [model])[1][0]):
            return False
        for key in ((None, None), (category, None), (None, model), (category, model)):
            self._see(key, math.log(n_tokens))
        while len(self._sums) > MAX_CLASSES:
            self._sums.popitem(last=False)
        return True

    def of(self, category: str, models: Sequence[str]) -> tuple[IntArray, IntArray]:
        """The length that half of the answers keep below, and 95 of 100, for each of M models, (M,) each.

        Both are what is assumed where no answer has been seen yet.
        """
        whole = self._sums.get((None, None))
        if whole is None:
            assumed = np.full(len(models), ASSUMED_ANSWER_TOKENS)
            return assumed, assumed
        found = [self._of(whole, category, model) for model in models]
        return np.array([p50 for p50, _ in found]), np.array([p95 for _, p95 in found])

    def _of(self, whole: LengthSums, category: str, model: str) -> tuple[int, int]:
        prior = math.log(ASSUMED_ANSWER_TOKENS)
        count = whole.weight + _PRIOR_WEIGHT
        mean = (whole.logs + _PRIOR_WEIGHT * prior) / count
        variance = (whole.squares + _PRIOR_WEIGHT * (prior**2 + _PRIOR_VARIANCE)) / count - mean**2
        expected = mean
        for key in ((category, None), (None, model)):
            if (sums := self._sums.get(key)) is not None:
                expected += (sums.logs - sums.weight * mean) / (sums.weight + _EFFECT_WEIGHT)
        own = self._sums.get((category, model))
        n_known = 0.0
        if own is not None:
            n_known = own.weight
            spread = max(0.0, own.squares / own.weight - (own.logs / own.weight) ** 2)
            expected = (own.logs + _CLASS_WEIGHT * expected) / (own.weight + _CLASS_WEIGHT)
            variance = (own.weight * spread + _CLASS_WEIGHT * variance) / (own.weight + _CLASS_WEIGHT)
        deviation = max(_MIN_DEVIATION, math.sqrt(max(0.0, variance) * (1.0 + 1.0 / (n_known + _CLASS_WEIGHT))))
        return _rounded(expected), _rounded(expected + _P95_Z * deviation)

    def _see(self, key: tuple[str | None, str | None], log: float) -> None:
        former = self._sums.pop(key, LengthSums(category=key[0], model=key[1]))
        # The class that was used last stands last.
        self._sums[key] = LengthSums(
            category=key[0],
            model=key[1],
            weight=_FORGETTING * former.weight + 1.0,
            logs=_FORGETTING * former.logs + log,
            squares=_FORGETTING * former.squares + log * log,
        )


def _rounded(log: float) -> int:
    """The tokens of a length that is given by its logarithm, at least 1, rounded."""
    tokens = math.exp(min(log, 20.0))
    if tokens <= _EXACT_UP_TO:
        return max(1, round(tokens))
    return round(math.exp2(round(math.log2(tokens) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE))


class SavedLengths(msgspec.Struct, frozen=True, kw_only=True):
    """All that outlives a restart: of prompts by the model's identity, of answers by category and model."""

    version: int = VERSION
    prompts: dict[str, LineSums] = {}
    answers: tuple[LengthSums, ...] = ()


class Lengths:
    """What is learned of lengths. One writer: the coordinator's event loop.

    saved: from an earlier run. n_learned counts what was learned from, so that nothing new need not be kept.
    """

    def __init__(self, saved: SavedLengths | None = None) -> None:
        saved = saved or SavedLengths()
        self.prompts = PromptLengths(saved.prompts)
        self.answers = AnswerLengths(saved.answers)
        self.n_learned = 0

    @property
    def saved(self) -> SavedLengths:
        """What a restarted coordinator has to know."""
        return SavedLengths(prompts=self.prompts.saved, answers=self.answers.saved)

    def prompt_tokens(self, roster: Roster, demand: Demand) -> IntArray:
        """(N,) predicted length of the prompt to each expert's model."""
        lengths = [self.prompts.demand_on(model, demand).prompt_tokens for model in roster.different_models]
        return np.array(lengths)[roster.model_place]

    def answer_tokens(
        self, roster: Roster, demand: Demand, category: str, prompt_tokens: IntArray
    ) -> tuple[int | IntArray, IntArray | None]:
        """The answer's length, and the length (N,) that 95 of 100 keep below where the client sets no limit.

        prompt_tokens: (N,) of the prompt; a context holds no longer answer than it has room for beside it.
        """
        if demand.max_tokens is not None or demand.longest_text_tokens is not None:
            return demand.answer_tokens, None
        p50, p95 = self.answers.of(category, roster.different_models)
        room = np.maximum(1, roster.context_tokens - prompt_tokens)
        return np.minimum(p50[roster.model_place], room), np.minimum(p95[roster.model_place], room)
