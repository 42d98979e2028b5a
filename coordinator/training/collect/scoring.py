"""Scores of answers: 1 for right, 0 for wrong, by one of four metrics. PURE.

Small models wrap an answer in words, so each metric looks for the part that counts (`moe2.coordinator.answers`): the
whole answer without case, punctuation and articles, the short answer within it, the letter of an option, or a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from moe2.coordinator.answers.extraction import extract
from moe2.coordinator.answers.form import AnswerForm, AnswerKind, form_of
from moe2.coordinator.answers.normal_form import last_number, normalised, number_key


class Metric(StrEnum):
    """How an answer is compared with the right one."""

    EXACT_MATCH = "exact_match"
    """The whole answer, normalised."""
    SHORT_TEXT = "short_text"
    """The short answer that is declared or that a sentence around it gives, as a vote counts it."""
    CHOICE = "choice"
    """The letter of the chosen option, or the option's text."""
    NUMERIC = "numeric"
    """The number that the answer declares, else its last one."""


INSTRUCTIONS = {
    Metric.EXACT_MATCH: "Answer with the answer alone, as briefly as possible.",
    Metric.SHORT_TEXT: "Answer with the answer alone, as briefly as possible.",
    Metric.CHOICE: "Answer with the letter of the right option alone.",
    Metric.NUMERIC: "End your answer with the resulting number.",
}
"""The system message that experts get with a question, by metric; the gate never sees it."""


def said(metric: Metric, answer: str, choices: Sequence[str] = (), *, asked: str = "") -> str | None:
    """What an answer says in its normal form, so that equal answers are equal texts; None where it says nothing.

    Of a choice it is the option's letter, of a number its value; of an exact match the whole answer.
    asked: the question, whose words a short text may repeat around its answer.
    """
    if metric is Metric.EXACT_MATCH:
        return normalised(answer) or None
    found = extract(answer, form_of_metric(metric, choices, asked=asked))
    return None if found is None else found.key


def form_of_metric(metric: Metric, choices: Sequence[str] = (), *, asked: str = "") -> AnswerForm:
    """The form of the final answers that a metric compares."""
    if metric is Metric.CHOICE:
        return AnswerForm(AnswerKind.CHOICE, tuple(choices), is_lettered=True)
    return form_of(asked, kind=AnswerKind.NUMBER if metric is Metric.NUMERIC else AnswerKind.TEXT)


def score(metric: Metric, answer: str, gold: str, choices: Sequence[str] = (), *, asked: str = "") -> float:
    """The score of an answer: 1.0 where it is right, else 0.0. gold: the right answer; of a choice its letter."""
    match metric:
        case Metric.EXACT_MATCH:
            return float(normalised(answer) == normalised(gold))
        case Metric.SHORT_TEXT:
            right_text = said(metric, gold, asked=asked)
            return float(right_text is not None and said(metric, answer, asked=asked) == right_text)
        case Metric.CHOICE:
            return float(said(metric, answer, choices) == gold)
        case Metric.NUMERIC:
            right = last_number(gold)
            return float(right is not None and said(metric, answer) == number_key(right))
