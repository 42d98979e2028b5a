"""The agent's Prometheus metrics."""

from __future__ import annotations

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moe2.agent.observing.local_api import listening, metrics_app
from moe2.agent.observing.metrics import AgentMetrics
from moe2.common.energy import NEVER_RAN, Energy, Quality, unmeasured
from moe2.common.errors import Moe2Error
from moe2.common.link.messages import JobDone, JobFailed, JobUsage
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, SensorReport
from moe2.common.status import AgentStatus, LinkState, LinkStatus

STATUS = AgentStatus(
    agent_id="id-1",
    agent_name="orin",
    version="1",
    pid=1,
    uptime_s=1.0,
    draining=False,
    host=HostFacts(hostname="orin", system="Linux", architecture="aarch64"),
    sensors=(SensorReport(name="ina3221", state="present", power_w=16.5), SensorReport(name="rapl", state="absent")),
    experts=(
        ExpertReport(model="tiny", state=ExpertState.READY, context_tokens=64, slots=4, active=1, queued=2, restarts=3),
    ),
    link=LinkStatus(url="ws://coordinator", state=LinkState.CONNECTED, rtt_s=0.002, attempts=2),
    jobs_finished=0,
    jobs_failed=0,
    warnings=(),
)
DONE = JobDone(
    job_id="j", reason="stop", usage=JobUsage(prompt_tokens=7, decoded_tokens=10, queue_s=0.1, prefill_s=0.2)
)


def metrics_of(status: AgentStatus = STATUS, overhead: Energy = NEVER_RAN) -> AgentMetrics:
    return AgentMetrics(lambda: status, lambda: overhead)


def samples(metrics: AgentMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.exposition("")[0].decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_joules_are_counted_by_model_and_quality() -> None:
    """Two qualities make two series."""
    metrics = metrics_of()
    for quality in (Quality.MEASURED_INTEGRATED, Quality.PARTIAL):
        metrics.job_ended("tiny", DONE, Energy(joules=3.0, quality=quality))
    seen = samples(metrics)
    assert seen["moe2_agent_job_energy_joules_total", ("tiny", "measured_integrated")] == 3.0
    assert seen["moe2_agent_job_energy_joules_total", ("tiny", "partial")] == 3.0


def test_unmeasured_energy_is_counted_and_is_no_zero() -> None:
    """A job on a host without sensors adds no joules sample."""
    metrics = metrics_of()
    metrics.job_ended("tiny", DONE, unmeasured("no sensor"))
    seen = samples(metrics)
    assert seen["moe2_agent_jobs_unmeasured_total", ("tiny",)] == 1
    assert not [name for name, _ in seen if name == "moe2_agent_job_energy_joules_total"]


def test_jobs_are_counted_by_what_became_of_them() -> None:
    """Done, failed and refused jobs are three things."""
    metrics = metrics_of()
    metrics.job_ended("tiny", DONE, NEVER_RAN)
    metrics.job_ended("tiny", JobFailed(job_id="k", code="engine_crashed", message="died"), NEVER_RAN)
    metrics.job_refused("queue_full")
    seen = samples(metrics)
    assert seen["moe2_agent_jobs_total", ("tiny", "stop")] == 1
    assert seen["moe2_agent_jobs_total", ("tiny", "engine_crashed")] == 1
    assert seen["moe2_agent_jobs_refused_total", ("queue_full",)] == 1


def test_joules_that_nobody_profits_from_are_wasted_by_cause() -> None:
    """Of jobs that failed, were cancelled, or lost their coordinator; not of those that were answered."""
    metrics = metrics_of()
    joules = Energy(joules=3.0, quality=Quality.MEASURED_COUNTER)
    failed = JobFailed(job_id="k", code="engine_crashed", message="died")
    metrics.job_ended("tiny", DONE, joules)
    metrics.job_ended("tiny", DONE, joules, abandoned=True)
    metrics.job_ended("tiny", failed, joules)
    name = "moe2_agent_wasted_energy_joules_total"
    wasted = {labels: value for (found, labels), value in samples(metrics).items() if found == name}
    assert wasted == {("abandoned", "tiny"): 3.0, ("engine_crashed", "tiny"): 3.0}


def test_phases_and_tokens_are_those_of_the_usage() -> None:
    """A phase that was never reached is not observed."""
    metrics = metrics_of()
    metrics.job_ended("tiny", DONE, NEVER_RAN)
    seen = samples(metrics)
    assert seen["moe2_agent_decoded_tokens_total", ("tiny",)] == 10
    assert seen["moe2_agent_job_prefill_seconds_sum", ("tiny",)] == 0.2
    assert ("moe2_agent_job_decode_seconds_count", ("tiny",)) not in seen


def test_guesses_are_counted_where_any_are_made() -> None:
    """An engine that guesses nothing has no sample of them."""
    metrics = metrics_of()
    metrics.job_ended("tiny", DONE, NEVER_RAN)
    assert ("moe2_agent_drafted_tokens_total", ("tiny",)) not in samples(metrics)
    usage = JobUsage(decoded_tokens=10, drafted_tokens=7, accepted_tokens=4)
    metrics.job_ended("tiny", JobDone(job_id="j", reason="stop", usage=usage), NEVER_RAN)
    seen = samples(metrics)
    assert seen["moe2_agent_drafted_tokens_total", ("tiny",)] == 7
    assert seen["moe2_agent_accepted_tokens_total", ("tiny",)] == 4


def test_state_is_read_at_the_scrape() -> None:
    """Link, slots, queue, restarts and power are those of this moment; an absent sensor has no power."""
    seen = samples(metrics_of())
    assert seen["moe2_agent_link_up", ()] == 1
    assert seen["moe2_agent_link_rtt_seconds", ()] == 0.002
    assert seen["moe2_agent_expert_queue_depth", ("tiny",)] == 2
    assert seen["moe2_agent_engine_restarts_total", ("tiny",)] == 3
    assert seen["moe2_agent_power_watts", ("ina3221",)] == 16.5
    assert ("moe2_agent_power_watts", ("rapl",)) not in seen


def test_unknown_is_left_out() -> None:
    """No round trip yet, no idle energy known: no samples."""
    status = msgspec.structs.replace(STATUS, link=LinkStatus(url="ws://x", state=LinkState.WAITING))
    seen = samples(metrics_of(status, unmeasured("no sensor")))
    assert seen["moe2_agent_link_up", ()] == 0
    assert ("moe2_agent_link_rtt_seconds", ()) not in seen
    assert not [name for name, _ in seen if name == "moe2_agent_overhead_energy_joules_total"]


async def test_listener_serves_metrics_and_nothing_else() -> None:
    """What is open to the network does not show the status."""
    async with listening(metrics_app(metrics_of()), "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "moe2_agent_link_up 1.0" in await answer.text()
        async with http.get(f"http://127.0.0.1:{port}/status") as answer:
            assert answer.status == 404


async def test_no_listener_is_opened_unless_a_port_is_set() -> None:
    """Off by default."""
    async with listening(metrics_app(metrics_of()), "127.0.0.1", None) as port:
        assert port is None


async def test_a_taken_port_is_a_clear_error() -> None:
    """The error names the setting."""
    async with listening(metrics_app(metrics_of()), "127.0.0.1", 0) as port:
        with pytest.raises(Moe2Error, match=r"metrics\.port"):
            async with listening(metrics_app(metrics_of()), "127.0.0.1", port):
                pass
