"""The slow level remembers what is under way, what failed and what an operator wants, and what it would have saved."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import Change
from moe2.coordinator.provisioning.steering import TRIAL_AFTER_S, TRIAL_S, Order, Shadow, Steering, Wishes

from .fleets import big, expert, host, small, together

BOTH = together(big(), small())
ASLEEP = together(big(state=Readiness.ASLEEP), small())
AN_HOUR_S = 3600.0


def steering(fleet: Fleet = BOTH, *, wishes: Wishes | None = None) -> Steering:
    """A memory that has seen a fleet idle for an hour."""
    made = Steering(max_changes_per_day=24, wishes=wishes or Wishes())
    made.seen(fleet, {}, 0.0)
    made.seen(fleet, {}, AN_HOUR_S)
    return made


def orders(made: Steering, wanted: set[str], now_s: float = AN_HOUR_S) -> tuple[Order, ...]:
    return made.next_orders(wanted, now_s, wanted_again_s=lambda _: math.inf)


def test_an_order_is_given_once() -> None:
    """While a change is under way it is not asked for again."""
    made = steering()
    [one] = orders(made, {"small/s"})
    assert (one.transition.change, one.transition.host) == (Change.SUSPEND, "big")
    assert orders(made, {"small/s"}, AN_HOUR_S + 60.0) == ()


def test_a_change_ends_when_it_is_seen() -> None:
    """What a host is in is read from its report, whoever brought it there."""
    made = steering()
    orders(made, {"small/s"})
    made.seen(ASLEEP, {}, AN_HOUR_S + 30.0)
    assert not made.activity()["big"].is_changing
    assert made.warnings() == ()


def test_a_refusal_is_told_and_being_busy_is_not() -> None:
    """An agent that refuses is a notice with its reason; one that has just got a request is asked again later."""
    for code, told in (("not_allowed", 1), ("busy", 0)):
        made = steering()
        [one] = orders(made, {"small/s"})
        made.answered(one.order_id, done=False, code=code, message="because")
        assert len(made.warnings()) == told
        assert not made.activity()["big"].is_changing


def test_an_answer_to_nothing_changes_nothing() -> None:
    """An id that nobody has given out, as of a former coordinator, is ignored."""
    assert steering().answered("slow-99", done=False, code=None, message=None) is None


def test_a_wake_that_takes_too_long_is_given_up_until_the_host_is_seen() -> None:
    """After three times its measured seconds the host is not counted on; its return ends warning and bar."""
    made = steering(ASLEEP)
    assert made.wake("big", AN_HOUR_S, "a test") is not None
    assert made.overdue(AN_HOUR_S + 59.0) == ()
    [late] = made.overdue(AN_HOUR_S + 61.0)
    assert late.change is Change.WAKE
    assert made.unreachable == {"big"}
    assert [one.code for one in made.warnings()] == ["wake_failed"]
    assert orders(made, {"big/m"}, 2 * AN_HOUR_S) == ()
    made.seen(BOTH, {}, 3 * AN_HOUR_S)
    assert made.unreachable == frozenset()
    assert made.warnings() == ()


def test_a_host_is_woken_once_for_many_requests() -> None:
    """A second request for a host that is being woken gives no second order."""
    made = steering(ASLEEP)
    assert made.wake("big", AN_HOUR_S, "a request") is not None
    assert made.wake("big", AN_HOUR_S + 1.0, "a request") is None
    assert made.wake("small", AN_HOUR_S, "it is awake") is None
    assert made.wake("nobody", AN_HOUR_S, "it is unknown") is None


def test_an_operators_word_holds_whatever_the_traffic_is() -> None:
    """A host that is sent to sleep goes, although it is the only one wanted, and a pinned one that sleeps is woken."""
    [one] = steering(wishes=Wishes().with_sleep("big")).wished_orders(AN_HOUR_S)
    assert (one.transition.change, one.transition.host) == (Change.SUSPEND, "big")
    [other] = steering(ASLEEP, wishes=Wishes().with_pin("big")).wished_orders(AN_HOUR_S)
    assert (other.transition.change, other.transition.host) == (Change.WAKE, "big")


def test_the_last_word_counts() -> None:
    """A pin takes back a sleep, and the other way round; without either nothing is left."""
    assert Wishes().with_sleep("a").with_pin("a") == Wishes(pinned=("a",))
    assert Wishes().with_pin("a").with_sleep("a") == Wishes(kept_asleep=("a",))
    assert Wishes().with_pin("a").without("a") == Wishes()


def test_what_is_unmeasured_is_tried_beside_another_expert() -> None:
    """An idle expert of unknown watts is unloaded for two minutes and loaded again, once a day."""
    unknown = replace(big(), experts=(expert("big", ready_w=None),))
    fleet = together(unknown, small())
    made = steering(fleet)
    [out] = made.trial_orders(AN_HOUR_S)
    assert (out.transition.change, out.transition.expert) == (Change.UNLOAD, "big/m")
    cold = together(replace(unknown, experts=(expert("big", ready_w=None, readiness=Readiness.COLD),)), small())
    made.seen(cold, {}, AN_HOUR_S + 5.0)
    assert made.trial_orders(AN_HOUR_S + TRIAL_S - 1.0) == ()
    [back] = made.trial_orders(AN_HOUR_S + TRIAL_S + 1.0)
    assert (back.transition.change, back.transition.expert) == (Change.LOAD, "big/m")
    made.seen(fleet, {}, AN_HOUR_S + TRIAL_S + 10.0)
    assert made.trial_orders(AN_HOUR_S + TRIAL_S + TRIAL_AFTER_S + 60.0) == ()


@pytest.mark.parametrize("reason", ["alone", "busy", "not allowed", "pinned"])
def test_no_trial_costs_anybody_an_answer(reason: str) -> None:
    """Nobody is unloaded who is alone, busy, not allowed to be, or pinned."""
    unknown = replace(big(), experts=(expert("big", ready_w=None),))
    if reason == "not allowed":
        unknown = replace(unknown, hosts=(host("big", may_unload=False),))
    made = steering(unknown if reason == "alone" else together(unknown, small()))
    if reason == "busy":
        made.seen(together(unknown, small()), {"big": 1}, AN_HOUR_S)
    if reason == "pinned":
        made.wishes = Wishes().with_pin("big")
    assert made.trial_orders(AN_HOUR_S) == ()


def test_observing_counts_what_sleep_would_have_saved() -> None:
    """A host that would have slept for an hour has saved its watts for that hour, less what going and coming take."""
    shadow = Shadow(max_changes_per_day=24)
    for minute in range(121):
        shadow.step(BOTH, {"small/s"}, {}, 60.0 * minute, 0, wanted_again_s=lambda _: math.inf)
    # It would have gone in the first minutes.
    assert shadow.names == {"big/m"}
    assert shadow.waited_j == pytest.approx(49.0 * 7200.0, rel=0.05)
    assert shadow.saved_j == pytest.approx(shadow.waited_j - 1660.0)
    assert shadow.n_returns == 0


def test_a_request_on_a_host_that_would_sleep_wakes_it() -> None:
    """Where such a host answers after all, its return is counted, and nothing is saved meanwhile."""
    shadow = Shadow(max_changes_per_day=24)
    for minute in range(10):
        shadow.step(BOTH, {"small/s"}, {}, 60.0 * minute, 0, wanted_again_s=lambda _: math.inf)
    before = shadow.waited_j
    shadow.step(BOTH, {"small/s"}, {"big": 1}, 601.0, 0, wanted_again_s=lambda _: math.inf)
    assert shadow.n_returns == 1
    assert shadow.waited_j == before


def test_a_new_day_begins_anew() -> None:
    """Sums are of today."""
    shadow = Shadow(max_changes_per_day=24)
    for minute in range(60):
        shadow.step(BOTH, {"small/s"}, {}, 60.0 * minute, 0, wanted_again_s=lambda _: math.inf)
    shadow.step(BOTH, {"small/s"}, {}, 3600.0, 1, wanted_again_s=lambda _: math.inf)
    assert 0.0 < shadow.waited_j < 49.0 * 120.0
