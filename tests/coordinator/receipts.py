"""Receipts and statuses as the coordinator makes them, for tests that need some."""

from __future__ import annotations

from typing import Any

import msgspec

from moe2.common.cost import Quantiles
from moe2.common.energy import Energy, Quality, WholeEnergy, total, unmeasured
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, Performance, SensorReport
from moe2.common.status import AgentRow, CoordinatorStatus
from moe2.coordinator.choosing.explain import Predicted
from moe2.coordinator.serving.receipt import ExpertLine, Receipt, Seconds, TokenCounts

MEASURED = Energy(joules=12.5, quality=Quality.MEASURED_INTEGRATED, source="ina3221")
UNMEASURED = unmeasured("no sensor")


def line(energy: Energy = MEASURED, *, outcome: str = "answered", decoded: int | None = 10) -> ExpertLine:
    return ExpertLine(
        expert="id-1/tiny",
        agent="orin",
        model="tiny",
        outcome=outcome,
        decoded_tokens=decoded,
        energy=WholeEnergy.of(energy),
        error=None,
    )


def receipt(*energies: Energy, lines: tuple[ExpertLine, ...] | None = None, **seconds: Any) -> Receipt:
    """A request with one answered attempt per energy (one measured if none is given)."""
    parts = energies or (MEASURED,)
    given = {"overhead": 0.0004, "queue": 0.0, "prefill": 0.2, "decode": 1.8, "ttft": 0.2, "total": 2.0, **seconds}
    return Receipt(
        request_id="req-1",
        mode="route",
        experts=tuple(line(part) for part in parts) if lines is None else lines,
        tokens=TokenCounts(prompt=7, cached=0, decoded=10),
        seconds=Seconds(**given),
        predicted=Predicted(
            ttft_s=Quantiles(0.1, 0.15),
            total_s=Quantiles(2.5, 4.0),
            energy_j=Quantiles(10.0, 20.0),
            energy_quality=Quality.MEASURED_COUNTER,
        ),
        energy=WholeEnergy.of(total(parts)),
        decision=None,
    )


def agent_row(**fields: Any) -> AgentRow:
    """A connected agent with one ready expert; `fields` replace its own."""
    expert = ExpertReport(
        model="tiny",
        state=ExpertState.READY,
        context_tokens=4096,
        slots=4,
        active=1,
        queued=2,
        restarts=3,
        performance=Performance(decode_tokens_per_s=40.0),
    )
    row = AgentRow(
        agent_id="id-1",
        agent_name="orin",
        version="1",
        connected=True,
        draining=False,
        report_age_s=0.5,
        rtt_s=0.002,
        host=HostFacts(hostname="orin", system="Linux", architecture="aarch64"),
        experts=(expert,),
        sensors=(
            SensorReport(name="ina3221", state="present", power_w=16.5),
            SensorReport(name="rapl", state="absent"),
        ),
        warnings=(),
    )
    return msgspec.structs.replace(row, **fields)


def status(*rows: AgentRow, **fields: Any) -> CoordinatorStatus:
    """A coordinator with these agents, five requests and a warning; `fields` replace its own."""
    found = CoordinatorStatus(
        coordinator_id="coordinator-1",
        version="1",
        pid=1,
        uptime_s=1.0,
        draining=False,
        epoch=1,
        api_url="",
        agents_url="",
        agents=rows,
        requests_active=5,
        requests_finished=0,
        requests_failed=0,
        requests_cancelled=0,
        warnings=(HealthWarning(code="agent_stale", severity=Severity.DEGRADED, message="m", remedy="r"),),
    )
    return msgspec.structs.replace(found, **fields)
