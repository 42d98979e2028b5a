"""Prices that coordinators learn together, as arithmetic."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.provisioning.price_book import SavedPrice, merged

steps = st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 0.5), st.booleans()), max_size=60)


@given(steps)
def test_every_step_counts_once_in_whatever_order_it_is_shared(steps: list[tuple[int, float, bool]]) -> None:
    """Two coordinators raise a price and share it now and then; in the end both have the sum of all steps."""
    shared: SavedPrice | None = None
    begun = SavedPrice(target_j=10.0)
    own, before = [begun, begun], [begun, begun]

    def share(who: int) -> None:
        nonlocal shared
        own[who] = before[who] = shared = merged(before[who], own[who], shared)

    for who, step, is_shared in steps:
        price = own[who]
        own[who] = SavedPrice(target_j=10.0, price_per_j=price.price_per_j + step, n_answers=price.n_answers + 1)
        if is_shared:
            share(who)
    for who in (0, 1, 0):
        share(who)
    assert own[0] == own[1]
    assert own[0].n_answers == len(steps)
    assert math.isclose(own[0].price_per_j, math.fsum(step for _, step, _ in steps), abs_tol=1e-9)


def test_a_price_of_another_target_is_not_added_to() -> None:
    """Where the configurations differ each coordinator keeps its own price."""
    own, other = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=20.0, price_per_j=0.1)
    assert merged(own, own, other) == own


def test_a_coordinator_that_starts_takes_over_what_all_have() -> None:
    """The price in a restarted coordinator's file is in the shared one already, and is not added again."""
    own, shared = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=10.0, price_per_j=0.6)
    assert merged(None, own, shared) == shared


def test_a_damaged_price_is_replaced() -> None:
    """A shared price that nobody can have learned is replaced by one's own."""
    own, shared = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=10.0, price_per_j=math.inf)
    assert merged(own, own, shared) == own
