"""What steps take, by the number of tokens in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.speculation.costs import StepCosts


def test_before_any_step_costs_are_those_of_the_warm_up() -> None:
    """One token as in decoding, further ones as in prefill."""
    costs = StepCosts(step_s=0.1, token_s=0.02)
    assert costs.of(1) == pytest.approx(0.1)
    assert costs.of(5) == pytest.approx(0.18)
    assert costs.of(64) == pytest.approx(0.1 + 63 * 0.02)
    assert costs.of(100) == pytest.approx(0.1 + 99 * 0.02)


def test_costs_follow_what_steps_take() -> None:
    """Whatever was assumed at first, sizes that are seen are known after some dozen steps."""
    costs = StepCosts(step_s=0.1, token_s=0.001)
    for _ in range(60):
        costs.learn(1, 0.1)
        costs.learn(8, 0.35)
    assert costs.of(1) == pytest.approx(0.1, rel=0.05)
    assert costs.of(8) == pytest.approx(0.35, rel=0.05)


def test_a_slower_model_is_slower_at_all_sizes() -> None:
    """As a conversation grows each step takes longer: sizes that were not seen meanwhile are not taken for cheap."""
    costs = StepCosts(step_s=0.1, token_s=0.02)
    for _ in range(40):
        costs.learn(5, 0.36)
    assert costs.of(1) > 0.12
    assert costs.of(5) == pytest.approx(0.36, rel=0.1)


def test_a_batch_that_is_dearer_than_assumed_says_little_of_one_that_was_measured() -> None:
    """That a step without guesses looks dear beside it would be taken for a gain of the guesses."""
    costs = StepCosts(step_s=0.1, token_s=0.02, measured_s={1: 0.1, 8: 0.24, 32: 0.72})
    costs.learn(1, 0.1)
    for _ in range(10):
        costs.learn(8, 0.5)
    assert costs.of(8) == pytest.approx(0.5, rel=0.05)
    assert costs.of(1) == pytest.approx(0.1, rel=0.15)
    assert costs.of(12) / costs.of(1) > 1.5 * 0.32 / 0.1


def test_a_ratio_is_known_better_the_more_was_measured() -> None:
    """It is doubtful at first, less so where it was measured at load or in steps, and again after a long time; a
    cautious guess takes the doubt for a cost."""
    nothing = StepCosts(step_s=0.1, token_s=0.02)
    costs = StepCosts(step_s=0.1, token_s=0.02, measured_s={1: 0.1, 8: 0.24, 32: 0.72})
    doubts = [nothing.doubt(8, 1), costs.doubt(8, 1)]
    assert costs.cautious(1)(8) > 1.1 * costs.of(8)
    assert costs.cautious(1)(1) == pytest.approx(costs.of(1))
    assert costs.cautious(64)(100) == pytest.approx(costs.of(100), rel=0.2)
    for _ in range(10):
        costs.learn(1, 0.1)
        costs.learn(8, 0.24)
    doubts.append(costs.doubt(8, 1))
    assert doubts == sorted(doubts, reverse=True)
    for _ in range(500):
        costs.learn(1, 0.1)
    assert costs.doubt(8, 1) > 2 * doubts[-1]


def test_one_step_that_was_held_up_changes_little() -> None:
    """A step may take a hundred times as long because of another process."""
    costs = StepCosts(step_s=0.1, token_s=0.02)
    costs.learn(1, 10.0)
    assert costs.of(1) < 0.13


def test_more_tokens_may_take_less() -> None:
    """As 8 tokens take less than 6 with some quantizations."""
    costs = StepCosts(step_s=0.1, token_s=0.05)
    for _ in range(60):
        for tokens, seconds in ((1, 0.1), (6, 0.45), (8, 0.38)):
            costs.learn(tokens, seconds)
    assert costs.of(8) < costs.of(6)


def test_one_token_more_than_a_multiple_of_four_may_be_much_dearer() -> None:
    """As where weights take four rows at a time. A guess in a full batch of eight is the ninth token."""
    costs = StepCosts(step_s=0.1, token_s=0.02, measured_s={1: 0.1, 8: 0.226, 12: 0.307})
    for _ in range(60):
        for tokens, seconds in ((8, 0.226), (9, 0.287), (12, 0.307)):
            costs.learn(tokens, seconds)
    assert [costs.of(tokens) for tokens in (8, 9, 12)] == pytest.approx([0.226, 0.287, 0.307], rel=0.02)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(-1, 200), st.floats(-1, 10)), max_size=100))
def test_costs_are_positive(steps: list[tuple[int, float]]) -> None:
    """Whatever was measured."""
    costs = StepCosts(step_s=0.1, token_s=0.01)
    for tokens, seconds in steps:
        costs.learn(tokens, seconds)
    seconds_by_size = [costs.of(tokens) for tokens in range(1, 80)]
    assert min(seconds_by_size) > 0
