"""The enumeration of panels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe2.coordinator.evaluation.panels import Enumeration, PanelProblem

UNIT = hnp.arrays(float, 5, elements=st.floats(0.05, 0.95))


def problem(p: np.ndarray, energy: np.ndarray, delay: np.ndarray, **limits: float) -> PanelProblem:
    return PanelProblem(
        probabilities=p,
        energy_j=energy,
        delay_s=delay,
        available=np.ones(p.size, dtype=bool),
        max_energy_j=limits.get("max_energy_j", float("inf")),
        max_delay_s=limits.get("max_delay_s", float("inf")),
        max_experts=int(limits.get("max_experts", p.size)),
    )


@given(UNIT, UNIT, UNIT, st.floats(0, 3), st.floats(0, 1), st.integers(1, 5))
def test_the_panel_keeps_every_limit(
    p: np.ndarray, energy: np.ndarray, delay: np.ndarray, most_j: float, most_s: float, count: int
) -> None:
    """No panel overspends, is late or is too large; none is given only where no single expert fits."""
    panel = list(
        Enumeration().select(problem(p, energy, delay, max_energy_j=most_j, max_delay_s=most_s, max_experts=count))
    )
    assert energy[panel].sum() <= most_j
    assert all(delay[panel] <= most_s)
    assert len(panel) <= count
    assert bool(panel) == bool(((energy <= most_j) & (delay <= most_s)).any())


@given(UNIT, UNIT, UNIT)
def test_a_panel_of_one_is_the_likeliest_expert(p: np.ndarray, energy: np.ndarray, delay: np.ndarray) -> None:
    """Without limits and with one seat, the largest probability wins."""
    (chosen,) = Enumeration().select(problem(p, energy, delay, max_experts=1))
    assert p[chosen] == pytest.approx(p.max(), abs=1e-9)


def test_ties_go_to_the_cheaper_expert() -> None:
    """Equal value: fewer joules."""
    p = np.array([0.5, 0.5])
    assert Enumeration().select(problem(p, np.array([2.0, 1.0]), np.ones(2), max_experts=1)) == (1,)


def test_large_fleets_are_refused() -> None:
    """Enumeration is for small fleets and says so."""
    with pytest.raises(ValueError, match="at most 10"):
        Enumeration().select(problem(np.full(11, 0.5), np.ones(11), np.ones(11)))
