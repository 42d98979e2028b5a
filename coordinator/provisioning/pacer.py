"""The price of a joule, learned online so that answers cost an average of joules. PURE.

At the optimum of an average budget each prompt is answered by the expert with the largest `score - price * joules`,
with one price for all prompts: the multiplier of the budget. A primal-dual step after each request finds it,

    price <- max(0, price + step * (spent - target))

(dual gradient descent; Zinkevich 2003). The step is slow on purpose: a price that follows single answers makes the next
prompt pay for the last one, and loses what one price for all gains. While the price is being found, too much is spent;
so that the mean keeps the target all the same, what is owed is paid back over the next few hundred answers. Where the
price has to be small, steps would often lead below nothing, and a price that forgets it each time is too high in the
mean: what is left of such a step is kept as slack, which later steps use up first (Zinkevich's lazy projection).
"""

from __future__ import annotations

import math

import msgspec

STEP = 0.01
"""Change of the relative price, the price times what an answer can save, by an answer that much above the target.

What an answer can save is the usual difference between the dearest and the cheapest expert: where hosts cost nearly
alike, few joules have to be worth much for any choice to change."""
MIN_SAVING = 0.02
"""Least share of the target that an answer counts as able to save."""
MAX_NOISE = 1.5
"""Where joules vary so much that their variance, times this, exceeds the square of what an answer can save, steps are
smaller by as much: the price would follow lengths of answers instead of its target."""
DAY_STEP = 0.02
"""The step under a daily limit, which has only a day's requests to learn from and refuses the rest."""
FIRST_STEP = 0.3
"""The step of the first answer where it is not known which price is enough. The n-th takes an n-th of it, down to the
usual step."""
FIRST_SHARE = 2.0
"""The step of the first answer as a multiple of the price that is enough: one that is above the target by half of what
it could have saved leads there."""
MAX_FIRST_STEP = 1.0
MAX_FIRST_EXCESS = 1.0
"""Most that an answer counts in the first steps, as a multiple of what it could have saved: a first answer of many
times the target would lead to a price that hundreds of answers have to unlearn."""
MAX_RELATIVE_PRICE = 10.0
"""Largest relative price: what an answer can save is then worth ten times the best score there is."""
MAX_EXCESS = 4.0
"""Most that one answer changes the price by at once, as a multiple of the target, or of what an answer can save where
that is more: a single monstrous one does not set the price. What is above it counts later, as `late_j`."""
LATE_ANSWERS = 100
"""Answers over which the rest of a monstrous one comes to count. Left out for good it would be missing in the mean that
the price settles at, and so much would be owed for ever."""
PAY_BACK_ANSWERS = 100
"""Answers over which what was spent above the target is paid back."""
MAX_OWED_ANSWERS = 200
"""Most that is paid back, in answers of the target: an average is not kept by starving for ever."""
MAX_SAVED_ANSWERS = 100
"""Most that is remembered as spent below the target under a price, in answers of the target, or of what an answer can
save where that is more: what a price that was too high has saved is given back."""
MAX_SAVED_FREE_ANSWERS = 30
"""The same where joules were free: loose times do not pay for a spree, but many cheap answers do for the one dear
answer among them."""
ENOUGH = 1.5
"""Largest price, as a multiple of the one at which the cheapest experts answer everything: a higher one changes no
answer, and would have to be unlearned answer by answer."""
MAX_SLACK = 0.2
"""Most that the relative price is remembered to be below nothing: twenty answers that are above the target by what an
answer can save."""
SATURATED_ANSWERS = 30
"""After so many requests in a row that could not have been answered for less, a higher price would change nothing."""
MIN_USUAL = 0.002
"""Least weight of the latest answer in the usual price, which so looks back on about five hundred."""
_MEMORY = 0.99
"""Factor on a request's weight in the moving mean at each later one: it looks back on about a hundred."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price that one average budget has learned, and what was spent under it."""

    price_per_j: float = 0.0
    """Score, 0..1, that one joule has to bring."""
    usual_price_per_j: float = 0.0
    """The mean of the prices so far, the latest with more weight."""
    owed_j: float = 0.0
    """Joules spent above the target that are to be paid back; negative where less was spent."""
    late_j: float = 0.0
    """Joules of monstrous answers that the price has not yet counted."""
    slack: float = 0.0
    """How far below nothing the latest steps led the relative price, 0 to `MAX_SLACK`."""
    saving_j: float | None = None
    """Joules between the dearest and the cheapest expert, in the mean; None where nobody has told yet."""
    enough_per_j: float | None = None
    """Price at which the cheapest expert would have answered all of the latest requests; None where nobody can tell."""
    variance_j2: float = 0.0
    """How much the joules of an answer vary about their moving mean, in square joules."""
    n_answers: int = 0
    """Answers that it was learned from."""
    spent_j: float = 0.0
    """Joules that were spent, on answers and on requests that ended without one."""
    n_unmeasured: int = 0
    """Requests that it did not learn from because nobody knows their joules."""
    n_saturated: int = 0
    """Requests in a row that could not have been answered for less."""
    recent_j: float = 0.0
    """Joules of the latest requests, weighted by `_MEMORY`."""
    recent_answers: float = 0.0
    """Answers among these, weighted alike."""

    @property
    def mean_j(self) -> float | None:
        """Joules per answer over about the last hundred answers; None before the first."""
        return self.recent_j / self.recent_answers if self.recent_answers > 0.0 else None

    @property
    def is_saturated(self) -> bool:
        """True where the target cannot be kept: what answers the latest requests is the cheapest there is."""
        return self.n_saturated >= SATURATED_ANSWERS and self.price_per_j > 0.0


def settled(
    price: Price,
    spent_j: float,
    target_j: float,
    *,
    is_answer: bool = True,
    is_cheapest: bool = False,
    saving_j: float | None = None,
    enough_per_j: float | None = None,
) -> Price:
    """The price after a request has taken `spent_j` joules where answers are to take `target_j` on average.

    Both are finite, `spent_j` not negative and `target_j` positive. is_answer: False for a request that ended without
    an answer, whose joules the answers have to save. is_cheapest: True where nobody could have taken fewer joules.
    saving_j: joules between the dearest and the cheapest expert that could have answered; None where unknown.
    enough_per_j: the price at which the cheapest one would have answered; None where unknown.
    """
    price = _saw(price, is_cheapest=is_cheapest, saving_j=saving_j, enough_per_j=enough_per_j)
    excess_j, change_j = spent_j - (target_j if is_answer else 0.0), 0.0
    large_j = max(target_j, price.saving_j or 0.0)
    if excess_j <= 0.0 or price.n_saturated < SATURATED_ANSWERS:
        n_saved = MAX_SAVED_ANSWERS if price.price_per_j > 0.0 else MAX_SAVED_FREE_ANSWERS
        saved_j = min(-n_saved * large_j, price.owed_j)
        owed_j = min(max(price.owed_j + excess_j, saved_j), MAX_OWED_ANSWERS * target_j)
        at_once_j = min(excess_j, MAX_EXCESS * large_j)
        late_j = price.late_j * (1 - 1 / LATE_ANSWERS) + excess_j - at_once_j
        change_j = at_once_j + price.late_j / LATE_ANSWERS + owed_j / PAY_BACK_ANSWERS
        price = msgspec.structs.replace(price, owed_j=owed_j, late_j=min(late_j, MAX_OWED_ANSWERS * target_j))
    return _counted(_moved(price, STEP, change_j, target_j), spent_j, is_answer=is_answer)


def settled_of_day(
    price: Price,
    spent_j: float,
    target_j: float,
    usual_j: float,
    *,
    is_answer: bool = True,
    is_cheapest: bool = False,
    saving_j: float | None = None,
    enough_per_j: float | None = None,
) -> Price:
    """The price after a request under a daily limit that has taken `spent_j` joules.

    target_j: what is left of the day for each answer to come, 0 or more. It falls by itself where too much is spent, so
    that nothing is owed. usual_j: the day's limit for each of its answers, positive. The rest is as in `settled`.
    """
    price = _saw(price, is_cheapest=is_cheapest, saving_j=saving_j, enough_per_j=enough_per_j)
    excess_j = spent_j - (target_j if is_answer else 0.0)
    excess_j = max(min(excess_j, MAX_EXCESS * max(usual_j, price.saving_j or 0.0)), -MAX_EXCESS * usual_j)
    if excess_j > 0.0 and price.n_saturated >= SATURATED_ANSWERS:
        excess_j = 0.0
    return _counted(_moved(price, DAY_STEP, excess_j, usual_j), spent_j, is_answer=is_answer)


def next_day(price: Price) -> Price:
    """The price at the beginning of a day: the usual one, not what the last hours of the former day have led to."""
    return msgspec.structs.replace(price, price_per_j=price.usual_price_per_j, slack=0.0, n_saturated=0)


def is_sound(price: Price) -> bool:
    """True for figures that can have been learned; a damaged state file can say anything."""
    prices = (price.price_per_j, price.usual_price_per_j, price.enough_per_j or 0.0)
    joules = (
        price.late_j,
        price.slack,
        price.spent_j,
        price.saving_j or 0.0,
        price.variance_j2,
        price.recent_j,
        price.recent_answers,
    )
    counts = (price.n_answers, price.n_unmeasured, price.n_saturated)
    return all(0.0 <= figure < math.inf for figure in (*prices, *joules, *counts)) and math.isfinite(price.owed_j)


def unmeasured(price: Price) -> Price:
    """The price after a request whose joules nobody knows: it stays, as what is unknown is no reason to change it."""
    return msgspec.structs.replace(price, n_unmeasured=price.n_unmeasured + 1)


def retargeted(price: Price) -> Price:
    """The price to go on with under another target: what was owed or saved under the former one is forgotten."""
    return msgspec.structs.replace(price, owed_j=0.0, late_j=0.0, slack=0.0, n_saturated=0)


def _saw(price: Price, *, is_cheapest: bool, saving_j: float | None, enough_per_j: float | None) -> Price:
    """The price with what the request's experts would have taken."""
    # Early on all requests count alike: what the first ones are predicted to take can be far off.
    weight = max(1 - _MEMORY, 1.0 / (price.n_answers + 1))
    known_per_j = price.enough_per_j
    if enough_per_j is not None:
        faded_per_j = 0.0 if known_per_j is None else known_per_j + weight * (enough_per_j - known_per_j)
        known_per_j = max(enough_per_j, faded_per_j)
    known_j = price.saving_j
    if saving_j is not None:
        known_j = saving_j if known_j is None else known_j + weight * (saving_j - known_j)
    n_saturated = price.n_saturated + 1 if is_cheapest else 0
    return msgspec.structs.replace(price, saving_j=known_j, enough_per_j=known_per_j, n_saturated=n_saturated)


def _moved(price: Price, step: float, change_j: float, target_j: float) -> Price:
    """The price after a step for an answer that was `change_j` joules above its target."""
    saving_j = target_j if price.saving_j is None else min(max(price.saving_j, MIN_SAVING * target_j), target_j)
    measure_j = max(saving_j, MAX_NOISE * price.variance_j2 / saving_j)
    first = FIRST_STEP
    if price.enough_per_j is not None:
        first = min(FIRST_SHARE * price.enough_per_j * saving_j, MAX_FIRST_STEP)
    excess = change_j / measure_j
    first *= min(max(excess, -MAX_FIRST_EXCESS), MAX_FIRST_EXCESS) / (price.n_answers + 1)
    change = max(step * excess, first, key=abs)
    relative = price.price_per_j * saving_j - price.slack + change
    price_per_j = min(max(relative, 0.0), MAX_RELATIVE_PRICE) / saving_j
    if price.enough_per_j is not None:
        price_per_j = min(price_per_j, ENOUGH * price.enough_per_j)
    weight = max(MIN_USUAL, 1.0 / (price.n_answers + 1))
    usual = price.usual_price_per_j + weight * (price_per_j - price.usual_price_per_j)
    slack = min(max(-relative, 0.0), MAX_SLACK)
    return msgspec.structs.replace(price, price_per_j=price_per_j, slack=slack, usual_price_per_j=usual)


def _counted(price: Price, spent_j: float, *, is_answer: bool) -> Price:
    """The price with a request's joules in its sums."""
    mean_j, variance_j2 = price.mean_j, price.variance_j2
    if mean_j is not None and is_answer:
        away_j = min(spent_j - mean_j, MAX_EXCESS * max(mean_j, price.saving_j or 0.0))
        variance_j2 = _MEMORY * variance_j2 + (1 - _MEMORY) * away_j**2
    return msgspec.structs.replace(
        price,
        variance_j2=variance_j2,
        n_answers=price.n_answers + is_answer,
        spent_j=price.spent_j + spent_j,
        recent_j=_MEMORY * price.recent_j + spent_j,
        recent_answers=_MEMORY * price.recent_answers + is_answer,
    )
