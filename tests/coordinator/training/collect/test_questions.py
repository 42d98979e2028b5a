"""Tests of reading question sets, good ones and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe2.common.errors import Moe2Error
from moe2.coordinator.training.collect.questions import read_questions

GOOD = {"id": "q1", "prompt": "What is 2 + 2?", "gold": "4", "metric": "numeric"}
CHOICE = {"id": "q2", "prompt": "Which barks?", "gold": "a dog", "metric": "choice", "choices": ["a cat", "a dog"]}


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
