"""How well the seconds of an answer could be predicted at all, from one run's own answers.

While an answer is written, others come, and their prompts take the model away for a while. Who chooses an expert cannot
know them. Two lines are fitted to the answers of the run itself, each judged on answers that it was not fitted to: one
on what can be known when a request comes (what is left of others' prompts, and of their answers where clients have said
how long these may be), one that also knows, in hindsight, which prompts were computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FOLDS = 5
_ROUNDS = 30
_LEAST_ERROR = 0.01


@dataclass(frozen=True)
class Answered:
    """An answer. began_s, first_s, ended_s: by one clock. prompt_tokens: that had to be computed."""

    began_s: float
    first_s: float
    ended_s: float
    prompt_tokens: int
    decoded_tokens: int


@dataclass(frozen=True)
class Bounds:
    """Median errors in percent of the best line in what was known at the start, and of one with hindsight."""

    known_pct: float
    hindsight_pct: float


def bounds(answers: Sequence[Answered]) -> Bounds:
    """Return how well the seconds of these answers, at least a few dozen, can be told."""
    seconds = np.array([one.ended_s - one.began_s for one in answers])
    own = [(1.0, one.prompt_tokens, one.decoded_tokens) for one in answers]
    beside = [[other for other in answers if _shared_s(one, other.began_s, other.ended_s)] for one in answers]
    known, hindsight = [], []
    for one, terms, others in zip(answers, own, beside, strict=True):
        running = [other for other in others if other is not one and other.began_s < one.began_s]
        left = sum(_prompt_after(other, one.began_s, other.first_s) for other in running)
        together = sum(min(_answer_after(other, one.began_s), one.decoded_tokens) for other in running)
        known.append((*terms, len(running) * one.prompt_tokens, len(running) * one.decoded_tokens, left, together))
        theirs = sum(_prompt_after(other, one.began_s, one.ended_s) for other in others if other is not one)
        hindsight.append((*terms, theirs))
    return Bounds(_median_error_pct(np.array(known), seconds), _median_error_pct(np.array(hindsight), seconds))


def _shared_s(one: Answered, start_s: float, end_s: float) -> float:
    return max(0.0, min(one.ended_s, end_s) - max(one.began_s, start_s))


def _prompt_after(other: Answered, start_s: float, end_s: float) -> float:
    """Return the tokens of the other's prompt that were computed within a span."""
    prefill_s = max(other.first_s - other.began_s, 1e-9)
    within_s = max(0.0, min(other.first_s, end_s) - max(other.began_s, start_s))
    return other.prompt_tokens * within_s / prefill_s


def _answer_after(other: Answered, start_s: float) -> float:
    """Return the tokens of the other's answer that were still to be written at a time before its end."""
    decode_s = max(other.ended_s - other.first_s, 1e-9)
    return other.decoded_tokens * min(1.0, (other.ended_s - start_s) / decode_s)


def _median_error_pct(terms: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> float:
    """Return the median relative error of lines with the least sum of relative errors, on answers they do not know."""
    fold = np.arange(len(seconds)) % _FOLDS
    errors = np.empty(len(seconds))
    for tested in range(_FOLDS):
        learned = fold != tested
        weights = 1 / seconds[learned]
        for _ in range(_ROUNDS):
            # Least squares, weighted anew by what is left: it nears the least sum of errors, which outliers bend less.
            line, *_ = np.linalg.lstsq(terms[learned] * weights[:, None], seconds[learned] * weights, rcond=None)
            left = np.abs(terms[learned] @ line - seconds[learned]) / seconds[learned]
            weights = 1 / seconds[learned] / np.sqrt(np.maximum(left, _LEAST_ERROR))
        errors[~learned] = np.abs(terms[~learned] @ line - seconds[~learned]) / seconds[~learned]
    return float(100 * np.median(errors))
