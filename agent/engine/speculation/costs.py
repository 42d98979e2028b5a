"""PURE: what a step of the model takes in seconds, by the number of tokens in its batch, learned from steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes that are learned; what lies between is interpolated."""
_SCALE_WEIGHT = 0.2
"""Weight of the newest step in how fast the model is now, whatever the batch's size."""
_SHAPE_WEIGHT = 0.1
"""Weight of the newest step in what a batch of its size takes beside others."""
_FORGETTING = 0.999
"""What was learned of a size counts less with every step in which it was not seen: what was measured in a bad moment
is tried again some day."""
_MAX_SURPRISE = 1.3
"""A step that is further off than by this factor was held up by something else, and counts no more than this."""


def _between(measured_s: Mapping[int, float], size: int) -> float:
    """Seconds of a size from measured ones, of which there is at least that of 1: on the line between its neighbours,
    or beyond the last one."""
    if size in measured_s:
        return measured_s[size]
    lower = max(known for known in measured_s if known < size)
    upper = min((known for known in measured_s if known > size), default=None)
    if upper is None:
        per_token_s = (measured_s[lower] - measured_s[1]) / (lower - 1) if lower > 1 else measured_s[1]
        return measured_s[lower] + max(per_token_s, 0.0) * (size - lower)
    part = (size - lower) / (upper - lower)
    return measured_s[lower] + part * (measured_s[upper] - measured_s[lower])


class StepCosts:
    """Seconds of a step by the number of tokens in it."""

    def __init__(self, *, step_s: float, token_s: float, measured_s: Mapping[int, float] | None = None) -> None:
        """step_s: of a batch of one token. token_s: of each further one, as in a large batch. measured_s: of a batch by
        its tokens, where that was measured beside a batch of one; other sizes are taken from these."""
        self._first = [step_s + token_s * (size - 1) for size in _SIZES]
        if measured_s and (one_s := measured_s.get(1)):
            # What counts is how much longer each took than one: all were measured in the same moment.
            self._first = [step_s * _between(measured_s, size) / one_s for size in _SIZES]
        self._learned = [1.0] * len(_SIZES)
        """What a size takes beside what was assumed at first, on this model's scale."""
        self._seen_at = [0] * len(_SIZES)
        self._scale = 1.0
        self._steps = 0
        self._table = self._tabulate()

    def of(self, tokens: int) -> float:
        """Seconds of a step with so many tokens, of which there is at least one."""
        if tokens < len(self._table):
            return self._table[tokens]
        last = self._table[-1]
        return last + (last - self._table[1]) / (_SIZES[-1] - 1) * (tokens - _SIZES[-1])

    def learn(self, tokens: int, seconds: float) -> None:
        """A step with so many tokens took so long."""
        if seconds <= 0 or tokens < 1 or tokens > _SIZES[-1]:
            return
        surprise = min(max(seconds / self.of(tokens), 1 / _MAX_SURPRISE), _MAX_SURPRISE)
        self._scale *= surprise**_SCALE_WEIGHT
        lower = bisect_right(_SIZES, tokens) - 1
        shares = [(lower, 1.0)]
        if _SIZES[lower] != tokens:
            part = (tokens - _SIZES[lower]) / (_SIZES[lower + 1] - _SIZES[lower])
            shares = [(lower, 1 - part), (lower + 1, part)]
        self._steps += 1
        for at, share in shares:
            self._learned[at] = self._beside(at) * surprise ** (_SHAPE_WEIGHT * share)
            self._seen_at[at] = self._steps
        self._table = self._tabulate()

    def _tabulate(self) -> list[float]:
        """Seconds of steps with 0, 1, 2, … tokens, up to the largest size that is learned."""
        # Not forced to rise: with some quantizations llama.cpp takes 8 tokens faster than 6.
        table = [0.0]
        for at, size in enumerate(_SIZES):
            before, known = table[-1], self._scale * self._first[at] * self._beside(at)
            gap = size - len(table) + 1
            table += [before + (known - before) * step / gap for step in range(1, gap + 1)]
        return table

    def _beside(self, at: int) -> float:
        return float(self._learned[at] ** (_FORGETTING ** (self._steps - self._seen_at[at])))
