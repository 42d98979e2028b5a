"""Average budgets on recorded outcomes: the pacer's figures against limits of each request."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.training.evaluate.averages import Case, average_figures, day_figures, targets
from moe2.coordinator.training.evaluate.profiles import Costs
from moe2.coordinator.training.evaluate.report import AverageFigures

# A thousand requests in each of many orders, for each target.
pytestmark = pytest.mark.slow

ROWS = 400


def case(joules: tuple[float, ...], *, noise: float = 0.2) -> Case:
    """Prompts whose experts answer well with probabilities that differ from prompt to prompt, and are known."""
    random = np.random.default_rng(0)
    means = np.linspace(0.4, 0.7, len(joules))
    probabilities = np.clip(random.normal(means, 0.15, (ROWS, len(joules))), 0.02, 0.98)
    scores = (random.uniform(size=probabilities.shape) < probabilities).astype(float)
    predicted = np.array(joules) * random.uniform(0.8, 1.2, (ROWS, 1))
    actual = predicted * random.lognormal(-(noise**2) / 2, noise, predicted.shape)
    seconds = predicted / 10
    return Case(probabilities, scores, Costs(predicted, seconds, actual, seconds, 1.0))


def figures(found: Case) -> tuple[AverageFigures, ...]:
    return average_figures(found, np.full(found.scores.shape, 0.5))


@pytest.fixture(scope="module")
def unlike() -> tuple[AverageFigures, ...]:
    """The figures where hosts cost up to three times as much as others."""
    return figures(case((100.0, 200.0, 300.0)))


def test_a_thousand_requests_take_the_target(unlike: tuple[AverageFigures, ...]) -> None:
    """The mean of every target is within one percent, whatever the order."""
    assert len(unlike) >= 5
    for row in unlike:
        assert row.furthest_mean_j == pytest.approx(row.target_j, rel=0.01)


def test_a_price_beats_the_best_limit(unlike: tuple[AverageFigures, ...]) -> None:
    """Where hosts cost differently, one price for all gains much over a limit for each; nowhere does it lose."""
    assert max(row.gain_points for row in unlike) > 4.0
    for row in unlike:
        assert row.gain_points > -row.gain_se
        assert row.gain_points == pytest.approx(100 * (row.score - row.cap_score))
        assert row.cap_mean_j <= max(row.target_j, row.mean_j)


def test_hosts_that_cost_alike_keep_their_average_too() -> None:
    """Where little can be saved the mean holds all the same, and no limit is better beyond the error."""
    for row in figures(case((95.0, 100.0, 105.0), noise=0.0)):
        assert row.mean_j == pytest.approx(row.target_j, rel=0.01)
        assert row.gain_points > -row.gain_se


def test_targets_lie_between_the_cheapest_and_the_best() -> None:
    """A target below what the cheapest experts take could not be kept, one above the best asks for nothing."""
    found = case((100.0, 200.0, 300.0))
    least, most = found.costs.actual_energy_j.min(axis=1).mean(), found.costs.actual_energy_j.max(axis=1).mean()
    assert all(least < target < most for target in targets(found))


def test_an_expert_that_was_not_run_is_not_chosen() -> None:
    """Answers that nobody has recorded count neither as joules nor as scores."""
    found = case((100.0, 200.0, 300.0))
    scores = found.scores.copy()
    scores[:, 0] = np.nan
    for row in figures(Case(found.probabilities, scores, found.costs)):
        assert row.mean_j > 190.0


def test_a_single_expert_has_one_target() -> None:
    """Where there is nothing to choose, the report still has figures, and no gain."""
    (row,) = figures(case((100.0,)))
    assert row.gain_points == pytest.approx(0.0)


def test_a_paced_day_refuses_next_to_nobody() -> None:
    """From its second day on a paced limit answers nearly all and scores higher than one spent until it is gone."""
    found = day_figures(case((100.0, 200.0, 300.0)), 180.0)
    assert found.refused < 0.05 < 0.2 < found.unpaced_refused
    assert found.score > found.unpaced_score + 0.05


def test_a_loose_day_is_no_different() -> None:
    """Where the limit has room for the best expert each time, pacing changes nothing."""
    found = day_figures(case((100.0, 200.0, 300.0)), 500.0)
    assert found.refused == found.unpaced_refused == 0.0
    assert found.score == pytest.approx(found.unpaced_score)


def test_targets_are_below_what_is_taken_without_an_average() -> None:
    """Where a dear expert is better by less than a tie, free choice leaves it alone, and no target asks for more."""
    found = case((100.0, 200.0, 300.0))
    probabilities = np.tile([0.5, 0.7, 0.703], (ROWS, 1))
    alike = Case(probabilities, found.scores, found.costs)
    assert max(targets(alike)) < found.costs.actual_energy_j[:, 1].mean()
