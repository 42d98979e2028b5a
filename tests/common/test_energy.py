"""The energy record: null is not zero."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.energy import Energy, Quality, Scope, total, unmeasured, worst_quality

MEASURED = Energy(joules=2.0, marginal_joules=1.0, quality=Quality.MEASURED_COUNTER, scope=Scope.PSYS, source="rapl")

ENERGIES = st.builds(
    Energy,
    joules=st.none() | st.floats(0, 1e6),
    marginal_joules=st.none() | st.floats(0, 1e6),
    quality=st.sampled_from(Quality),
    scope=st.none() | st.sampled_from(Scope),
    source=st.none() | st.sampled_from(["nvml", "rapl"]),
    reason=st.none() | st.sampled_from(["a", "b"]),
)


def test_unmeasured_is_unknown_with_a_reason() -> None:
    """It is neither zero nor silent about why."""
    energy = unmeasured("no sensor")
    assert energy.joules is None
    assert energy.marginal_joules is None
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == "no sensor"


@given(st.lists(ENERGIES, max_size=6))
def test_a_sum_is_unknown_as_soon_as_one_part_is(parts: list[Energy]) -> None:
    """A sum that left a part out would understate."""
    energy = total(parts)
    for name in ("joules", "marginal_joules"):
        values = [getattr(part, name) for part in parts]
        if not parts or None in values:
            assert getattr(energy, name) is None
        else:
            assert getattr(energy, name) == pytest.approx(sum(values))


@given(st.lists(ENERGIES, min_size=1, max_size=6))
def test_a_sum_claims_the_worst_quality_of_its_parts(parts: list[Energy]) -> None:
    """One estimate makes the whole an estimate."""
    order = list(Quality)
    assert order.index(total(parts).quality) == max(order.index(part.quality) for part in parts)


@given(st.lists(ENERGIES, max_size=5))
def test_the_order_of_the_parts_does_not_matter(parts: list[Energy]) -> None:
    """Neither for what is known nor for what is claimed."""
    one, other = total(parts), total(reversed(parts))
    assert (one.quality, one.scope, one.source) == (other.quality, other.scope, other.source)
    assert (one.joules is None) == (other.joules is None)
    assert one.joules is None or one.joules == pytest.approx(other.joules)


def test_a_sum_of_nothing_is_unmeasured() -> None:
    """Nothing was measured is not: nothing was used."""
    assert total([]).joules is None
    assert worst_quality([]) is Quality.UNMEASURED


def test_a_known_zero_stays_a_zero() -> None:
    """Zero joules are a figure like any other."""
    assert total([MEASURED, Energy(joules=0.0, marginal_joules=0.0, quality=Quality.ESTIMATED)]).joules == 2.0


def test_a_sum_of_one_sensor_keeps_scope_and_source() -> None:
    """Where all parts agree it is known what the sum covers."""
    energy = total([MEASURED, MEASURED])
    assert (energy.joules, energy.scope, energy.source, energy.reason) == (4.0, Scope.PSYS, "rapl", None)


def test_a_sum_over_different_scopes_says_so() -> None:
    """A GPU's joules and a package's are added only with a word about it."""
    energy = total([MEASURED, Energy(joules=1.0, quality=Quality.ESTIMATED, scope=Scope.GPU_BOARD, source="nvml")])
    assert (energy.scope, energy.source) == (None, None)
    assert energy.reason == "sum over different scopes: gpu_board, psys"


def test_a_sum_tells_each_reason_once() -> None:
    """In the order in which they came."""
    assert total([unmeasured("b"), unmeasured("a"), unmeasured("b")]).reason == "b; a"


def test_qualities_are_ordered_from_best_to_worst() -> None:
    """Exact beats measured beats partial beats estimated beats simulated beats unknown."""
    order = [
        "exact",
        "measured_counter",
        "measured_integrated",
        "partial",
        "estimated",
        "simulated",
        "unmeasured",
    ]
    assert [str(quality) for quality in Quality] == order
    for better, worse in itertools.combinations(Quality, 2):
        assert worst_quality([worse, better]) is worse
