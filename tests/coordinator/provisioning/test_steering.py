"""The slow level remembers what is under way, what failed and what an operator wants, and what it would have saved."""

from __future__ import annotations

import math

import pytest

from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import Change
from moe2.coordinator.provisioning.shadow import Shadow
from moe2.coordinator.provisioning.steering import Away, Order, Steering, Wishes

from .fleets import big, small, together

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


def test_an_answer_of_an_earlier_run_is_not_taken_for_ones_own() -> None:
    """Two runs of a coordinator give no order the same id."""
    before, after = (Steering(max_changes_per_day=24, wishes=Wishes(), run=run) for run in ("a", "b"))
    for made in (before, after):
        made.seen(BOTH, {}, 0.0)
        made.seen(BOTH, {}, AN_HOUR_S)
    [old], [new] = orders(before, {"small/s"}), orders(after, {"small/s"})
    assert after.answered(old.order_id, done=False, code="not_allowed", message=None) is None
    assert after.answered(new.order_id, done=False, code="not_allowed", message=None) == new.transition


@pytest.mark.parametrize("asleep", [True, False])
def test_an_agent_that_is_lost_on_its_way_to_sleep_has_forgotten_it(asleep: bool) -> None:
    """One that was killed comes back without the order, which may be given again; one that sleeps has obeyed it."""
    made = steering()
    orders(made, {"small/s"})
    assert made.falling == {"big"}
    made.lost("big", asleep=asleep)
    assert made.activity()["big"].is_changing is asleep
    made.lost("nobody", asleep=asleep)


def test_a_wake_outlasts_the_end_of_a_session() -> None:
    """A host that is woken while its agent still says goodbye stays told to wake."""
    made = steering(ASLEEP)
    assert made.wake("big", AN_HOUR_S, "a request") is not None
    made.lost("big", asleep=False)
    assert made.waking("big")


def test_hosts_that_were_not_woken_are_not_counted_on_after_a_restart_either() -> None:
    """The next run has the bar and the named warning from the first moment, until the host is seen."""
    made = steering(ASLEEP)
    made.wake("big", AN_HOUR_S, "a test")
    made.overdue(2 * AN_HOUR_S)
    again = Steering(max_changes_per_day=24, wishes=Wishes())
    again.restore_not_woken(made.not_woken)
    again.seen(ASLEEP, {}, 0.0)
    assert again.unreachable == {"big"}
    [warning] = again.warnings()
    assert warning.message.startswith("big was not woken")
    again.seen(BOTH, {}, 1.0)
    assert again.unreachable == frozenset()
    assert again.warnings() == ()


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


# --- When mode act is over --------------------------------------------------------------------------------------------

COLD = together(big(state=Readiness.COLD), small())


def slept(made: Steering, fleet: Fleet = ASLEEP, now_s: float = AN_HOUR_S + 30.0) -> Steering:
    """The memory after its own order has put the big host out of the way."""
    orders(made, {"small/s"})
    made.seen(fleet, {}, now_s)
    return made


def test_what_the_slow_level_put_to_sleep_is_brought_back_when_it_may_not_act_any_more() -> None:
    """The host is woken once, and nothing is left to bring back when it is seen awake."""
    made = slept(steering())
    assert made.away == (Away(host="big"),)
    [back] = made.return_orders(AN_HOUR_S + 40.0)
    assert (back.transition.change, back.transition.host) == (Change.WAKE, "big")
    assert made.return_orders(AN_HOUR_S + 41.0) == ()
    made.seen(BOTH, {}, AN_HOUR_S + 60.0)
    assert not made.away


def test_an_unloaded_model_is_loaded_again() -> None:
    """An expert that was unloaded is brought back by itself, its host being awake."""
    made = Steering(max_changes_per_day=24, wishes=Wishes())
    made.restore_away((Away(host="big", expert="big/m"),))
    made.seen(COLD, {}, 0.0)
    [back] = made.return_orders(1.0)
    assert (back.transition.change, back.transition.expert) == (Change.LOAD, "big/m")


def test_an_order_that_is_still_under_way_is_remembered() -> None:
    """A host that has been told to sleep and is still awake is not taken for one that has come back."""
    made = slept(steering(), BOTH)
    assert made.away == (Away(host="big"),)
    assert made.return_orders(AN_HOUR_S + 40.0) == ()
    made.seen(ASLEEP, {}, AN_HOUR_S + 50.0)
    assert len(made.return_orders(AN_HOUR_S + 51.0)) == 1


def test_a_refused_order_leaves_nothing_to_bring_back() -> None:
    """An agent that did not suspend its host has nothing to be woken from."""
    made = steering()
    [one] = orders(made, {"small/s"})
    made.answered(one.order_id, done=False, code="not_allowed", message="because")
    made.seen(BOTH, {}, AN_HOUR_S + 30.0)
    assert made.away == ()


def test_what_an_operator_has_sent_to_sleep_stays_asleep() -> None:
    """An operator's word outlives the mode, also where it came after the slow level's own order."""
    made = steering(wishes=Wishes(kept_asleep=("big",)))
    orders(made, {"small/s"})
    made.seen(ASLEEP, {}, AN_HOUR_S + 30.0)
    assert made.away == ()
    later = slept(steering())
    later.wishes = Wishes(kept_asleep=("big",))
    assert later.return_orders(AN_HOUR_S + 40.0) == ()


def test_a_host_that_could_not_be_woken_is_not_called_again_and_again() -> None:
    """It is left until its agent is seen."""
    made = slept(steering())
    made.return_orders(AN_HOUR_S + 40.0)
    made.overdue(2 * AN_HOUR_S)
    assert made.return_orders(2 * AN_HOUR_S + 1.0) == ()


def test_a_host_that_is_not_known_yet_waits_for_its_agent() -> None:
    """After a restart nothing is ordered of hosts that have not been heard of, and nothing is forgotten."""
    made = Steering(max_changes_per_day=24, wishes=Wishes())
    made.restore_away((Away(host="big"), Away(host="gone")))
    made.seen(small(), {}, 0.0)
    assert made.return_orders(1.0) == ()
    assert len(made.away) == 2
