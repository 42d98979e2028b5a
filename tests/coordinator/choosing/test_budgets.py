"""Tests of whose limits are in force for a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.request import NO_BUDGETS, Budgets, Wish, budgets_for

LIMITS = [name for name in Budgets.model_fields if name.endswith(("_j", "_s"))]
limits = st.fixed_dictionaries({}, optional={name: st.floats(0, 1e6) for name in LIMITS})


@given(limits, limits, limits, limits)
def test_the_first_who_sets_a_limit_sets_it(
    wish: dict[str, float], key: dict[str, float], category: dict[str, float], default: dict[str, float]
) -> None:
    """Each limit comes from the request, else its key, else its category, else the default category."""
    categories = {"code": Budgets.model_validate(category), "default": Budgets.model_validate(default)}
    in_force = budgets_for(Wish.model_validate(wish), "code", categories, Budgets.model_validate(key))
    for name in LIMITS:
        expected = next((source[name] for source in (wish, key, category, default) if name in source), None)
        assert getattr(in_force, name) == expected


def test_a_key_without_budgets_changes_nothing() -> None:
    """A key without budgets leaves the same budgets in force as no key."""
    categories = {"default": Budgets(energy_budget_j=5.0)}
    assert budgets_for(Wish(), "code", categories, NO_BUDGETS) == budgets_for(Wish(), "code", categories)
