"""Tests of what tuning is predicted to take, of its limits, and of the comparison that it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe2.common.errors import Moe2Error
from moe2.coordinator.cli.tune import usual_questions
from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.training.collect.outfile import Answered, ScoredChoices
from moe2.coordinator.training.collect.questions import Metric, Question, read_questions
from moe2.coordinator.training.collect.survey import Report
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.tuning import (
    FOLDS,
    ExpertLoad,
    Limits,
    Prediction,
    believed_scores,
    check_questions,
    compared,
    costs_of,
    folds_of,
    predicted,
    tied_scores,
)
from tests.coordinator.training.outcome_tables import KINDS, synthetic_outcomes
from tests.fakes.gates import MadeGate, random_gate

NAN = float("nan")


def answer(joules: float | None, scoring_j: float | None = None, *, scored: bool = False) -> Answered:
    by_scoring = ScoredChoices(score=1.0, seconds=1.0, joules=scoring_j) if scored else None
    return Answered(
        model="m",
        score=1.0,
        chars=1,
        tokens=1,
        seconds=3.0,
        joules=joules,
        energy_quality=None,
        by_scoring=by_scoring,
    )


def test_agents_work_side_by_side() -> None:
    """The slowest agent's requests, one after the other, are what the whole takes; joules add up."""
    loads = [ExpertLoad("a", 100, 2.0, 1.0), ExpertLoad("b", 100, 5.0, 3.0)]
    assert predicted(loads, concurrency=4) == Prediction(200, 700.0, 300.0, 0)


def test_few_requests_at_a_time_take_longer() -> None:
    """With one request at a time nothing overlaps."""
    loads = [ExpertLoad("a", 100, 2.0, 1.0), ExpertLoad("b", 100, 5.0, 3.0)]
    assert predicted(loads, concurrency=1).seconds == 400.0


def test_unknown_costs_are_unknown() -> None:
    """Unmeasured joules are counted apart, and one unknown time makes the whole time unknown."""
    loads = [ExpertLoad("a", 10, None, 1.0), ExpertLoad("b", 10, 5.0, None)]
    assert predicted(loads, 4) == Prediction(20, 50.0, None, 10)
    assert predicted([ExpertLoad("a", 10, None, None)], 4).joules is None


def test_nothing_left_takes_nothing() -> None:
    """A complete file costs 0 joules, which is known."""
    assert predicted([ExpertLoad("a", 0, None, None)], 4) == Prediction(0, 0, None, 0)


def test_costs_are_means_over_requests() -> None:
    """A question that was asked in two ways is two requests."""
    joules, seconds = costs_of([answer(6.0, 2.0, scored=True), answer(4.0)])
    assert joules == 4.0
    assert seconds == pytest.approx(7 / 3)


def test_one_unmeasured_answer_makes_the_mean_unknown() -> None:
    """Joules that some answers lack are not made up from the others."""
    assert costs_of([answer(6.0), answer(None)])[0] is None
    assert costs_of([]) == (None, None)


@pytest.mark.parametrize(("learn", "val"), [(25, 9), (24, 13), (48, 12), (0, 0)])
def test_questions_of_which_no_gate_could_come_are_refused_before_anybody_is_asked(learn: int, val: int) -> None:
    """Also while a fifth is held out for the comparison; the sentence says how many there are of each."""

    def questions(learn: int, val: int) -> list[Question]:
        splits = ["train"] * learn + ["val"] * val
        return [
            Question(str(n), "1 + 1?", "2", Metric.NUMERIC, (), (("split", split),)) for n, split in enumerate(splits)
        ]

    with pytest.raises(Moe2Error, match=f"Here are {learn} and {val}"):
        check_questions(questions(learn, val))
    check_questions(questions(max(learn, 25), max(val, 13)))


def test_the_questions_that_come_with_moe2_are_enough() -> None:
    """By the splits of their ids."""
    check_questions(read_questions(usual_questions()))


@pytest.mark.parametrize(
    ("limits", "report", "elapsed_s", "told"),
    [
        (Limits(), Report(joules=1e9), 1e9, None),
        (Limits(max_j=100.0), Report(joules=60.0, asking=1, dearest_j=10.0), 0.0, None),
        (Limits(max_j=100.0), Report(joules=60.0, asking=2, dearest_j=10.0), 0.0, "100 J"),
        (Limits(max_j=100.0), Report(joules=60.0, asking=1, dearest_j=9.0), 0.0, None),
        (Limits(max_j=100.0, expected_j=11.0), Report(joules=60.0, asking=1, dearest_j=9.0), 0.0, "100 J"),
        (Limits(max_j=100.0, spent_j=25.0), Report(joules=60.0, asking=0, dearest_j=10.0), 0.0, "100 J"),
        (Limits(max_j=5.0, expected_j=10.0), Report(), 0.0, "5 J"),
        (Limits(max_j=100.0), Report(unmeasured=1), 0.0, "--max-minutes"),
        (Limits(max_s=60.0), Report(unmeasured=1), 59.0, None),
        (Limits(max_s=60.0), Report(), 60.0, "1 minute is"),
    ],
)
def test_limits_count_what_is_under_way(limits: Limits, report: Report, elapsed_s: float, told: str | None) -> None:
    """The next answer is asked for only if it and all that are being asked fit at twice the dearest one known."""
    why = limits.reached(report, elapsed_s)
    assert (why is None) if told is None else (why is not None and told in why)


def test_every_fold_has_every_kind_and_split() -> None:
    """Holding out a fold leaves rows of each kind to train and to validate on."""
    outcomes = synthetic_outcomes(300)
    folds = folds_of(outcomes)
    for fold in range(FOLDS):
        held = outcomes.take(np.flatnonzero(folds == fold))
        assert set(held.tasks) == set(outcomes.tasks)
        assert set(held.splits) == set(outcomes.splits)


def test_ties_before_count_as_their_mean() -> None:
    """Models that the coordinator believed in alike are chosen by load, so their mean score is what was to be had."""
    scores = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, NAN], [NAN, NAN, NAN]])
    believed = np.array([[0.5, 0.5, 0.2], [0.1, 0.2, 0.9], [0.1, 0.1, 0.1]])
    assert tied_scores(believed, scores) == pytest.approx([0.5, 0.0, NAN], nan_ok=True)


def test_what_the_coordinator_did_not_say_is_unknown() -> None:
    """A model that has left the fleet has no score before."""
    outcomes = synthetic_outcomes(2, experts=2)
    found = believed_scores(outcomes, [{"expert-0": 0.4, "other": 0.9}, {}])
    assert found == pytest.approx(np.array([[0.4, NAN], [NAN, NAN]]), nan_ok=True)


def test_each_row_is_judged_by_a_gate_that_has_not_seen_it(made: MadeGate) -> None:
    """The rows that a gate is fitted on never hold the row that it is compared on."""
    outcomes = synthetic_outcomes(100)
    fitted: list[Outcomes] = []

    def fit(rows: Outcomes) -> Gate:
        fitted.append(rows)
        return made.gate

    done: list[int] = []
    found = compared(outcomes, np.full(outcomes.scores.shape, 0.5), fit, done.append)
    assert done == list(range(1, FOLDS + 1))
    assert sum(len(outcomes) - len(rows) for rows in fitted) == len(outcomes)
    assert set(outcomes.ids) == set().union(*(set(outcomes.ids) - set(rows.ids) for rows in fitted))
    assert found.over_before.rows == len(outcomes)
    assert found.by_kind.shape == (3, 3)


@pytest.mark.parametrize(("learned", "trainings"), [(2, 2), (3, 1)])
def test_a_gate_that_has_learned_from_the_rows_is_judged_as_one_that_has_not(learned: int, trainings: int) -> None:
    """What the running gate says of answers that it has learned is right by heart, and no measure for another one."""
    outcomes = synthetic_outcomes(100)
    fitted: list[Outcomes] = []

    def fit(rows: Outcomes) -> Gate:
        fitted.append(rows)
        return random_gate(rows.experts, KINDS, FeatureConfig(bucket_bits=4)).gate

    by_heart = outcomes.scores.copy()
    honest = compared(outcomes, by_heart, fit, lambda _: None, learned=outcomes.experts[:learned])
    assert len(fitted) == trainings * FOLDS
    assert {rows.experts for rows in fitted} == {outcomes.experts, outcomes.experts[:learned]}
    assert honest.over_before.other < compared(outcomes, by_heart, fit, lambda _: None).over_before.other
    assert by_heart == pytest.approx(outcomes.scores, nan_ok=True)
    if learned == len(outcomes.experts):
        assert honest.over_before.gain == pytest.approx(0.0)


def test_behind_either_is_behind(made: MadeGate) -> None:
    """A gate that is clearly behind what was chosen before is not better for beating the best single model."""
    outcomes = synthetic_outcomes(100)
    outcomes = replace(outcomes, scores=np.tile([0.2, 0.3, 0.4], (100, 1)) + np.linspace(0, 0.1, 100)[:, None])
    before = np.tile([0.0, 0.0, 1.0], (100, 1))
    found = compared(outcomes, before, lambda _: made.gate, lambda _: None)
    assert found.is_clearly_behind == (found.over_before.gain < -1e-9)
