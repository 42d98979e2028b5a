"""Question sets, and which answers count as right."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.errors import Moe2Error
from moe2.coordinator.answers.normal_form import last_number
from moe2.coordinator.training.collect.questions import Metric, read_questions, said, score

PETS = ("a cat", "a dog", "a bird", "none of these")
GOOD = {"id": "q1", "prompt": "What is 2 + 2?", "gold": "4", "metric": "numeric"}
CHOICE = {"id": "q2", "prompt": "Which barks?", "gold": "a dog", "metric": "choice", "choices": ["a cat", "a dog"]}


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


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_options_are_shown_to_the_experts(tmp_path: Path) -> None:
    """Options are appended to a prompt that does not show them, and a gold text becomes its letter."""
    shown = {**CHOICE, "id": "q3", "prompt": "Which barks?\n(A) a cat\n(B) a dog", "gold": "(b)"}
    plain, own = read_questions(written(tmp_path / "q.jsonl", CHOICE, shown))
    assert plain.asked == own.asked == "Which barks?\n(A) a cat\n(B) a dog"
    assert (plain.gold, own.gold) == ("B", "B")


def test_labels_are_carried_over(tmp_path: Path) -> None:
    """The labels that an outcomes file has are carried over."""
    row = {**GOOD, "split": "val", "benchmark": "sums", "other": 1}
    (question,) = read_questions(written(tmp_path / "q.jsonl", row))
    assert question.labels == (("split", "val"), ("benchmark", "sums"))


def test_parquet_is_read_as_well(tmp_path: Path) -> None:
    """A Parquet file with columns that are empty for some metrics is read."""
    table = pa.Table.from_pylist([{**GOOD, "choices": None}, CHOICE])
    pq.write_table(table, tmp_path / "q.parquet")
    first, second = read_questions(tmp_path / "q.parquet")
    assert (first.gold, second.gold) == ("4", "B")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "bleu"}, "column 'metric': 'bleu' is none of"),
        ({"prompt": " "}, "column 'prompt'"),
        ({"prompt": None}, "column 'prompt': it is empty"),
        ({"gold": None}, "column 'gold': it is empty"),
        ({"gold": "many"}, "column 'gold': 'many' holds no number"),
        ({"gold": ["4"]}, "column 'gold'"),
        ({"split": "dev"}, "column 'split': 'dev' is none of train, val, test"),
        ({"metric": "choice"}, "column 'choices': metric choice needs a list"),
        ({"metric": "choice", "choices": ["4"]}, "column 'choices': 1 options"),
        ({"metric": "choice", "choices": ["5", "6"]}, "column 'gold': '4' is neither a letter from A to B"),
        ({"id": "q2"}, "column 'id': 'q2' was already used in line 1"),
        ({"id": 1.5}, "column 'id'"),
    ],
)
def test_a_fault_names_line_and_column(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """An error names the line, the column and what is wrong there."""
    with pytest.raises(Moe2Error) as raised:
        read_questions(written(tmp_path / "q.jsonl", CHOICE, {**GOOD, **change}))
    assert ", line 2, " in raised.value.message
    assert told in raised.value.message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("q.jsonl", '{"id": "a"\n', "line 1: not JSON"),
        ("q.jsonl", "", "no column"),
        ("q.jsonl", '{"id": "a", "prompt": "b"}\n', "no column 'gold', 'metric'"),
        ("q.txt", "", "neither .parquet nor .jsonl"),
        ("q.parquet", "junk", "not a readable Parquet file"),
    ],
)
def test_a_file_that_is_no_question_set_is_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    """A file that is no question set is refused with the reason."""
    (tmp_path / name).write_text(content)
    with pytest.raises(Moe2Error, match=told):
        read_questions(tmp_path / name)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    """A file that does not exist is refused with its name."""
    with pytest.raises(Moe2Error, match=r"no question file .*nowhere"):
        read_questions(tmp_path / "nowhere.jsonl")
