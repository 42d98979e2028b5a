"""Tests of reading outcomes, good ones and bad ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe2.coordinator.training.outcomes import OutcomesError, outcomes_from_columns, read_outcomes, split_of

GOOD = {"id": "a", "prompt": "2 + 2?", "split": "train", "source": "s", "benchmark": "b", "domain": "d"}


def jsonl(path: Path, *rows: object) -> Path:
    file = path / "outcomes.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_json_lines_are_read(tmp_path: Path) -> None:
    """Scores, losses and unknowns come out as they went in."""
    table = read_outcomes(
        jsonl(
            tmp_path,
            {**GOOD, "score__x": 1, "loss__y": math.log(2), "chars__x": 10},
            {**GOOD, "id": "b", "score__x": None, "split": "test"},
        )
    )
    assert table.experts == ("x", "y")
    assert table.scores[0] == pytest.approx([1.0, 0.5])
    assert np.isnan(table.scores[1]).all()
    assert table.chars[0, 0] == 10
    assert table.tasks == ("b/d", "b/d")
    assert table.splits == ("train", "test")
    assert len(table.digest) == 64


def test_scores_by_scoring_options_are_read(tmp_path: Path) -> None:
    """They are a table beside the scores by writing, and stay with their rows and experts."""
    rows = [{**GOOD, "score__x": 1, "score__y": 0, "scoring__y": 1}, {**GOOD, "id": "b", "score__x": 0, "score__y": 0}]
    table = read_outcomes(jsonl(tmp_path, *rows))
    assert table.by_scoring == pytest.approx(np.array([[np.nan, 1], [np.nan, np.nan]]), nan_ok=True)
    part = table.with_experts(["y"]).take([0])
    assert part.by_scoring == pytest.approx(np.array([[1.0]]))
    with pytest.raises(OutcomesError, match="scoring__y"):
        read_outcomes(jsonl(tmp_path, {**GOOD, "score__y": 0, "scoring__y": 2}))


def test_nested_scores_are_read(tmp_path: Path) -> None:
    """A JSON line may hold all scores in one object."""
    table = read_outcomes(jsonl(tmp_path, {"prompt": "p", "scores": {"x": 0.25, "y": None}}))
    assert table.experts == ("x", "y")
    assert table.scores[0, 0] == 0.25
    assert np.isnan(table.scores[0, 1])


def test_parquet_gives_the_same_as_json_lines(tmp_path: Path) -> None:
    """Both formats hold the same table; an empty Parquet cell is unknown."""
    rows = [{**GOOD, "score__x": 1.0, "score__y": None}, {**GOOD, "id": "b", "score__x": 0.5, "score__y": 0.0}]
    file = tmp_path / "outcomes.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    one, other = read_outcomes(file), read_outcomes(jsonl(tmp_path, *rows))
    assert one.ids == other.ids
    assert np.array_equal(one.scores, other.scores, equal_nan=True)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{broken", "line 2: not JSON"),
        ('{"id": "b", "prompt": "q", "score__x"', "line 2: not JSON"),
        ('{"id": "b", "prompt": "q", "score__x": 1e999}', "line 2: not JSON"),
        ('{"id": "b", "prompt": "q", "score__x": NaN}', "JSON has no NaN"),
        ("[1]", "line 2: a row must be an object"),
        ("", "line 2: not JSON"),
        ({**GOOD, "id": "b", "score__x": "high"}, "line 2, column 'score__x': 'high' is not a number"),
        ({**GOOD, "id": "b", "score__x": 1.5}, "line 2, column 'score__x': 1.5 is not within 0..1"),
        ({**GOOD, "id": "b", "loss__y": -1}, "line 2, column 'loss__y': -1 is not at least 0"),
        ({**GOOD, "id": "b", "prompt": None}, "line 2, column 'prompt': it is empty"),
        ({**GOOD, "id": "b", "prompt": " "}, "line 2, column 'prompt': it is empty"),
        ({**GOOD, "id": "b", "prompt": 7}, "line 2, column 'prompt': 7 is not text"),
        ({**GOOD, "id": "a", "score__x": 1}, "line 2, column 'id': 'a' was already used in line 1"),
        ({**GOOD, "id": "b", "split": "dev"}, "line 2, column 'split': 'dev' is none of train, val, test"),
        ({**GOOD, "id": "b", "domain": 3}, "line 2, column 'domain': 3 is not text"),
        ({**GOOD, "id": "b", "scores": 3}, "line 2, column 'scores'"),
        ({**GOOD, "id": "b", "score__x": 1, "scores": {"x": 1}}, "line 2, column 'scores': x is given twice"),
    ],
)
def test_faults_name_line_and_column(tmp_path: Path, row: object, told: str) -> None:
    """Each kind of fault is refused with the line and the column it is in."""
    with pytest.raises(OutcomesError) as caught:
        read_outcomes(jsonl(tmp_path, {**GOOD, "score__x": 1, "loss__y": 0}, row))
    assert told in str(caught.value)


def test_nan_scores_are_refused_with_row_and_column(tmp_path: Path) -> None:
    """NaN is not "unknown": a computation went wrong upstream."""
    file = tmp_path / "outcomes.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "score__x": [1.0, float("nan")]}), file)
    with pytest.raises(OutcomesError, match=r"row 2, column 'score__x': nan is not a finite number"):
        read_outcomes(file)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    """A file that is no Parquet gives a clear error."""
    file = tmp_path / "outcomes.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(OutcomesError, match="not a readable Parquet file"):
        read_outcomes(file)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"score__x": [1.0]}, "no column 'prompt'"),
        ({"prompt": []}, "no rows"),
        ({"prompt": ["p"]}, "no column 'score__NAME'"),
        ({"prompt": ["p"], "score__x": [1.0], "loss__x": [0.1]}, "both a score and a loss of x"),
        ({"prompt": ["p"], "score__": [1.0]}, "an expert without a name"),
    ],
)
def test_missing_columns_are_named(columns: dict[str, list[object]], told: str) -> None:
    """A table without what is needed says what is missing."""
    with pytest.raises(OutcomesError, match=told):
        outcomes_from_columns(dict(columns), place="file")


def test_missing_files_and_other_formats_are_refused(tmp_path: Path) -> None:
    """No file, or a format that is not read, is a clear error."""
    with pytest.raises(OutcomesError, match="no outcomes file"):
        read_outcomes(tmp_path / "none.parquet")
    (tmp_path / "table.csv").write_text("prompt")
    with pytest.raises(OutcomesError, match="neither"):
        read_outcomes(tmp_path / "table.csv")


def test_rows_without_split_are_split_by_their_id() -> None:
    """The split depends on the id alone and comes near 80/10/10."""
    splits = [split_of(f"row-{n}") for n in range(5000)]
    assert splits.count("train") / 5000 == pytest.approx(0.8, abs=0.03)
    assert splits.count("test") / 5000 == pytest.approx(0.1, abs=0.03)


def test_unknown_experts_and_sources_are_refused() -> None:
    """Choosing what is not there names what is."""
    table = outcomes_from_columns({"prompt": ["p"], "score__x": [1.0], "source": ["s"]}, place="file")
    with pytest.raises(OutcomesError, match="They hold: x"):
        table.with_experts(["z"])
    with pytest.raises(OutcomesError, match="Sources: s"):
        table.from_source("t")
    with pytest.raises(OutcomesError, match="twice"):
        table.with_experts(["x", "x"])


def test_a_source_keeps_only_experts_that_were_run_there() -> None:
    """An expert without a single score on a source is not part of its pool."""
    table = outcomes_from_columns(
        {"prompt": ["p", "q"], "source": ["s", "t"], "score__x": [1.0, 0.0], "score__y": [None, 1.0]}, place="file"
    )
    assert table.from_source("s").experts == ("x",)
    assert table.from_source("t").experts == ("x", "y")
