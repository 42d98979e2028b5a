"""Reports with figures that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from moe2.common.cost import LatencyProfile, Spread
from moe2.common.messages import Performance
from moe2.coordinator.soundness import fault_in, sound
from tests.coordinator.experts import MEASURED, cost, expert_report, report, speed


def test_a_sound_report_is_left_alone() -> None:
    """The very same one, with all that agents measure."""
    emptying = replace(MEASURED, occupancy=(-0.5, 1.0))
    told = report(
        expert_report(energy=cost(0.5), parameters=7, load_s=1.0, performance=Performance(idle_w=-0.01)),
        expert_report("other", latency=None),
        expert_report("third", latency=emptying),
    )
    assert sound(told) is told


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"slots": 0}, "0 slots, 4096 tokens of context"),
        ({"context_tokens": -1}, "2 slots, -1 tokens of context"),
        ({"parameters": -4522}, "parameters is -4522"),
        ({"load_s": float("inf")}, "load_s is inf"),
        ({"latency": speed(float("inf"), -50.0)}, "latency.decode[0] is -0.02"),
        ({"latency": speed(1.0, 1.0, spread=Spread(p50=0.0, p95=1e308))}, "latency.ttft is 1e+308"),
        ({"latency": speed(1.0, 1.0, slots=0)}, "latency.slots is 0"),
        ({"energy": cost(float("nan"))}, "energy.coefficients[1] is nan"),
        ({"latency": replace(MEASURED, occupancy=(float("nan"), 1.0))}, "latency.occupancy[0] is nan"),
    ],
)
def test_a_figure_that_cannot_be_is_named(fields: dict[str, Any], fault: str) -> None:
    """Wherever it is in the report."""
    assert fault_in(expert_report(**fields)) == fault


def test_only_the_unsound_expert_is_left_out() -> None:
    """Its neighbour serves on; the operator is told."""
    good, bad = expert_report("good"), expert_report("bad", slots=0)
    told = sound(report(good, bad))
    assert told.experts == (good,)
    [warning] = told.warnings
    assert warning.code == "report_unsound"
    assert "'bad'" in warning.message
    assert isinstance(good.latency, LatencyProfile)
