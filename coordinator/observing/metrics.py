"""The coordinator's Prometheus metrics about requests, counted from each receipt when its request ends.

Unknown energy is counted in `moe2_attempts_unmeasured_total` and never becomes 0 J. Figures that an agent sent have
been checked before (`moe2.coordinator.fleet.checks`): one NaN would spoil a counter for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from moe2.common.error_codes import ErrorCode
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.choosing.explain import Predicted
from moe2.coordinator.observing.fleet_metrics import FleetCollector
from moe2.coordinator.observing.series import Counter, Histogram
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.receipt import ExpertLine, Receipt

TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOTAL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
OVERHEAD_S = (0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 1)
REQUEST_J = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
GAP = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RATIO = (0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.11, 1.25, 1.5, 2, 4)


class CoordinatorMetrics:
    """The registry of all metrics; the event loop counts into it, and scrapes read it on the same loop."""

    def __init__(
        self, status: Callable[[], CoordinatorStatus], *, stale_s: float, others: Iterable[Collector] = ()
    ) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.fleet = FleetCollector(status, stale_s=stale_s)
        registry.register(self.fleet)
        for other in others:
            registry.register(other)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            made = Counter(name, documentation, labels)
            registry.register(made)
            return made

        def histogram(name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
            made = Histogram(name, documentation, bounds)
            registry.register(made)
            return made

        expert = ("agent", "agent_id", "model")
        self._responses = counter("moe2_http_responses", "HTTP responses begun.", "route", "status")
        self._requests = counter(
            "moe2_requests", "Requests that ended; reason: finish reason or error code.", "outcome", "reason"
        )
        self._requests_unmeasured = counter("moe2_requests_unmeasured", "Requests whose energy is not known.")
        self._attempts = counter("moe2_attempts", "Experts' work for requests that ended.", *expert, "outcome")
        self._attempts_unmeasured = counter(
            "moe2_attempts_unmeasured", "Attempts whose energy is not known.", *expert, "cause"
        )
        self._joules = counter(
            "moe2_energy_joules",
            "Energy of attempts with a known figure; cause: what became of the attempt, quality: how it was obtained.",
            *expert,
            "cause",
            "quality",
        )
        self._energy_tokens = counter(
            "moe2_energy_tokens",
            "Tokens that moe2_energy_joules_total paid for: energy per token is their ratio.",
            *expert,
        )
        self._decoded = counter("moe2_decoded_tokens", "Tokens that experts decoded.", *expert)
        self._drafted = counter(
            "moe2_drafted_tokens", "Guessed tokens that went through experts beside those that they decoded.", *expert
        )
        self._accepted = counter(
            "moe2_accepted_tokens",
            "Guessed tokens that were right: tokens per step are decoded ones over decoded less accepted ones.",
            *expert,
        )
        self._prompt = counter("moe2_prompt_tokens", "Prompt tokens of answered requests.")
        self._cached = counter("moe2_prompt_cached_tokens", "Prompt tokens found in an expert's cache.")
        self._ttft = histogram("moe2_request_ttft_seconds", "From a request's last byte to its first token.", TTFT_S)
        self._total = histogram("moe2_request_duration_seconds", "From a request's last byte to its end.", TOTAL_S)
        self._per_token = histogram(
            "moe2_request_inter_token_seconds",
            "Mean time between an answer's tokens, one observation per request.",
            PER_TOKEN_S,
        )
        self._overhead = histogram(
            "moe2_request_overhead_seconds", "From a request's last byte to its dispatch to an expert.", OVERHEAD_S
        )
        self._queued = histogram("moe2_request_queue_seconds", "Wait for a slot on the agent.", TTFT_S)
        self._admission = histogram(
            "moe2_request_admission_seconds", "Wait for an expert with room, of the requests that waited.", TTFT_S
        )
        self._request_j = histogram(
            "moe2_request_energy_joules", "Energy of a request, all attempts; unmeasured ones left out.", REQUEST_J
        )
        self._calibration = histogram(
            "moe2_prediction_duration_ratio", "Measured over predicted median duration of completed requests.", RATIO
        )
        self._plan_s = histogram(
            "moe2_plan_duration_seconds",
            "Time of the planner; that of a remembered plan counts again.",
            OVERHEAD_S,
        )
        self._plan_gap = histogram(
            "moe2_plan_gap", "How much more the best possible plan can be worth, as certified.", GAP
        )
        self._predictions = counter(
            "moe2_predictions",
            "Completed requests with a prediction, by whether what was measured kept the predicted p95.",
            "quantity",
            "kept",
        )

    def response_begun(self, route: str, status: int) -> None:
        """Counts one HTTP response by its route and status."""
        self._responses.add(1, route, str(status))

    def request_ended(self, receipt: Receipt, outcome: Outcome | None) -> None:
        """Counts one request, once, when everything that it spent is known."""
        name, reason = _outcome_labels(outcome)
        self._requests.add(1, name, reason)
        for line in receipt.experts:
            self._attempt_ended(line)
        self._request_j.observe(receipt.energy.joules)
        if receipt.energy.joules is None:
            self._requests_unmeasured.add(1)
        if receipt.tokens.prompt is not None:
            self._prompt.add(receipt.tokens.prompt)
        if receipt.tokens.cached is not None:
            self._cached.add(receipt.tokens.cached)
        if receipt.decision:
            self._plan_s.observe(receipt.decision.proof.elapsed_s)
            # That of a plan without a bound is infinite, and not observed.
            self._plan_gap.observe(receipt.decision.proof.gap)
        self._observe_seconds(receipt, completed=name == "completed")

    def _attempt_ended(self, line: ExpertLine) -> None:
        agent_id, _, _ = line.expert.partition("/")
        expert = (line.agent, agent_id, line.model)
        self._attempts.add(1, *expert, line.outcome)
        decoded = line.decoded_tokens or 0
        if decoded:
            self._decoded.add(decoded, *expert)
        if line.drafted_tokens is not None:
            self._drafted.add(line.drafted_tokens, *expert)
            self._accepted.add(line.accepted_tokens or 0, *expert)
        joules = line.energy.joules
        if joules is not None:
            self._joules.add(joules, *expert, line.outcome, line.energy.quality)
            self._energy_tokens.add(decoded, *expert)
        else:
            self._attempts_unmeasured.add(1, *expert, line.outcome)

    def _observe_seconds(self, receipt: Receipt, *, completed: bool) -> None:
        seconds, decoded = receipt.seconds, receipt.tokens.decoded
        self._overhead.observe(seconds.overhead)
        self._queued.observe(seconds.queue)
        if seconds.admission:
            self._admission.observe(seconds.admission)
        self._ttft.observe(seconds.ttft)
        self._total.observe(seconds.total)
        if seconds.ttft is not None and seconds.total is not None and decoded is not None and decoded > 1:
            self._per_token.observe((seconds.total - seconds.ttft) / (decoded - 1))
        if completed and receipt.predicted:
            self._compare(receipt.predicted, receipt)

    def _compare(self, predicted: Predicted, receipt: Receipt) -> None:
        """Observes how the predictions that the choice was based on compare with what was measured."""
        for quantity, quantiles, measured in (
            ("ttft_seconds", predicted.ttft_s, receipt.seconds.ttft),
            ("duration_seconds", predicted.total_s, receipt.seconds.total),
            ("energy_joules", predicted.energy_j, receipt.energy.joules),
        ):
            if quantiles is not None and measured is not None:
                self._predictions.add(1, quantity, "true" if measured <= quantiles.p95 else "false")
        total_s, median = receipt.seconds.total, predicted.total_s
        if total_s is not None and median is not None and median.p50 > 0:
            self._calibration.observe(total_s / median.p50)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns all metrics in the format that the scraper's Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _outcome_labels(outcome: Outcome | None) -> tuple[str, str]:
    match outcome:
        case Completed(reason=reason):
            return "completed", reason
        case Failed(code=code):
            return "failed", ErrorCode.of(code)
        case Cancelled():
            return "cancelled", "client"
        case None:
            return "failed", "other"
