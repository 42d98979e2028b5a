"""Tests of which answers count as right."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.answers.normal_form import last_number
from moe2.coordinator.training.collect.questions import Metric, said, score

PETS = ("a cat", "a dog", "a bird", "none of these")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) a dog", "B"),
        ("The answer is (C) because birds fly.", "C"),
        ("answer: d", "D"),
        ("I think A is wrong. Option B fits better. The answer is C", "C"),
        (r"so \boxed{B}", "B"),
        ("It barks, so it must be (B).", "B"),
        ("a dog", "B"),
        ("Dog!", "B"),
        ("A dog", "B"),
        ("A", "A"),
        ("The answer is a dog.", "B"),
        ("The answer is a horse.", None),
        ("It is (A) or (B)", None),
        ("E", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_the_letter_is_found_in_what_models_say(answer: str, letter: str | None) -> None:
    """A letter is found bare, in brackets, declared, or as the option's text."""
    assert said(Metric.CHOICE, answer, PETS) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", Fraction(42)),
        ("The total is $1,234.50.", Fraction("1234.5")),
        ("first 3, then 7 apples", Fraction(7)),
        ("-5 degrees", Fraction(-5)),
        ("−5", Fraction(-5)),
        ("10-20", Fraction(20)),
        ("3/4 of it", Fraction(3, 4)),
        ("1/0", None),
        (".5", Fraction(1, 2)),
        ("2e3", Fraction(2000)),
        ("1e999999999", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_read_exactly(text: str, number: Fraction | None) -> None:
    """The last number is exact with thousands, decimals, fractions and signs; other text is skipped."""
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("Paris", "paris", 1.0),
        (" The  Eiffel-Tower. ", "eiffel tower", 1.0),
        ("Paris, France", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_an_exact_match_ignores_only_form(answer: str, gold: str, right: float) -> None:
    """An exact match ignores case, punctuation, articles and space alone."""
    assert score(Metric.EXACT_MATCH, answer, gold) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Tokyo", 1.0),
        ("The capital of Japan is Tokyo.", 1.0),
        ("**Answer:** Tokyo, the largest city.", 1.0),
        ("Tokyo is the capital of Japan.", 1.0),
        ("The capital of Japan is Kyoto.", 0.0),
        ("The capital of Japan is not Tokyo.", 0.0),
        ("Tokyo or Kyoto", 0.0),
        ("Japan has many cities. Tokyo is one of them. Others are Osaka and Kyoto.", 0.0),
        ("", 0.0),
    ],
)
def test_a_short_text_may_stand_in_a_sentence(answer: str, right: float) -> None:
    """What a vote would count as the answer is compared, so that a model's manner costs it nothing."""
    assert score(Metric.SHORT_TEXT, answer, "tokyo", asked="What is the capital of Japan?") == right


def test_numbers_match_by_value() -> None:
    """Numbers match by value, so that 1,000.0 is 1000; an answer without a number is wrong."""
    assert score(Metric.NUMERIC, "It is 1,000.0 km", "1000") == 1.0
    assert score(Metric.NUMERIC, "It is 999 km", "1000") == 0.0
    assert score(Metric.NUMERIC, "far", "1000") == 0.0


@given(st.text(), st.sampled_from(list(Metric)))
def test_no_answer_breaks_scoring(answer: str, metric: Metric) -> None:
    """Any text that a model writes is scored as right or wrong."""
    gold = {"choice": "A", "numeric": "7", "exact_match": "x", "short_text": "x"}[metric]
    assert score(metric, answer, gold, PETS) in (0.0, 1.0)


@given(st.fractions())
def test_every_number_is_read_back(number: Fraction) -> None:
    """Every number is read back from Python's own notation."""
    assert last_number(f"so it is {number}") == number
