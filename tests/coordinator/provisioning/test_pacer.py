"""The pacer learns what a joule has to be worth, so that answers take an average of joules."""

from __future__ import annotations

import pytest

from moe2.coordinator.provisioning.pacer import MAX_RELATIVE_PRICE, Price, settled


def _after(spent_j: list[float], *, target_j: float, start: Price | None = None) -> Price:
    price = start or Price()
    for joules in spent_j:
        price = settled(price, joules, target_j)
    return price


def test_a_joule_is_free_at_first() -> None:
    """A budget that nothing was spent of asks for no thrift."""
    assert Price().price_per_j == 0.0


def test_dear_answers_raise_the_price() -> None:
    """An answer above the target makes joules dearer."""
    assert _after([300.0], target_j=200.0).price_per_j > 0.0


def test_cheap_answers_lower_the_price_to_nothing() -> None:
    """A price that is no longer needed falls to 0 and not below."""
    dear = _after([400.0] * 50, target_j=200.0)
    assert 0.0 < _after([100.0], target_j=200.0, start=dear).price_per_j < dear.price_per_j
    assert _after([100.0] * 200, target_j=200.0, start=dear).price_per_j == 0.0


def test_the_price_is_bounded() -> None:
    """A target that nobody can meet does not let the price grow for ever, nor does one monstrous answer."""
    assert _after([1e5] * 10_000, target_j=1.0).price_per_j == MAX_RELATIVE_PRICE
    assert _after([1e300], target_j=1e-3).price_per_j == pytest.approx(MAX_RELATIVE_PRICE / 1e-3)


def test_the_unit_of_energy_does_not_matter() -> None:
    """The same answers in a unit a thousand times as large give the same price per answer."""
    small = _after([300.0, 100.0, 500.0], target_j=200.0)
    large = _after([0.3, 0.1, 0.5], target_j=0.2)
    assert small.price_per_j * 200.0 == pytest.approx(large.price_per_j * 0.2)
