"""Scores of answers: 1 for right, 0 for wrong, by one of three metrics. PURE.

Small models wrap an answer in words, so each metric looks for the part that counts: the whole answer without case,
punctuation and articles, the letter of an option, or the last number.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction

LETTERS = string.ascii_uppercase
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\d)[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)/\d+|(?<=\d))(?:[eE][-+]?\d+)?")
_DECLARED = (
    # A small letter counts at the very end only: "the answer is a dog" names no option.
    re.compile(r"(?i:answer|option|choice)(?i:\s+is)?\s*[:=]?\s*[*_]*\(?\s*([A-Z]\b|[a-z](?=\W*$))"),
    re.compile(r"\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\b"),
)
_DECLARING = re.compile(r"\banswer(?:\s+is)?\b\s*:?", re.IGNORECASE)
_ENCLOSED = re.compile(r"\(([A-Z])\)")
_OPENING = re.compile(r"^[\s*_(]*([A-Z])(?:[\s*_).:,]|$)")
_MAX_EXPONENT = 300


class Metric(StrEnum):
    """How an answer is compared with the right one."""

    EXACT_MATCH = "exact_match"
    """The whole answer, normalised."""
    CHOICE = "choice"
    """The letter of the chosen option, or the option's text."""
    NUMERIC = "numeric"
    """The last number of the answer."""


INSTRUCTIONS = {
    Metric.EXACT_MATCH: "Answer with the answer alone, as briefly as possible.",
    Metric.CHOICE: "Answer with the letter of the right option alone.",
    Metric.NUMERIC: "End your answer with the resulting number.",
}
"""The system message that experts get with a question, by metric; the gate never sees it."""


def score(metric: Metric, answer: str, gold: str, choices: Sequence[str] = ()) -> float:
    """The score of an answer: 1.0 where it is right, else 0.0. gold: the right answer; of a choice its letter."""
    match metric:
        case Metric.EXACT_MATCH:
            return float(normalised(answer) == normalised(gold))
        case Metric.CHOICE:
            return float(chosen_letter(answer, choices) == gold)
        case Metric.NUMERIC:
            found = last_number(answer)
            return float(found is not None and found == last_number(gold))


def normalised(text: str) -> str:
    """The text without case, punctuation, articles and surplus space, with accents in one encoding (NFKC)."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in lowered)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer names; None where it names none.

    It is looked for in this order: a declared answer ("the answer is (B)", of which the last counts), an opening letter
    ("B. because"), the only letter in brackets, an answer that is an option's text.
    """
    letters = LETTERS[: len(choices)]
    for pattern in _DECLARED:
        declared: list[str] = [found.upper() for found in pattern.findall(answer) if found.upper() in letters]
        if declared:
            return declared[-1]
    opening = _OPENING.match(answer)
    # "A dog barks" opens with an article, not with an option.
    if opening and opening[1] in letters and not re.match(r"[\s*_(]*[AI]\s+[a-z]", answer):
        return str(opening[1])
    enclosed: set[str] = {found for found in _ENCLOSED.findall(answer) if found in letters}
    if len(enclosed) == 1:
        return enclosed.pop()
    said = normalised(_DECLARING.split(answer)[-1])
    same = [letter for letter, choice in zip(letters, choices, strict=True) if normalised(choice) == said]
    return same[0] if len(same) == 1 else None


def last_number(text: str) -> Fraction | None:
    """The exact last number of a text, such as 1,234.5, 3/4, 1e3 or -2; None where there is none."""
    for found in reversed(_NUMBER.findall(text)):
        plain = found.replace(",", "").replace("−", "-").lower()
        _, _, exponent = plain.partition("e")
        try:
            if exponent and abs(int(exponent)) > _MAX_EXPONENT:
                continue
            return Fraction(plain)
        except (ValueError, ZeroDivisionError):
            continue
    return None
