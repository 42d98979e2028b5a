"""How coordinators learn one price together: each adds what it has learned since the last time to what all have. PURE.

A step of the price depends on the answer that it was learned from and little on the price itself, so that the steps of
several coordinators add up, in whatever order they come.
"""

from __future__ import annotations

from msgspec.structs import replace

from moe2.coordinator.provisioning.pacer import is_sound
from moe2.coordinator.provisioning.price_book import SavedPrice

_ADDED = (
    "price_per_j",
    "usual_price_per_j",
    "slack",
    "variance_j2",
    "n_answers",
    "n_unmeasured",
    "spent_j",
    "recent_j",
    "recent_answers",
)


def merged(before: SavedPrice | None, own: SavedPrice, shared: SavedPrice | None) -> SavedPrice:
    """Returns the price that all coordinators go on with.

    before: what all had when this coordinator last took it over; None where it never has. own: what it has now. shared:
    what all have now; None where nobody has shared anything yet. A price of another target, or of another day, is left
    alone: that of the coordinator which has settled last counts.
    """
    if shared is None or not is_sound(shared) or _is_other(own, shared):
        return own
    if before is None or _is_other(own, before):
        return shared
    changes = {name: getattr(shared, name) + (getattr(own, name) - getattr(before, name)) for name in _ADDED}
    changes = {name: max(0, value) for name, value in changes.items()}
    is_news = own != before
    return replace(
        shared,
        **changes,
        owed_j=shared.owed_j + (own.owed_j - before.owed_j),
        saving_j=_mean(own.saving_j, shared.saving_j) if is_news else shared.saving_j,
        enough_per_j=own.enough_per_j if is_news else shared.enough_per_j,
        n_saturated=own.n_saturated if is_news else shared.n_saturated,
        target_j=own.target_j if is_news else shared.target_j,
        is_simulated=own.is_simulated if is_news else shared.is_simulated,
    )


def _is_other(one: SavedPrice, other: SavedPrice) -> bool:
    """Whether two prices are not of the same budget: another fixed target, or another day."""
    return one.day != other.day or (one.day is None and one.target_j != other.target_j)


def _mean(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return (one + other) / 2
