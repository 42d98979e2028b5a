"""What a request will take."""

from __future__ import annotations

import pytest

from moe2.common.cost import Quantiles, Spread
from moe2.common.messages import ExpertState
from moe2.coordinator.predict import ASSUMED_ANSWER_TOKENS, Demand, Prediction, estimate_prompt_tokens, predict
from moe2.coordinator.table import Expert
from tests.coordinator.experts import cost, expert, speed


def test_a_prediction_is_prefill_plus_decode() -> None:
    """From the expert's learned rates; the first token comes with the prefill."""
    predicted = predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 51), 0)
    assert predicted.ttft_s == Quantiles(0.5, 0.5)
    assert predicted.total_s == Quantiles(1.0, 1.0)


def test_quantiles_come_from_the_experts_own_spread() -> None:
    """p95 lies above p50 by what its requests were off."""
    spread = Spread(p50=0.0, p95=0.6931471805599453)
    predicted = predict(expert(latency=speed(1000.0, 100.0, spread=spread)), Demand(1000, 1), 0)
    assert predicted.ttft_s is not None
    assert (predicted.ttft_s.p50, predicted.ttft_s.p95) == pytest.approx((1.0, 2.0))


def test_a_request_without_a_slot_waits_for_those_before_it() -> None:
    """Slots fall free one by one, each after the mean time that a request holds it."""
    waits = [predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 1), n).ttft_s for n in range(4)]
    assert [wait.p50 for wait in waits if wait] == pytest.approx([0.5, 0.5, 1.0, 1.5])


def test_the_round_trip_is_part_of_every_time() -> None:
    """A host far away answers later."""
    near = expert(latency=speed(1000.0, 100.0))
    far = Expert(near.key, near.agent_id, near.agent_name, near.model, near.report, rtt_s=0.2)
    ttft_s = predict(far, Demand(500, 1), 0).ttft_s
    assert ttft_s is not None
    assert ttft_s.p50 == pytest.approx(0.7)


def test_a_cold_expert_is_loaded_first() -> None:
    """As long as the last loading took; where none was measured, nobody knows."""
    cold = expert(latency=speed(1000.0, 100.0), state=ExpertState.COLD, load_s=3.0)
    ttft_s = predict(cold, Demand(500, 1), 0).ttft_s
    assert ttft_s is not None
    assert ttft_s.p50 == pytest.approx(3.5)
    warm = expert(latency=speed(1000.0, 100.0), load_s=3.0)
    assert predict(warm, Demand(500, 1), 0) == predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 1), 0)
    assert predict(expert(latency=speed(1000.0, 100.0), state=ExpertState.COLD), Demand(500, 1), 0).ttft_s is None


def test_nothing_is_predicted_without_measurements() -> None:
    """Unknown is unknown, for seconds and joules apart."""
    assert predict(expert(latency=None), Demand(1, 1), 0) == Prediction(None, None, None, None)
    assert predict(expert(latency=None, energy=cost(2.0)), Demand(1, 3), 0).energy_j == Quantiles(6.0, 6.0)


@pytest.mark.parametrize(("max_tokens", "planned"), [(None, ASSUMED_ANSWER_TOKENS), (5, 5), (4000, 4000)])
def test_the_longest_answer_is_planned_for(max_tokens: int | None, planned: int) -> None:
    """A limit is what the request may cost."""
    assert Demand(1, max_tokens).answer_tokens == planned


def test_prompts_are_estimated_by_their_bytes() -> None:
    """Four bytes a token and a template's overhead for each message."""
    assert estimate_prompt_tokens(["x" * 40, "é" * 20]) == 20 + 16
