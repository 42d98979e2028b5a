"""The idle baseline."""

from __future__ import annotations

import pytest

from moe2.agent.energy.baseline import IdleBaseline

_LOADED = frozenset({"model"})


def _idle(baseline: IdleBaseline, start: int, end: int, power_w: float) -> None:
    for second in range(start, end):
        baseline.was_idle(float(second), second + 1.0, power_w)


def test_needs_ten_idle_seconds() -> None:
    """After the settling time, ten seconds make a baseline, nine do not."""
    baseline = IdleBaseline()
    baseline.set_condition((None, _LOADED))
    _idle(baseline, 0, 12, 10.0)
    assert baseline.idle_w is None
    _idle(baseline, 12, 13, 10.0)
    assert baseline.idle_w == pytest.approx(10.0)


def test_seconds_right_after_load_do_not_count() -> None:
    """A GPU holds its clocks for two seconds after a request: 68 W, then 52 W."""
    baseline = IdleBaseline()
    baseline.set_condition((None, _LOADED))
    for start in range(0, 60, 6):
        baseline.was_busy()
        _idle(baseline, start, start + 3, 68.0)
        _idle(baseline, start + 3, start + 6, 52.0)
    assert baseline.idle_w == pytest.approx(52.0)


def test_idling_without_a_model_is_a_state_of_its_own() -> None:
    """A cold host's power is known apart from that with its model loaded."""
    baseline = IdleBaseline()
    baseline.set_condition((None, _LOADED))
    _idle(baseline, 0, 30, 50.0)
    baseline.set_condition((None, frozenset()))
    _idle(baseline, 30, 60, 5.0)
    assert baseline.idle_w == pytest.approx(5.0)
    assert baseline.figures[(None, _LOADED)].power_w == pytest.approx(50.0)


def test_a_model_that_was_replaced_takes_its_figures_along() -> None:
    """What was measured without it stays."""
    baseline = IdleBaseline()
    baseline.set_condition((None, frozenset()))
    _idle(baseline, 0, 30, 5.0)
    baseline.set_condition((None, _LOADED))
    _idle(baseline, 30, 60, 50.0)
    baseline.forget("model")
    assert (baseline.idle_w, list(baseline.figures)) == (None, [(None, frozenset())])


def test_a_figure_says_what_it_rests_on() -> None:
    """Half the distance between the quartiles, the seconds, and when the last of them ended."""
    baseline = IdleBaseline(settle_s=0.0)
    baseline.set_condition((None, _LOADED))
    for second, power_w in enumerate([10.0, 12.0] * 10):
        baseline.was_idle(float(second), second + 1.0, power_w)
    figure = baseline.figures[(None, _LOADED)]
    assert figure.power_w == pytest.approx(11.0)
    assert figure.spread_w == pytest.approx(1.0)
    assert (figure.measured_s, figure.until_s) == (20.0, 20.0)


def test_each_power_mode_has_its_own() -> None:
    """A mode never measured has no baseline; an old one is remembered."""
    baseline = IdleBaseline()
    baseline.set_condition(("MAXN", _LOADED))
    _idle(baseline, 0, 20, 11.2)
    baseline.set_condition(("MODE_30W", _LOADED))
    assert baseline.idle_w is None
    baseline.set_condition(("MAXN", _LOADED))
    assert baseline.idle_w == pytest.approx(11.2)


def test_baseline_is_refreshed() -> None:
    """A minute of idling at another level replaces the old figure."""
    baseline = IdleBaseline()
    baseline.set_condition((None, _LOADED))
    _idle(baseline, 0, 30, 10.0)
    _idle(baseline, 30, 100, 14.0)
    assert baseline.idle_w == pytest.approx(14.0)
