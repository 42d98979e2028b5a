"""Tests of what outcomes with answers teach about votes."""

from __future__ import annotations

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
