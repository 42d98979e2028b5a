"""Tests of the question set that comes with moe2: it can be read, and its answers are right."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from moe2.coordinator.answers.normal_form import last_number, normalised
from moe2.coordinator.cli.tune import usual_questions
from moe2.coordinator.training.collect.questions import Metric, read_questions, score

ROWS: list[dict[str, Any]] = [json.loads(line) for line in usual_questions().read_text().splitlines()]
QUESTIONS = read_questions(usual_questions())
COMPUTED = [row for row in ROWS if "check" in row or "program" in row]


def test_there_are_about_fifty_of_each_of_six_kinds() -> None:
    """Each kind has rows enough to train and to validate on."""
    counts = Counter(row["benchmark"] for row in ROWS)
    assert len(ROWS) == 300
    assert set(counts) == {"facts", "arithmetic", "reasoning", "code", "language", "instructions"}
    assert all(45 <= count <= 55 for count in counts.values())
    assert all(Counter(row["benchmark"] for row in ROWS if row["split"] == "val")[kind] >= 9 for kind in counts)


def test_the_first_questions_are_of_all_kinds() -> None:
    """Kinds take turns, so that a run which ends early has asked all of them."""
    assert len({row["benchmark"] for row in ROWS[:8]}) == 6


@pytest.mark.parametrize("row", COMPUTED, ids=lambda row: row["id"])
def test_a_computed_answer_is_right(row: dict[str, Any]) -> None:
    """The gold is what its expression or its program gives."""
    if "program" in row:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(row["program"], {})
        found = printed.getvalue().strip()
        assert row["program"] in row["prompt"]
    else:
        found = str(eval(row["check"]))
    if row["metric"] == "numeric":
        assert last_number(row["gold"]) == Fraction(found)
    else:
        assert row["gold"] == found


def test_most_numbers_are_computed() -> None:
    """Every numeric answer has its expression or program."""
    assert all("check" in row or "program" in row for row in ROWS if row["metric"] == "numeric")


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_the_right_answer_scores_and_another_does_not(question: Any) -> None:
    """The gold as an expert would write it scores 1, something else and nothing score 0."""
    wrong = "Q" if question.metric is not Metric.NUMERIC else "-987654"
    assert score(question.metric, question.gold, question.gold, question.choices, asked=question.asked) == 1.0
    assert score(question.metric, wrong, question.gold, question.choices, asked=question.asked) == 0.0
    assert score(question.metric, "", question.gold, question.choices, asked=question.asked) == 0.0


def test_an_exact_answer_is_more_than_an_article() -> None:
    """Articles, case and punctuation do not count, so a gold of these alone would be matched by nothing at all."""
    assert all(normalised(question.gold) for question in QUESTIONS if question.metric is Metric.EXACT_MATCH)


def test_right_options_are_spread_over_the_letters() -> None:
    """An expert that always says B gains nothing by it."""
    letters = Counter(question.gold for question in QUESTIONS if question.metric is Metric.CHOICE)
    assert max(letters.values()) < 0.4 * sum(letters.values())
