"""Warnings about average budgets that cannot be kept."""

from __future__ import annotations

from typing import Any

from moe2.common.health import Severity
from moe2.common.status import AverageRow
from moe2.coordinator.observing.health import average_warnings


def row(**fields: Any) -> AverageRow:
    known = {"scope": "category coding", "average_energy_j": 50.0, "price_per_j": 0.01, "mean_j": 92.3, "n_answers": 40}
    return AverageRow(**{**known, **fields})


def test_an_average_that_the_cheapest_expert_exceeds_is_named_with_what_could_be() -> None:
    """The remedy has the figure that would do."""
    (warning,) = average_warnings((row(saturated=True),))
    assert warning.code == "average_unreachable"
    assert "category coding" in warning.message
    assert "93 J" in warning.remedy


def test_a_day_that_is_used_up_is_no_average_that_somebody_set() -> None:
    """It is a notice, of a limit that does its work, and its remedy is a larger limit."""
    (warning,) = average_warnings((row(scope="day of key app", of_day=True, average_energy_j=0.1, saturated=True),))
    assert (warning.code, warning.severity) == ("day_used_up", Severity.NOTICE)
    assert "day of key app" in warning.message
    assert "--energy-per-day" in warning.remedy


def test_an_average_that_is_being_learned_is_no_trouble() -> None:
    """A mean above its target is no warning while a higher price can still help, nor one that hardly exceeds it."""
    assert average_warnings((row(), row(saturated=True, mean_j=50.5), row(saturated=True, mean_j=None))) == ()


def test_an_average_without_measurements_is_blind() -> None:
    """Where most joules are unknown the mean cannot be kept, and the warning says where to look."""
    (warning,) = average_warnings((row(n_unmeasured=41),))
    assert warning.code == "average_unmeasured"
    assert "moe2-agent doctor" in warning.remedy
    assert average_warnings((row(n_unmeasured=40),)) == ()
