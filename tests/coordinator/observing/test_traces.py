"""Requests as OpenTelemetry spans."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from moe2.coordinator.observing.traces import RequestTraces
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import LifeBench

_OFFSET_S = 1_000_000.0
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans_of(life: LifeBench) -> dict[str, list[ReadableSpan]]:
    """Returns a request's spans by name, in the order of their starts."""
    exporter = InMemorySpanExporter()
    traces = RequestTraces(exporter)
    traces.request_ended(life.life, receipt_of(life.life), unix_offset_s=_OFFSET_S)
    traces.close()
    found: dict[str, list[ReadableSpan]] = {}
    for span in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0):
        found.setdefault(span.name, []).append(span)
    return found


def answered(**fields: Any) -> LifeBench:
    life = LifeBench(**fields).admitted()
    life.tokens("Hi")
    life.now_s += 2.0
    life.done()
    return life


def test_a_request_has_a_span_with_its_attempt_and_phases() -> None:
    """A request's span contains those of its attempt and its phases, at wall time."""
    spans = spans_of(answered())
    (request,), (attempt,) = spans["moe2.request"], spans["moe2.attempt"]
    assert request.start_time == int((100.0 + _OFFSET_S) * 1e9)
    context = request.get_span_context()
    assert attempt.parent is not None
    assert context is not None
    assert attempt.parent.span_id == context.span_id
    lengths_s = [
        ((span.end_time or 0) - (span.start_time or 0)) / 1e9
        for name in ("moe2.queue", "moe2.prefill", "moe2.decode")
        for span in spans[name]
    ]
    assert lengths_s == pytest.approx([0.5, 0.25, 1.0])


def test_spans_carry_tokens_and_joules() -> None:
    """Spans have tokens and joules under OpenTelemetry's names and moe2's own."""
    (request,) = spans_of(answered())["moe2.request"]
    attributes = request.attributes or {}
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (7, 5)
    assert (attributes["moe2.energy_j"], attributes["moe2.energy_quality"]) == (2.0, "measured_counter")


def test_what_nobody_knows_is_left_out() -> None:
    """A lost attempt's span has no joules, not 0 of them."""
    life = LifeBench().admitted()
    life.tokens("Hi")
    life.lost()
    spans = spans_of(life)
    assert "moe2.energy_j" not in (spans["moe2.request"][0].attributes or {})
    assert "moe2.decode" not in spans
    assert spans["moe2.request"][0].status.is_ok is False


@pytest.mark.parametrize(("header", "follows"), [(_TRACEPARENT, True), ("rubbish", False)])
def test_a_clients_trace_goes_on(header: str, follows: bool) -> None:
    """A valid `traceparent` makes the request part of the client's trace; a malformed one changes nothing."""
    (request,) = spans_of(answered(traceparent=header))["moe2.request"]
    context = request.get_span_context()
    assert context is not None
    assert (f"{context.trace_id:032x}" == _TRACEPARENT.split("-")[1]) is follows
