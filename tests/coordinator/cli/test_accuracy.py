"""The command `moe2-coordinator status --calibration`, drawn and plain."""

from __future__ import annotations

import io

from rich.console import Console

from moe2.common.energy import Energy, Quality
from moe2.coordinator.cli import accuracy
from moe2.coordinator.observing.accuracy import CalibrationReport, CalibrationWindow
from tests.coordinator.experts import cost, expert, speed
from tests.coordinator.observing.test_accuracy import serve, served


def drawn(report: CalibrationReport, *, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(accuracy.picture(report, 0.0))
    return " ".join(console.export_text().split())


def test_every_quantity_has_a_row() -> None:
    """Each quantity's row has its requests, its error, both coverages and the error as planned."""
    text = drawn(served(1.1, 1.1, 2.2, 2.2))
    assert "whole answer 4 25.0 % 50.0 % 50.0 % 25.0 %" in text
    assert "name of agent-1 whole answer" in text


def test_unmeasured_joules_are_no_figures() -> None:
    """Where joules were not measured, "unmeasured" and the number of requests stand in the place of the error."""
    text = drawn(served(1.1, energy=Energy(reason="no power sensor")))
    assert "joules 0 unmeasured – – – 1 unmeasured" in text


def test_simulated_joules_say_so() -> None:
    """Simulated joules are marked as such, drawn and plain."""
    report = served(1.1, energy=Energy(joules=22.0, quality=Quality.SIMULATED))
    assert "joules (simulated)" in drawn(report)
    assert "quality=simulated" in next(line for line in accuracy.lines(report, 0.0) if "energy_j" in line)


def test_several_experts_have_a_sum() -> None:
    """Several experts are summed up in rows of their own; a single one is not."""
    window = CalibrationWindow()
    assert "all first token" not in drawn(served(1.1))
    for life in ("agent-1", "agent-2"):
        _serve(window, life)
    assert "all first token" in drawn(window.report())


def test_plain_lines_have_every_figure() -> None:
    """The plain form has one line for each expert and quantity, then those of all experts."""
    lines = accuracy.lines(served(1.1, 2.2), 0.0)
    assert [line.split()[1] for line in lines] == ["expert=agent-1/m"] * 3 + ["expert=all"] * 3
    total = next(line for line in lines if "quantity=total_s" in line)
    for fact in ("n=2", "median_abs_error_pct=25.0", "p95_coverage_pct=50.0", "planned_p95_coverage_pct=50.0"):
        assert fact in total.split()


def test_nothing_answered_yet_is_a_sentence() -> None:
    """Before the first answer a sentence is shown and no table of dashes."""
    assert drawn(CalibrationWindow().report()) == "No request has been answered yet."


def _serve(window: CalibrationWindow, agent_id: str) -> None:
    serve(window, by=expert(agent_id, latency=speed(1000.0, 10.0), energy=cost(2.0)))
