"""Traces: each request as OpenTelemetry spans, exported over OTLP/HTTP. Only this module uses opentelemetry.

There is one span per request, below it one per attempt, and below that one per phase that the agent measured. They are
made when everything is accounted for, from the same figures as the receipt, so that no answer waits for a trace.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from moe2.common import __version__
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Failed
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt

EXPORT_TIMEOUT_S = 5.0
_NS = 1_000_000_000
Attributes = Mapping[str, str | int | float | bool]


class RequestTraces:
    """Makes the spans of each request and exports them in batches, off the event loop.

    exporter: where the spans go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.name": "moe2-coordinator", "service.version": __version__})
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("moe2", __version__)

    def request_ended(self, life: Lifecycle, receipt: Receipt, *, unix_offset_s: float) -> None:
        """Makes the spans of one request. unix_offset_s: what to add to the lifecycle's clock to get wall time."""
        request = life.request
        ended_s = life.concluded_s if life.concluded_s is not None else request.arrived_s
        span = self._tracer.start_span(
            "moe2.request",
            context=_parent(request.traceparent),
            kind=SpanKind.SERVER,
            start_time=_ns(request.arrived_s + unix_offset_s),
            attributes=_of_request(life, receipt),
        )
        for attempt in life.attempts:
            self._attempt(attempt, set_span_in_context(span), unix_offset_s)
        if isinstance(life.outcome, Failed):
            span.set_status(Status(StatusCode.ERROR, life.outcome.message))
        span.end(_ns(ended_s + unix_offset_s))

    def close(self) -> None:
        """Exports what is left. It blocks for at most about `EXPORT_TIMEOUT_S`."""
        self._provider.shutdown()

    def _attempt(self, attempt: Attempt, context: Context, unix_offset_s: float) -> None:
        at_s = attempt.submitted_s + unix_offset_s
        span = self._tracer.start_span(
            "moe2.attempt", context=context, start_time=_ns(at_s), attributes=_of_attempt(attempt)
        )
        usage = attempt.usage
        for phase, seconds in (
            ("queue", usage.queue_s if usage else None),
            ("prefill", usage.prefill_s if usage else None),
            ("decode", usage.decode_s if usage else None),
        ):
            if seconds is not None:
                child = self._tracer.start_span(
                    f"moe2.{phase}", context=set_span_in_context(span), start_time=_ns(at_s)
                )
                at_s += seconds
                child.end(_ns(at_s))
        span.end(_ns(at_s))


def open_traces(endpoint: str) -> RequestTraces:
    """Opens traces to an OTLP/HTTP collector, such as http://127.0.0.1:4318/v1/traces."""
    return RequestTraces(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S))


def _of_request(life: Lifecycle, receipt: Receipt) -> Attributes:
    """Returns a request's attributes, by OpenTelemetry's conventions for generative AI and moe2's own."""
    found: dict[str, str | int | float | bool | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": life.request.model,
        "gen_ai.response.id": receipt.request_id,
        "gen_ai.usage.input_tokens": receipt.tokens.prompt,
        "gen_ai.usage.output_tokens": receipt.tokens.decoded,
        "moe2.mode": receipt.mode,
        "moe2.outcome": type(life.outcome).__name__.lower(),
        "moe2.energy_j": receipt.energy.joules,
        "moe2.energy_quality": receipt.energy.quality,
        "moe2.ttft_s": receipt.seconds.ttft,
        "moe2.overhead_s": receipt.seconds.overhead,
        "error.type": life.outcome.code if isinstance(life.outcome, Failed) else None,
    }
    return _known(found)


def _of_attempt(attempt: Attempt) -> Attributes:
    usage = attempt.usage
    return _known(
        {
            "gen_ai.response.model": attempt.expert.model,
            "moe2.expert": attempt.expert.key,
            "moe2.agent": attempt.expert.agent_name,
            "moe2.job_id": attempt.job_id,
            "moe2.purpose": attempt.purpose,
            "moe2.outcome": attempt.state,
            "gen_ai.usage.output_tokens": usage.decoded_tokens if usage else None,
            "moe2.energy_j": usage.energy.joules if usage else None,
            "moe2.energy_quality": usage.energy.quality if usage else None,
            "error.type": attempt.error,
        }
    )


def _known(found: Mapping[str, str | int | float | bool | None]) -> Attributes:
    """Returns the attributes without unknown ones: an attribute cannot be null, and must not be a made-up zero."""
    return {name: value for name, value in found.items() if value is not None}


def _parent(traceparent: str | None) -> Context | None:
    """Returns the caller's span from its W3C `traceparent` header; None where it is missing or malformed."""
    if traceparent is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _ns(unix_s: float) -> int:
    return int(unix_s * _NS)
