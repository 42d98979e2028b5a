"""The agent's Prometheus metrics. The only user of prometheus_client here.

What jobs consumed is counted as they end; everything else is read from the status when somebody scrapes. Unknown energy
is counted in `moe2_agent_jobs_unmeasured_total`; it never becomes 0 J.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from moe2.common.energy import Energy
from moe2.common.link.messages import JobDone, JobFailed, JobScored
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.status import AgentStatus, LinkState

PHASE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class AgentMetrics:
    """The Prometheus metrics of this agent, in a registry of its own.

    status: the agent's status now. overhead: energy of the host that no job is answerable for, since the start.
    """

    def __init__(self, status: Callable[[], AgentStatus], overhead: Callable[[], Energy]) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_HostCollector(status, overhead))

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(name, documentation, labels, registry=registry)

        def histogram(name: str, documentation: str) -> Histogram:
            return Histogram(name, documentation, ["model"], registry=registry, buckets=PHASE_S)

        self._jobs = counter("moe2_agent_jobs", "Jobs that ended; reason: finish reason or error.", "model", "reason")
        self._refused = counter("moe2_agent_jobs_refused", "Jobs that were not begun.", "reason")
        self._unmeasured = counter("moe2_agent_jobs_unmeasured", "Jobs whose energy is not known.", "model")
        self._joules = counter(
            "moe2_agent_job_energy_joules", "Energy of jobs with a known figure, by its quality.", "model", "quality"
        )
        self._wasted = counter(
            "moe2_agent_wasted_energy_joules", "Energy of jobs whose answer nobody got, by cause.", "model", "cause"
        )
        self._prompt = counter("moe2_agent_prompt_tokens", "Prompt tokens of ended jobs.", "model")
        self._cached = counter("moe2_agent_prompt_cached_tokens", "Prompt tokens found in the cache.", "model")
        self._decoded = counter("moe2_agent_decoded_tokens", "Tokens decoded by ended jobs.", "model")
        self._drafted = counter(
            "moe2_agent_drafted_tokens", "Guessed tokens that went through the model, of ended jobs.", "model"
        )
        self._accepted = counter(
            "moe2_agent_accepted_tokens", "Guessed tokens that were right, among the decoded ones.", "model"
        )
        self._queue = histogram("moe2_agent_job_queue_seconds", "Wait for a slot.")
        self._prefill = histogram("moe2_agent_job_prefill_seconds", "Time of reading the prompt.")
        self._decode = histogram("moe2_agent_job_decode_seconds", "Time of decoding the answer.")

    def job_ended(
        self, model: str, ending: JobDone | JobScored | JobFailed, energy: Energy, *, abandoned: bool = False
    ) -> None:
        """Count a job that held a queue place.

        abandoned: the link to the coordinator broke meanwhile, nobody waits for it any more.
        """
        reason = "abandoned" if abandoned else _outcome(ending)
        self._jobs.labels(model, reason).inc()
        if energy.joules is None:
            self._unmeasured.labels(model).inc()
        else:
            # Integration noise around an idle sensor may leave a hair below zero.
            joules = max(0.0, energy.joules)
            self._joules.labels(model, energy.quality).inc(joules)
            if isinstance(ending, JobFailed) or reason in ("abandoned", "cancelled"):
                self._wasted.labels(model, reason).inc(joules)
        usage = ending.usage
        if usage is None:
            return
        self._prompt.labels(model).inc(usage.prompt_tokens or 0)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._decoded.labels(model).inc(usage.decoded_tokens)
        if usage.drafted_tokens is not None:
            self._drafted.labels(model).inc(usage.drafted_tokens)
            self._accepted.labels(model).inc(usage.accepted_tokens or 0)
        for phase, seconds in (
            (self._queue, usage.queue_s),
            (self._prefill, usage.prefill_s),
            (self._decode, usage.decode_s),
        ):
            if seconds is not None:
                phase.labels(model).observe(seconds)

    def job_refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the scraper's Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _HostCollector(Collector):
    """What the agent is like now. What is unknown has no sample."""

    def __init__(self, status: Callable[[], AgentStatus], overhead: Callable[[], Energy]) -> None:
        self._status = status
        self._overhead = overhead

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield InfoMetricFamily(
            "moe2_agent_build",
            "This build and who runs it.",
            value={"version": status.version, "agent": status.agent_name, "agent_id": status.agent_id},
        )
        yield GaugeMetricFamily("moe2_agent_draining", "1 while shutting down.", value=status.draining)
        connected = status.link.state is LinkState.CONNECTED
        yield GaugeMetricFamily("moe2_agent_link_up", "1 if connected to the coordinator.", value=connected)
        yield CounterMetricFamily("moe2_agent_link_attempts", "Connections tried.", value=status.link.attempts)
        if status.link.rtt_s is not None:
            yield GaugeMetricFamily(
                "moe2_agent_link_rtt_seconds", "Round trip of the link's last heartbeat.", value=status.link.rtt_s
            )
        yield from _experts(status.experts)
        yield _power(status)
        overhead = self._overhead()
        idle = CounterMetricFamily(
            "moe2_agent_overhead_energy_joules", "Energy that no job is answerable for.", labels=["quality"]
        )
        if overhead.joules is not None:
            idle.add_metric([overhead.quality], overhead.joules)
        yield idle
        warnings = GaugeMetricFamily(
            "moe2_agent_health_warnings", "Warnings that hold now.", labels=["code", "severity"]
        )
        for code, severity in sorted({(warning.code, str(warning.severity)) for warning in status.warnings}):
            n = sum((warning.code, warning.severity) == (code, severity) for warning in status.warnings)
            warnings.add_metric([code, severity], n)
        yield warnings


def _experts(experts: tuple[ExpertReport, ...]) -> Iterator[Metric]:
    def gauge(name: str, documentation: str, value_of: Callable[[ExpertReport], float]) -> Metric:
        family = GaugeMetricFamily(f"moe2_agent_expert_{name}", documentation, labels=["model"])
        for expert in experts:
            family.add_metric([expert.model], value_of(expert))
        return family

    yield gauge("ready", "1 if the expert can take jobs.", lambda expert: expert.state is ExpertState.READY)
    yield gauge("slots", "Jobs decoded at once at most.", lambda expert: expert.slots)
    yield gauge("slots_active", "Jobs that hold a slot.", lambda expert: expert.active)
    yield gauge("queue_depth", "Jobs that wait for a slot.", lambda expert: expert.queued)
    restarts = CounterMetricFamily("moe2_agent_engine_restarts", "Times an engine died.", labels=["model"])
    for expert in experts:
        restarts.add_metric([expert.model], expert.restarts)
    yield restarts


def _power(status: AgentStatus) -> Metric:
    power = GaugeMetricFamily(
        "moe2_agent_power_watts", "Present power; sensor `profile:` is simulated.", labels=["sensor"]
    )
    for sensor in status.sensors:
        if sensor.power_w is not None:
            power.add_metric([sensor.name], sensor.power_w)
    return power


def _outcome(ending: JobDone | JobScored | JobFailed) -> str:
    match ending:
        case JobDone(reason=reason):
            return reason
        case JobFailed(code=code):
            return code
    return "scored"
