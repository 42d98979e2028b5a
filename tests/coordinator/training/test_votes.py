"""Tests of what outcomes with answers teach about votes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe2.coordinator.training.outcomes import outcomes_from_columns
from moe2.coordinator.training.votes import answer_codes, vote_record


def test_answers_are_read_with_their_gaps() -> None:
    """No answer differs from not being asked, and an expert without any answer counts as not asked."""
    columns: dict[str, list[object]] = {
        "prompt": ["a", "b", "c"],
        "score__one": [1.0, 0.0, None],
        "answer__one": ["x", None, None],
        "score__two": [0.0, 0.0, 0.0],
        "answer__two": ["Y.", "z", "y"],
        "score__three": [1.0, 1.0, 1.0],
    }
    table = outcomes_from_columns({name: tuple(values) for name, values in columns.items()}, place="here")
    codes = answer_codes(table)
    assert codes is not None
    assert {name: codes[:, n].tolist() for n, name in enumerate(table.experts)} == {
        "one": [0, -1, -2],
        "three": [-2, -2, -2],
        "two": [1, 1, 1],
    }
    assert vote_record(table, ("",), table.tasks, np.full((1, 3), 0.5)) is None


def test_answers_that_were_not_recorded_are_no_votes() -> None:
    """Who is right without an answer would vote for the right one, and who is wrong for none: as if an oracle voted."""
    columns: dict[str, list[object]] = {
        "prompt": ["a", "b", "c"],
        "score__one": [1.0, 0.0, 0.0],
        "answer__one": [None, None, None],
        "score__two": [0.0, 1.0, 0.0],
        "answer__two": [None, "x", None],
        "score__three": [0.0, 0.0, 0.0],
        "answer__three": ["y", "y", "y"],
    }
    table = outcomes_from_columns({name: tuple(values) for name, values in columns.items()}, place="here")
    codes = answer_codes(table.with_experts(["two", "three"]))
    assert codes is not None
    assert codes.tolist() == [[-1, 1], [0, 1], [-1, 1]]
    columns["answer__one"][2] = "z"
    told = answer_codes(outcomes_from_columns({name: tuple(values) for name, values in columns.items()}, place="here"))
    assert told is not None
    # Of one, two and three: in the first row one is right without an answer, and two has none.
    assert told[0].tolist() == [-2, 1, -2]


def test_the_record_has_lengths_relative_to_the_kinds_mean() -> None:
    """Unknown ones count as usual, an endless answer as twenty usual ones; without any there are none."""
    rows = 40
    columns: dict[str, list[object]] = {
        "prompt": [f"q{n}" for n in range(rows)],
        "split": ["train"] * rows,
        **{f"score__{name}": [1.0] * rows for name in ("one", "two")},
        **{f"answer__{name}": ["x"] * rows for name in ("one", "two")},
        "chars__one": [100.0, 300.0] * (rows // 2),
        "chars__two": [None] * (rows - 1) + [1e9],
    }
    table = outcomes_from_columns({name: tuple(values) for name, values in columns.items()}, place="here")
    found = vote_record(table, ("",), table.tasks, np.full((1, 2), 0.5))
    assert found is not None
    assert found.lengths is not None
    assert found.lengths[:2].tolist() == [[0.5, 1.0], [1.5, 1.0]]
    assert found.lengths[-1, 1] == 1.0
    chars = np.zeros((rows, 2))
    chars[0, 0] = 1e12
    odd = vote_record(replace(table, chars=chars), ("",), table.tasks, np.full((1, 2), 0.5))
    assert odd is not None
    assert odd.lengths is not None
    assert (odd.lengths[0, 0], odd.lengths[1, 0], odd.lengths[1, 1]) == (20.0, 0.0, 1.0)
    unknown = vote_record(replace(table, chars=np.full((rows, 2), np.nan)), ("",), table.tasks, np.full((1, 2), 0.5))
    assert unknown is not None
    assert unknown.lengths is None
