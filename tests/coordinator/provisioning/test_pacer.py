"""The pacer learns what a joule has to be worth, so that answers take an average of joules."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.fine_level import SAME_SCORE
from moe2.coordinator.provisioning.pacer import (
    ENOUGH,
    MAX_RELATIVE_PRICE,
    MAX_SAVED_FREE_ANSWERS,
    MAX_SLACK,
    SATURATED_ANSWERS,
    STEP,
    Price,
    is_sound,
    next_day,
    retargeted,
    settled,
    settled_of_day,
    unmeasured,
)


def after(spent_j: Iterable[float], *, target_j: float, start: Price | None = None, **how: Any) -> Price:
    price = start or Price()
    for joules in spent_j:
        price = settled(price, joules, target_j, **how)
    return price


def test_a_joule_is_free_at_first() -> None:
    """A budget that nothing was spent of asks for no thrift."""
    assert Price().price_per_j == 0.0


def test_dear_answers_raise_the_price() -> None:
    """An answer above the target makes joules dearer."""
    assert after([300.0], target_j=200.0).price_per_j > 0.0


def test_cheap_answers_lower_the_price_to_nothing() -> None:
    """A price that is no longer needed falls to 0 and not below."""
    dear = after([300.0] * 20, target_j=200.0)
    assert 0.0 < after([100.0], target_j=200.0, start=dear).price_per_j < dear.price_per_j
    assert after([100.0] * 400, target_j=200.0, start=dear).price_per_j == 0.0


def test_loose_times_pay_for_no_spree() -> None:
    """After a thousand cheap answers dear ones raise the price within about a hundred."""
    rested = after([10.0] * 1000, target_j=200.0)
    assert after([300.0] * 100, target_j=200.0, start=rested).price_per_j * 200.0 > 0.2


def test_the_price_is_slow() -> None:
    """Once it is learned, a single answer moves the price by no more than its share."""
    learned = after([260.0, 140.0] * 300, target_j=200.0)
    relative = settled(learned, 400.0, 200.0).price_per_j * 200.0 - learned.price_per_j * 200.0
    assert relative == pytest.approx(STEP, rel=0.1)


def test_the_price_is_bounded() -> None:
    """A target that nobody can meet does not let the price grow for ever, nor does one monstrous answer."""
    assert after([1e5] * 10_000, target_j=1.0).price_per_j == MAX_RELATIVE_PRICE
    assert after([1e300], target_j=1e-3).price_per_j <= MAX_RELATIVE_PRICE / 1e-3


@given(
    requests=st.lists(st.tuples(st.floats(0.0, 1e12), st.booleans(), st.booleans()), max_size=60),
    target_j=st.floats(1e-6, 1e9),
)
def test_whatever_is_spent_the_price_stays_sound(requests: list[tuple[float, bool, bool]], target_j: float) -> None:
    """No history makes a price negative, infinite or no number, of an average as of a day."""
    price = of_day = Price()
    for spent_j, is_answer, is_cheapest in requests:
        price = settled(price, spent_j, target_j, is_answer=is_answer, is_cheapest=is_cheapest)
        of_day = settled_of_day(of_day, spent_j, 0.0, target_j, is_answer=is_answer, is_cheapest=is_cheapest)
    for found in (price, of_day):
        assert is_sound(found)
        assert found.price_per_j * target_j <= MAX_RELATIVE_PRICE * (1 + 1e-9)


def test_the_unit_of_energy_does_not_matter() -> None:
    """The same answers in a unit a thousand times as large give the same price per answer."""
    small = after([300.0, 100.0, 500.0], target_j=200.0)
    large = after([0.3, 0.1, 0.5], target_j=0.2)
    assert small.price_per_j * 200.0 == pytest.approx(large.price_per_j * 0.2)


def test_a_request_without_an_answer_is_paid_by_the_answers() -> None:
    """Joules of a cancelled request raise the price, though they are fewer than an answer may take."""
    assert after([150.0], target_j=200.0, is_answer=False).price_per_j > 0.0
    assert after([150.0], target_j=200.0).price_per_j == 0.0
    assert after([150.0], target_j=200.0, is_answer=False).n_answers == 0


def test_unknown_joules_change_no_price() -> None:
    """A request that nobody measured is counted, and nothing is learned from it."""
    learned = after([300.0], target_j=200.0)
    blind = unmeasured(learned)
    assert (blind.price_per_j, blind.owed_j, blind.n_unmeasured) == (learned.price_per_j, learned.owed_j, 1)
    assert blind.mean_j == learned.mean_j


def test_a_price_that_can_do_no_more_does_not_grow() -> None:
    """Where the cheapest expert answers all the time, the price stays where a later relief finds it soon."""
    stuck = after([300.0] * 2000, target_j=200.0, is_cheapest=True)
    assert stuck.is_saturated
    assert stuck.price_per_j == after([300.0] * SATURATED_ANSWERS, target_j=200.0, is_cheapest=True).price_per_j
    assert not settled(stuck, 300.0, 200.0, is_cheapest=False).is_saturated


def test_a_price_that_a_few_dear_answers_led_to_is_soon_what_it_has_to_be() -> None:
    """Of two experts whose scores are 0.13 apart, one at 29 J and one at 11 J, fifty answers take 13 J within 3 %."""
    enough = 0.13 / 18.0
    price, spent_j = Price(), 0.0
    for _ in range(50):
        is_cheapest = price.price_per_j > enough
        joules = 11.0 if is_cheapest else 29.0
        spent_j += joules
        price = settled(price, joules, 13.0, is_cheapest=is_cheapest, saving_j=18.0, enough_per_j=enough)
        assert price.price_per_j <= ENOUGH * enough
    assert spent_j / 50 == pytest.approx(13.0, rel=0.03)


@pytest.mark.parametrize("ahead", [0.05, 0.13, 0.3, 0.5])
def test_twenty_answers_are_enough_for_a_price(ahead: float) -> None:
    """However far apart the scores of two experts are, twenty answers keep an average in the middle of their joules."""
    price, joules = Price(), []
    for _ in range(20):
        is_cheapest = ahead - price.price_per_j * 40.0 <= SAME_SCORE
        joules.append(20.0 if is_cheapest else 60.0)
        price = settled(price, joules[-1], 40.0, is_cheapest=is_cheapest, saving_j=40.0, enough_per_j=ahead / 40.0)
    assert sum(joules) / 20 == pytest.approx(40.0, rel=0.05)


def test_a_first_request_that_seems_to_save_much_does_not_slow_the_price_down() -> None:
    """What an answer can save is the mean of all so far: after ten more it is near theirs, not near the first one's."""
    price = settled(Price(), 34.0, 24.0, saving_j=400.0)
    for _ in range(10):
        price = settled(price, 34.0, 24.0, saving_j=8.0)
    assert price.saving_j == pytest.approx((400.0 + 10 * 8.0) / 11)


def test_the_dearest_of_the_latest_requests_bounds_the_price() -> None:
    """A price that is enough for this request may be too little for others; what was long ago is forgotten."""
    steep = settled(Price(), 300.0, 1.0, enough_per_j=0.5)
    assert settled(steep, 300.0, 1.0, enough_per_j=0.01).price_per_j > ENOUGH * 0.01
    # What a first request is predicted to take can be far off, and soon counts as one of many.
    assert after([300.0] * 20, target_j=1.0, start=steep, enough_per_j=0.01).price_per_j <= ENOUGH * 0.04
    assert after([300.0] * 400, target_j=1.0, start=steep, enough_per_j=0.01).price_per_j <= 1.1 * ENOUGH * 0.01


def test_another_target_forgets_what_was_owed() -> None:
    """What was spent under a former target is not paid back under the new one."""
    assert retargeted(after([300.0] * 50, target_j=200.0)).owed_j == 0.0


def test_the_mean_is_that_of_the_latest_answers() -> None:
    """The shown mean follows the last hundred answers or so; requests without an answer add to it."""
    price = after([100.0] * 500, target_j=200.0, start=after([300.0] * 500, target_j=200.0))
    assert price.mean_j == pytest.approx(100.0, abs=5.0)
    assert price.spent_j == 200_000.0
    assert Price().mean_j is None
    wasted = settled(settled(Price(), 100.0, 200.0), 50.0, 200.0, is_answer=False)
    assert wasted.mean_j == pytest.approx(150.0, rel=0.02)


def test_a_day_begins_with_the_usual_price() -> None:
    """What the last hours of a day have led to says nothing of the next one."""
    price = Price()
    for _ in range(200):
        price = settled_of_day(price, 220.0, 200.0, 200.0)
    usual = price.usual_price_per_j
    for _ in range(20):
        price = settled_of_day(price, 220.0, 0.0, 200.0)
    assert price.price_per_j > 1.2 * usual
    assert next_day(price).price_per_j == pytest.approx(usual, rel=0.15)


@pytest.mark.parametrize("target_j", [120.0, 180.0, 240.0])
def test_the_average_is_kept_from_the_first_thousand_on(target_j: float) -> None:
    """Of three experts that suit each prompt differently, a thousand answers take the target within one percent."""
    drawn = random.Random(5)
    price, spent_j = Price(), 0.0
    for _ in range(1000):
        offers = [(0.45 + drawn.gauss(0, 0.1), 100.0), (0.55 + drawn.gauss(0, 0.1), 180.0), (0.7, 300.0)]
        _, joules = max(offers, key=lambda offer: offer[0] - price.price_per_j * offer[1])
        joules *= math.exp(drawn.gauss(0, 0.2) - 0.02)
        spent_j += joules
        price = settled(price, joules, target_j)
    assert spent_j / 1000 == pytest.approx(target_j, rel=0.01)


def test_an_average_that_needs_a_small_price_is_not_missed_from_below() -> None:
    """Where dear experts are hardly better and the target a little below what all would take, joules are not saved:
    the mean of six thousands of answers is within one percent, and each within two."""
    shares = []
    for seed in range(6):
        drawn = random.Random(seed)
        offers = [[(0.61 + drawn.gauss(0, 0.02), j) for j in (300.0, 1400.0, 2200.0)] for _ in range(1000)]
        target_j = 0.9 * sum(max(offer)[1] for offer in offers) / 1000
        price, spent_j = Price(), 0.0
        for offer in offers:
            _, joules = max(offer, key=lambda one: one[0] - price.price_per_j * one[1])
            spent_j += joules
            price = settled(price, joules, target_j, saving_j=1900.0)
        shares.append(spent_j / 1000 / target_j)
    assert shares == pytest.approx([1.0] * 6, rel=0.02)
    assert sum(shares) / 6 == pytest.approx(1.0, rel=0.01)


def test_what_was_saved_at_no_price_is_little_and_forgotten_with_the_target() -> None:
    """However long joules were free, the price begins to rise within a few dear answers; another target, or another
    day, forgets what was saved."""
    rested = after([10.0] * 1000, target_j=200.0)
    assert rested.slack == MAX_SLACK
    assert after([400.0] * 30, target_j=200.0, start=rested).price_per_j > 0.0
    assert retargeted(rested).slack == next_day(rested).slack == 0.0


def test_one_answer_that_takes_many_times_the_target_is_paid_for() -> None:
    """Where the dear expert takes twenty times the target, the mean of four thousands of answers holds within 2 %."""
    shares = []
    for seed in range(4):
        drawn = random.Random(seed)
        price, spent_j = Price(), 0.0
        for _ in range(1000):
            ahead = 0.2 + drawn.gauss(0, 0.1)
            joules = 8000.0 if ahead > price.price_per_j * 7800.0 else 200.0
            spent_j += joules
            enough = max(ahead, 0.0) / 7800.0
            price = settled(price, joules, 400.0, is_cheapest=joules == 200.0, saving_j=7800.0, enough_per_j=enough)
        shares.append(spent_j / 1000 / 400.0)
    assert sum(shares) / 4 == pytest.approx(1.0, rel=0.02)


Request = tuple[float, float, float, float, float]
"""How far the dear expert's score is ahead; joules of the cheap one, expected and taken; those of the dear one."""


def long_tailed(drawn: random.Random, share: float) -> Request:
    """One dear answer in a hundred is twelve times as long, and nobody knows before."""
    long = 12.0 if drawn.random() < 0.01 else 1.0
    cheap_j, dear_j = 400.0 * math.exp(drawn.gauss(-0.125, 0.5)), 4300.0 * math.exp(drawn.gauss(-0.125, 0.5)) * long
    return drawn.gauss(0.15, 0.1), 400.0, cheap_j, 4800.0, dear_j


def two_kinds(drawn: random.Random, share: float) -> Request:
    """Three of ten are hard: the dear expert is worth it there, and all answers are three times as long."""
    is_hard = drawn.random() < 0.3
    length, ahead = (3.0, 0.35) if is_hard else (1.0, 0.02)
    cheap_j, dear_j = (joules * length * math.exp(drawn.gauss(-0.045, 0.3)) for joules in (100.0, 600.0))
    return drawn.gauss(ahead, 0.05), 100.0 * length, cheap_j, 600.0 * length, dear_j


def drifting(drawn: random.Random, share: float) -> Request:
    """Answers are half as long again in the end, and the dear expert is less and less worth it."""
    length = 1.0 + 0.5 * share
    cheap_j, dear_j = (joules * length * math.exp(drawn.gauss(-0.045, 0.3)) for joules in (100.0, 500.0))
    return drawn.gauss(0.3 - 0.15 * share, 0.1), 100.0 * length, cheap_j, 500.0 * length, dear_j


def off_target(requests: list[Request], target_j: float) -> float:
    """How far the mean of these requests' joules is from the target, as a share of it; the price begins at nothing."""
    price, spent_j = Price(), 0.0
    for ahead, cheap_expected_j, cheap_j, dear_expected_j, dear_j in requests:
        saving_j = dear_expected_j - cheap_expected_j
        is_cheapest = ahead - price.price_per_j * saving_j <= SAME_SCORE
        joules = cheap_j if is_cheapest else dear_j
        spent_j += joules
        enough = max(ahead, 0.0) / saving_j
        price = settled(price, joules, target_j, is_cheapest=is_cheapest, saving_j=saving_j, enough_per_j=enough)
    return spent_j / len(requests) / target_j - 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("kind", [long_tailed, two_kinds, drifting])
def test_the_average_is_kept_whatever_the_answers_are_like(
    kind: Callable[[random.Random, float], Request], share: float
) -> None:
    """A thousand answers take the target within one percent in the mean of forty runs, and hardly one is 5 % off."""
    runs = [[kind(drawn, n / 1000) for n in range(1000)] for drawn in map(random.Random, range(40))]
    everything = [request for requests in runs for request in requests]
    cheap_j = sum(request[2] for request in everything) / len(everything)
    free_j = sum(request[4] if request[0] > SAME_SCORE else request[2] for request in everything) / len(everything)
    target_j = cheap_j + share * (free_j - cheap_j)
    off = [off_target(requests, target_j) for requests in runs]
    assert sum(off) / len(off) == pytest.approx(0.0, abs=0.01)
    assert sum(abs(one) > 0.05 for one in off) <= 1


def test_what_monstrous_answers_take_is_missing_in_no_mean() -> None:
    """Where one answer in two hundred takes 25 targets, four thousand are within one percent, and little is owed."""
    off, owed = [], []
    for seed in range(10):
        drawn = random.Random(seed)
        price, spent_j = Price(), 0.0
        for _ in range(4000):
            ahead = drawn.gauss(0.2, 0.1)
            is_dear = ahead > price.price_per_j * 650.0
            joules = (10_000.0 if drawn.random() < 1 / 200 else 700.0) if is_dear else 100.0
            spent_j += joules
            enough = max(ahead, 0.0) / 650.0
            price = settled(price, joules, 400.0, is_cheapest=not is_dear, saving_j=650.0, enough_per_j=enough)
        off.append(spent_j / 4000 / 400.0 - 1)
        owed.append(price.owed_j / 400.0)
    assert sum(off) / 10 == pytest.approx(0.0, abs=0.01)
    assert abs(sum(owed) / 10) < 5.0


def test_a_monstrous_first_answer_is_soon_unlearned() -> None:
    """A first answer of fifty targets leads to no higher price than one that it could have been saved from."""
    monstrous = settled(Price(), 50_000.0, 1000.0, saving_j=3000.0, enough_per_j=0.002)
    large = settled(Price(), 2000.0, 1000.0, saving_j=3000.0, enough_per_j=0.002)
    assert 0.0 < monstrous.price_per_j <= 1.1 * large.price_per_j


def test_what_a_price_that_was_too_high_has_saved_is_given_back() -> None:
    """What forty answers can save is remembered where a price has saved it, and fewer where joules were free."""
    dear = after([4000.0] * 30, target_j=1000.0, saving_j=3000.0, enough_per_j=0.01)
    saved = after([100.0] * 250, target_j=1000.0, start=dear, saving_j=3000.0, enough_per_j=0.01)
    assert saved.price_per_j > 0.0
    assert saved.owed_j < -120_000.0
    assert after([400.0] * 1000, target_j=1000.0, saving_j=3000.0).owed_j == -MAX_SAVED_FREE_ANSWERS * 3000.0
