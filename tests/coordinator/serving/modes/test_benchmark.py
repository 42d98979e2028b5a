"""Tests of `benchmarks.modes`: what it asks of a fleet, by what the fleet can do."""

from __future__ import annotations

import pytest

from benchmarks.modes import TASKS, shares_a_vocabulary, ways
from tests.coordinator.experts import expert_report
from tests.coordinator.receipts import agent_row, status

KEYS = {"one": "agent-1/one", "two": "agent-2/two"}


@pytest.mark.parametrize(
    ("vocabularies", "can_mix"),
    [(("v", "v"), True), (("v", "w"), False), ((None, None), False), (("v", None), False), ((), False)],
)
def test_a_mix_needs_two_with_one_vocabulary(vocabularies: tuple[str | None, ...], can_mix: bool) -> None:
    """Vocabularies that differ, or that nobody has told, are not shared."""
    rows = [agent_row(experts=(expert_report(f"m{n}", vocabulary_sha256=v),)) for n, v in enumerate(vocabularies)]
    assert shares_a_vocabulary(status(*rows)) is can_mix


def test_a_mix_that_is_impossible_is_left_out() -> None:
    """Everything else is asked all the same."""
    full, without = ways(KEYS), ways(KEYS, can_mix=False)
    assert any(way.name == "mix" for way in full)
    assert [(way.task, way.name) for way in without] == [(way.task, way.name) for way in full if way.name != "mix"]


def test_one_task_alone_can_be_asked() -> None:
    """The ways of the other task are left out."""
    for task in TASKS:
        assert {way.task for way in ways(KEYS, tasks=(task,))} == {task}


def test_every_mode_that_writes_is_asked_the_open_questions() -> None:
    """Each expert alone, and the fleet in each mode in which experts write."""
    names = {way.name for way in ways(KEYS, tasks=("open",))}
    assert names == {"one alone", "two alone", "route", "rank", "consensus", "mix"}
