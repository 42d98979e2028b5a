"""The price of a joule, learned online so that answers cost an average of joules. PURE.

At the optimum of an average budget each prompt is answered by the expert with the largest `score - price * joules`,
with one price for all prompts: the multiplier of the budget. A primal-dual step after each answer finds it,

    price <- max(0, price + step * (spent - target))

(dual gradient descent; Zinkevich 2003). The step is slow on purpose: a price that follows single answers makes the next
prompt pay for the last one, and loses what one price for all gains.
"""

from __future__ import annotations

import msgspec

STEP = 0.01
"""Change of the relative price (price times target) by an answer that takes twice the target."""
MAX_RELATIVE_PRICE = 4.0
"""Largest price times target: joules of one target are then worth four times the best score there is."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price that one average budget has learned."""

    price_per_j: float = 0.0
    """Score, 0..1, that one joule has to bring."""
    n_settled: int = 0
    """Answers that it was learned from."""


def settled(price: Price, spent_j: float, target_j: float) -> Price:
    """The price after a request has taken `spent_j` joules where `target_j` on average are wanted.

    Both are finite, `spent_j` not negative and `target_j` positive. A request whose joules nobody knows is no reason to
    change a price, so it is not settled at all.
    """
    relative = price.price_per_j * target_j + STEP * (spent_j / target_j - 1.0)
    return Price(price_per_j=min(max(relative, 0.0), MAX_RELATIVE_PRICE) / target_j, n_settled=price.n_settled + 1)
