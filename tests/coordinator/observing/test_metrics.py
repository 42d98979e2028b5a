"""The coordinator's Prometheus metrics."""

from __future__ import annotations

import re

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moe2.common.energy import NEVER_RAN, Energy, Quality
from moe2.common.status import BreakerRow, DispatchStatus
from moe2.coordinator.observing.metrics import CoordinatorMetrics
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import LifeBench
from tests.coordinator.receipts import MEASURED, UNMEASURED, agent_row, line, receipt, status

EXPERT = {"agent": "orin", "agent_id": "id-1", "model": "tiny"}


@pytest.fixture
def metrics() -> CoordinatorMetrics:
    return CoordinatorMetrics(lambda: status(agent_row()), stale_s=15.0)


def samples(metrics: CoordinatorMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.exposition("")[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: CoordinatorMetrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_joules_are_counted_by_expert_cause_and_quality(metrics: CoordinatorMetrics) -> None:
    """Joules of two qualities and two causes make two series."""
    lines = (line(MEASURED, outcome="failed"), line(Energy(joules=3.0, quality=Quality.SIMULATED)))
    metrics.request_ended(receipt(lines=lines), Completed("stop"))
    joules = "moe2_energy_joules_total"
    assert value(metrics, joules, **EXPERT, cause="failed", quality="measured_integrated") == 12.5
    assert value(metrics, joules, **EXPERT, cause="answered", quality="simulated") == 3.0


def test_unmeasured_energy_is_counted_and_is_no_zero(metrics: CoordinatorMetrics) -> None:
    """Unmeasured energy is counted and adds no sample to the joules."""
    metrics.request_ended(receipt(UNMEASURED), Completed("stop"))
    names = {name for name, _ in samples(metrics)}
    assert "moe2_energy_joules_total" not in names
    assert value(metrics, "moe2_request_energy_joules_count") == 0
    assert value(metrics, "moe2_attempts_unmeasured_total", **EXPERT, cause="answered") == 1
    assert value(metrics, "moe2_requests_unmeasured_total") == 1


def test_energy_per_token_leaves_unmeasured_tokens_out(metrics: CoordinatorMetrics) -> None:
    """Joules per token leave out the tokens whose joules are unknown."""
    metrics.request_ended(receipt(lines=(line(MEASURED), line(UNMEASURED))), Completed("stop"))
    assert value(metrics, "moe2_energy_tokens_total", **EXPERT) == 10
    assert value(metrics, "moe2_decoded_tokens_total", **EXPERT) == 20


def test_guesses_are_counted_by_expert(metrics: CoordinatorMetrics) -> None:
    """Those that went through the model and those that were right; no sample of an expert that guesses nothing."""
    metrics.request_ended(receipt(), Completed("stop"))
    assert "moe2_drafted_tokens_total" not in {name for name, _ in samples(metrics)}
    guessed = msgspec.structs.replace(line(MEASURED), drafted_tokens=7, accepted_tokens=4)
    metrics.request_ended(receipt(lines=(guessed,)), Completed("stop"))
    assert value(metrics, "moe2_drafted_tokens_total", **EXPERT) == 7
    assert value(metrics, "moe2_accepted_tokens_total", **EXPERT) == 4


def test_work_that_never_ran_is_an_exact_zero(metrics: CoordinatorMetrics) -> None:
    """Refused work counts as an exact 0 J."""
    metrics.request_ended(receipt(lines=(line(NEVER_RAN, outcome="failed"),)), Failed("queue_full", "full"))
    assert value(metrics, "moe2_energy_joules_total", **EXPERT, cause="failed", quality="exact") == 0.0


@pytest.mark.parametrize(
    ("outcome", "name", "reason"),
    [
        (Completed("length"), "completed", "length"),
        (Failed("engine_crashed", "it died"), "failed", "engine_crashed"),
        (Failed("made-up-by-an-agent", "?"), "failed", "internal"),
        (Cancelled(), "cancelled", "client"),
    ],
)
def test_requests_are_counted_by_outcome(
    metrics: CoordinatorMetrics, outcome: Completed | Failed | Cancelled, name: str, reason: str
) -> None:
    """Every outcome has its series, and an agent cannot make new label values."""
    metrics.request_ended(receipt(), outcome)
    assert value(metrics, "moe2_requests_total", outcome=name, reason=reason) == 1


def test_durations_are_observed_in_seconds(metrics: CoordinatorMetrics) -> None:
    """Each histogram of durations has the receipt's seconds."""
    metrics.request_ended(receipt(), Completed("stop"))
    for name, seconds in {"ttft": 0.2, "duration": 2.0, "overhead": 0.0004, "inter_token": 1.8 / 9}.items():
        assert value(metrics, f"moe2_request_{name}_seconds_sum") == pytest.approx(seconds)
        assert value(metrics, f"moe2_request_{name}_seconds_count") == 1


def test_unknown_durations_are_not_observed(metrics: CoordinatorMetrics) -> None:
    """A request that saw no token has no time to first token."""
    metrics.request_ended(receipt(ttft=None), Failed("engine_crashed", "it died"))
    assert value(metrics, "moe2_request_ttft_seconds_count") == 0
    assert value(metrics, "moe2_request_inter_token_seconds_count") == 0


def test_prediction_is_compared_with_what_was_measured(metrics: CoordinatorMetrics) -> None:
    """Predictions are observed as ratios to the measurement, and as kept or broken p95."""
    metrics.request_ended(receipt(), Completed("stop"))
    assert value(metrics, "moe2_prediction_duration_ratio_sum") == pytest.approx(0.8)
    for quantity, kept in {"ttft_seconds": "false", "duration_seconds": "true", "energy_joules": "true"}.items():
        assert value(metrics, "moe2_predictions_total", quantity=quantity, kept=kept) == 1


def test_what_was_not_predicted_or_not_measured_is_not_compared(metrics: CoordinatorMetrics) -> None:
    """Unknown joules neither keep nor break a prediction."""
    metrics.request_ended(receipt(UNMEASURED), Completed("stop"))
    assert value(metrics, "moe2_predictions_total", quantity="energy_joules", kept="true") is None
    assert value(metrics, "moe2_predictions_total", quantity="energy_joules", kept="false") is None


def test_fleet_is_read_at_the_scrape(metrics: CoordinatorMetrics) -> None:
    """Links, slots, queues, restarts and power are those of the status at the scrape."""
    agent = {"agent": "orin", "agent_id": "id-1"}
    assert value(metrics, "moe2_fleet_agents", state="connected") == 1
    assert value(metrics, "moe2_fleet_agent_rtt_seconds", **agent) == 0.002
    assert value(metrics, "moe2_fleet_expert_slots", **EXPERT) == 4
    assert value(metrics, "moe2_fleet_expert_slots_active", **EXPERT) == 1
    assert value(metrics, "moe2_fleet_expert_queue_depth", **EXPERT) == 2
    assert value(metrics, "moe2_fleet_expert_restarts_total", **EXPERT) == 3
    assert value(metrics, "moe2_fleet_power_watts", **agent, sensor="ina3221") == 16.5
    assert value(metrics, "moe2_requests_active") == 5
    assert value(metrics, "moe2_health_warnings", code="agent_stale", severity="degraded") == 1


def test_unknown_power_has_no_sample(metrics: CoordinatorMetrics) -> None:
    """A host without a power sensor has no sample of power, not 0 W."""
    assert value(metrics, "moe2_fleet_power_watts", agent="orin", agent_id="id-1", sensor="rapl") is None


def test_agents_of_one_name_stay_apart() -> None:
    """Two agents of one name stay apart and do not make a scrape invalid."""
    rows = (agent_row(), agent_row(agent_id="id-2", connected=False))
    metrics = CoordinatorMetrics(lambda: status(*rows), stale_s=15.0)
    assert value(metrics, "moe2_fleet_agent_connected", agent="orin", agent_id="id-1") == 1
    assert value(metrics, "moe2_fleet_agent_connected", agent="orin", agent_id="id-2") == 0
    assert value(metrics, "moe2_fleet_agents", state="disconnected") == 1


def test_names_follow_prometheus_conventions(metrics: CoordinatorMetrics) -> None:
    """Names are prefixed and in snake case, with base units; counters end in _total."""
    metrics.request_ended(receipt(), Completed("stop"))
    metrics.response_begun("/metrics", 200)
    families = list(text_string_to_metric_families(metrics.exposition("")[0].decode()))
    own = [family for family in families if not family.name.startswith(("process_", "python_"))]
    assert len(own) > 20
    for family in own:
        assert re.fullmatch(r"moe2_[a-z0-9_]+", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|milliseconds|percent|kwh|bytes_total_total)$", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_openmetrics_is_spoken_where_asked_for(metrics: CoordinatorMetrics) -> None:
    """A scraper that asks for OpenMetrics gets it, with its end marker."""
    body, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_trouble_is_counted_and_breakers_are_states() -> None:
    """Each state of a breaker has its series, and experts of agents that are gone have none."""
    dispatch = DispatchStatus(
        waiting=3,
        queue_refused=4,
        hedges_won=2,
        hedges_lost=1,
        resumed=5,
        breakers=(
            BreakerRow(expert="id-1/tiny", state="half_open"),
            BreakerRow(expert="gone/tiny", state="open"),
        ),
    )
    metrics = CoordinatorMetrics(lambda: msgspec.structs.replace(status(agent_row()), dispatch=dispatch), stale_s=15.0)
    assert value(metrics, "moe2_requests_waiting") == 3
    assert value(metrics, "moe2_queue_refusals_total") == 4
    assert value(metrics, "moe2_hedges_total", result="won") == 2
    assert value(metrics, "moe2_hedges_total", result="lost") == 1
    assert value(metrics, "moe2_resumes_total") == 5
    states = {state: value(metrics, "moe2_breaker_state", **EXPERT, state=state) for state in ("closed", "half_open")}
    assert states == {"closed": 0, "half_open": 1}
    assert "gone" not in metrics.exposition("")[0].decode()


def test_only_who_waited_for_room_counts_as_waiting(metrics: CoordinatorMetrics) -> None:
    """Requests that did not wait are not observed as waiting."""
    metrics.request_ended(receipt(admission=0.0), Completed("stop"))
    metrics.request_ended(receipt(admission=2.0), Completed("stop"))
    assert value(metrics, "moe2_request_admission_seconds_count") == 1
    assert value(metrics, "moe2_request_admission_seconds_sum") == 2.0


def test_the_planner_is_observed_by_its_certificates(metrics: CoordinatorMetrics) -> None:
    """The planner's time and gap are observed where the receipt has a decision."""
    decided = receipt_of(LifeBench().admitted().life)
    assert decided.decision is not None
    metrics.request_ended(decided, Completed("stop"))
    metrics.request_ended(receipt(), Completed("stop"))
    assert value(metrics, "moe2_plan_duration_seconds_count") == 1
    assert value(metrics, "moe2_plan_gap_count") == 1
    assert value(metrics, "moe2_plan_gap_sum") == 0
