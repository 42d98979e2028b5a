"""Questions with their right answers, read from JSON lines or Parquet and checked, and the scores of answers to them.

Columns: `id` (unique), `prompt`, `gold`, `metric` (a `Metric`), `choices` (a list of options, for choice), and the
labels of an outcomes file: `split`, `source`, `benchmark`, `domain`, each optional. The gold of a choice is its letter
or its text.

A score is 1 for right and 0 for wrong, by one of four metrics. Small models wrap an answer in words, so each metric
looks for the part that counts (`moe2.coordinator.answers`): the whole answer without case, punctuation and articles,
the short answer within it, the letter of an option, or a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moe2.common.errors import Moe2Error
from moe2.coordinator.answers.extraction import extract
from moe2.coordinator.answers.form import LETTERS, AnswerForm, AnswerKind, form_of
from moe2.coordinator.answers.normal_form import last_number, normalised, number_key
from moe2.coordinator.training.outcomes import LABEL_COLUMNS, SPLITS, read_columns

REQUIRED = ("id", "prompt", "gold", "metric")


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


class QuestionsError(Moe2Error):
    """A question set cannot be used; the message names the file, the line (or row) and the column."""


@dataclass(frozen=True)
class Question:
    """One question with its right answer."""

    id: str
    asked: str
    """The prompt with its options, as experts and the gate read it."""
    gold: str
    """The right answer; of a choice its letter."""
    metric: Metric
    """How an answer is compared with `gold`."""
    choices: tuple[str, ...]
    """The options of a choice; else empty."""
    labels: tuple[tuple[str, str], ...]
    """Columns, as (name, value), that are carried over into the outcomes."""


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a question set from a .jsonl, .ndjson or .parquet file. Raises Moe2Error, which names line and column."""
    columns, unit = read_columns(path, "question")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise QuestionsError(
            f"{path} has no column {', '.join(map(repr, missing))}.",
            remedy=f"A question set has {', '.join(REQUIRED)}, and choices for metric choice.",
        )
    questions, seen = [], dict[str, int]()
    for row in range(len(columns["id"])):
        question = _Row(columns, row, f"{path}, {unit} {row + 1}").question()
        if question.id in seen:
            raise QuestionsError(
                f"{path}, {unit} {row + 1}, column 'id': {question.id!r} was already used in {unit} "
                f"{seen[question.id] + 1}."
            )
        seen[question.id] = row
        questions.append(question)
    if not questions:
        raise QuestionsError(f"{path} holds no questions.")
    return tuple(questions)


class _Row:
    """One row of raw columns that becomes a question; every error names the file, the row and the column."""

    def __init__(self, columns: dict[str, Sequence[object]], row: int, place: str) -> None:
        self._columns = columns
        self._row = row
        self._place = place

    def question(self) -> Question:
        prompt, metric = self._text("prompt"), self._metric()
        choices = self._choices() if metric is Metric.CHOICE else ()
        return Question(
            id=self._text("id"),
            asked="\n".join((prompt, *_options(prompt, choices))),
            gold=self._gold(metric, choices),
            metric=metric,
            choices=choices,
            labels=self._labels(),
        )

    def _value(self, column: str) -> object:
        return self._columns[column][self._row] if column in self._columns else None

    def _fault(self, column: str, what: str) -> QuestionsError:
        return QuestionsError(f"{self._place}, column {column!r}: {what}.")

    def _text(self, column: str) -> str:
        value = self._value(column)
        if isinstance(value, int) and not isinstance(value, bool) and column == "id":
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self._fault(column, "it is empty" if value in (None, "") else f"{value!r} is not text")
        if "\0" in value:
            raise self._fault(column, "it contains a NUL character")
        return value

    def _metric(self) -> Metric:
        value = self._value("metric")
        if value not in tuple(Metric):
            raise self._fault("metric", f"{value!r} is none of {', '.join(Metric)}")
        return Metric(str(value))

    def _choices(self) -> tuple[str, ...]:
        value = self._value("choices")
        if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
            raise self._fault("choices", "metric choice needs a list of texts")
        if not 2 <= len(value) <= len(LETTERS):
            raise self._fault("choices", f"{len(value)} options; 2 to {len(LETTERS)} are possible")
        return tuple(value)

    def _gold(self, metric: Metric, choices: tuple[str, ...]) -> str:
        value = self._value("gold")
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = repr(value)
        if not isinstance(value, str) or not value.strip():
            raise self._fault("gold", "it is empty" if value in (None, "") else f"{value!r} is not text")
        if metric is Metric.NUMERIC and last_number(value) is None:
            raise self._fault("gold", f"{value!r} holds no number")
        if metric is Metric.SHORT_TEXT and said(metric, value) is None:
            raise self._fault("gold", f"{value!r} holds no short answer")
        if metric is not Metric.CHOICE:
            return value
        letters = LETTERS[: len(choices)]
        bare = value.strip().strip("().").upper()
        if len(bare) == 1 and bare in letters:
            return bare
        if choices.count(value) == 1:
            return letters[choices.index(value)]
        raise self._fault("gold", f"{value!r} is neither a letter from A to {letters[-1]} nor one of the choices")

    def _labels(self) -> tuple[tuple[str, str], ...]:
        labels = []
        for column in ("split", *LABEL_COLUMNS):
            value = self._value(column)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self._fault(column, f"{value!r} is not text")
            if column == "split" and value not in SPLITS:
                raise self._fault(column, f"{value!r} is none of {', '.join(SPLITS)}")
            labels.append((column, value))
        return tuple(labels)


def _options(prompt: str, choices: tuple[str, ...]) -> list[str]:
    """The lines of options to add to a prompt; none where the prompt shows them all itself."""
    lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return [] if all(line in prompt for line in lines) else lines
