"""What was never done with a host is tried once, where that costs nobody an answer, and the host is brought back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe2.coordinator.provisioning.decision import decide
from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import DAY_S, Change
from moe2.coordinator.provisioning.problem import Limits
from moe2.coordinator.provisioning.steering import Order, Steering, Wishes
from moe2.coordinator.provisioning.trials import (
    MAX_SLEEPS,
    TRIAL_AFTER_S,
    TRIAL_S,
    Circumstances,
    Trials,
    is_unmeasured,
)

from .fleets import big, expert, host, small, together, traffic

AN_HOUR_S = 3600.0
QUIET = Circumstances(spare={"big", "small"}, is_quiet=True)
UNSLEPT = {"wake_s": None, "wake_j": None, "suspend_s": None, "suspend_j": None, "wake_is_known": True}


def unslept(state: Readiness = Readiness.READY, changes: dict[str, object] | None = None) -> Fleet:
    """A workstation that has never slept, beside a board."""
    own = Fleet((host("big", **(UNSLEPT | (changes or {}))),), (expert("big", readiness=state),))
    return together(own, small())


def unloaded(state: Readiness = Readiness.READY) -> Fleet:
    """A workstation whose model was never out of memory, beside a board."""
    return together(Fleet((host("big"),), (expert("big", ready_w=None, readiness=state),)), small())


def steering(fleet: Fleet, *, wishes: Wishes | None = None) -> Steering:
    """A memory that has seen a fleet idle for an hour."""
    made = Steering(max_changes_per_day=24, wishes=wishes or Wishes())
    made.seen(fleet, {}, 0.0)
    made.seen(fleet, {}, AN_HOUR_S)
    return made


def what(orders: tuple[Order, ...]) -> list[tuple[str, str, str | None]]:
    return [(one.transition.change, one.transition.host, one.transition.expert) for one in orders]


def test_an_expert_of_unknown_watts_is_unloaded_for_two_minutes_and_once_a_day() -> None:
    """It is brought back by an order, and the day goes on without another trial."""
    made = steering(unloaded())
    assert what(made.trial_orders(AN_HOUR_S, QUIET)) == [("unload", "big", "big/m")]
    made.seen(unloaded(Readiness.COLD), {}, AN_HOUR_S + 5.0)
    assert made.trial_ends(AN_HOUR_S + TRIAL_S - 1.0) == ()
    assert what(made.trial_ends(AN_HOUR_S + TRIAL_S)) == [("load", "big", "big/m")]
    made.seen(unloaded(), {}, AN_HOUR_S + TRIAL_S + 10.0)
    assert made.trial_ends(AN_HOUR_S + TRIAL_S + 10.0) == ()
    assert made.trial_orders(AN_HOUR_S + DAY_S - 1.0, QUIET) == ()
    assert what(made.trial_orders(AN_HOUR_S + DAY_S, QUIET)) == [("unload", "big", "big/m")]


def test_a_host_that_has_never_slept_sleeps_for_two_minutes_and_is_woken() -> None:
    """What is measured then lets the slow level decide about it; nothing is tried once more."""
    made = steering(unslept())
    assert what(made.trial_orders(AN_HOUR_S, QUIET)) == [("suspend", "big", None)]
    assert made.falling == {"big"}
    made.seen(unslept(state=Readiness.ASLEEP), {}, AN_HOUR_S + 5.0)
    assert made.trial_ends(AN_HOUR_S + TRIAL_S - 1.0) == ()
    assert what(made.trial_ends(AN_HOUR_S + TRIAL_S)) == [("wake", "big", None)]
    assert made.trials.are_open
    made.seen(together(big(), small()), {}, AN_HOUR_S + TRIAL_S + 20.0)
    assert made.trial_ends(AN_HOUR_S + TRIAL_S + 20.0) == ()
    assert not made.trials.are_open
    assert made.would_try(AN_HOUR_S + 2 * DAY_S, QUIET) is None


def test_a_host_that_does_not_come_back_from_its_trial_is_named_and_left_until_it_is_seen() -> None:
    """No second wake, no second trial of anybody, not after a restart either; after two sleeps never again."""
    asleep = unslept(state=Readiness.ASLEEP)
    made = steering(unslept())
    made.trial_orders(AN_HOUR_S, QUIET)
    made.seen(asleep, {}, AN_HOUR_S + 5.0)
    made.trial_ends(AN_HOUR_S + TRIAL_S)
    assert [one.host for one in made.overdue(2 * AN_HOUR_S)] == ["big"]
    assert [one.code for one in made.warnings()] == ["wake_failed"]
    again = Steering(max_changes_per_day=24, wishes=Wishes())
    again.restore_not_woken(made.not_woken)
    again.trials.restore(made.trials.kept, 0.0)
    for after in (made, again):
        for now_s in (3 * AN_HOUR_S, 3 * DAY_S):
            after.seen(asleep, {}, now_s)
            assert after.trial_ends(now_s) == ()
            assert after.trial_orders(now_s, QUIET) == ()
    made.seen(unslept(), {}, 3 * DAY_S)
    made.trial_ends(3 * DAY_S)
    made.seen(unslept(), {}, 4 * DAY_S)
    assert what(made.trial_orders(4 * DAY_S, QUIET)) == [("suspend", "big", None)]
    assert made.trials.kept[0].n == MAX_SLEEPS
    made.lost("big", asleep=False)
    made.trial_ends(5 * DAY_S)
    assert made.trial_orders(6 * DAY_S, QUIET) == ()


def test_a_request_ends_a_trial_before_its_time() -> None:
    """A host that somebody needs is woken for that, and its trial is over."""
    made = steering(unslept())
    made.trial_orders(AN_HOUR_S, QUIET)
    made.seen(unslept(state=Readiness.ASLEEP), {}, AN_HOUR_S + 5.0)
    assert made.wake("big", AN_HOUR_S + 10.0, "a request that only it can serve") is not None
    assert made.trial_ends(AN_HOUR_S + TRIAL_S) == ()
    made.seen(unslept(), {"big": 1}, AN_HOUR_S + 30.0)
    assert made.trial_ends(AN_HOUR_S + 30.0) == ()
    assert not made.trials.are_open


@pytest.mark.parametrize("fleet", [unloaded, unslept])
def test_a_coordinator_that_is_restarted_in_a_trial_brings_the_host_back(fleet: object) -> None:
    """What was begun outlives it, and ends as long after the restart as a trial lasts."""
    assert callable(fleet)
    made = steering(fleet())
    [begun] = made.trial_orders(AN_HOUR_S, QUIET)
    away = fleet(state=Readiness.COLD if begun.transition.change is Change.UNLOAD else Readiness.ASLEEP)
    again = Steering(max_changes_per_day=24, wishes=Wishes())
    again.trials.restore(made.trials.kept, 7.0)
    again.seen(away, {}, 7.0)
    assert again.trial_ends(7.0 + TRIAL_S - 1.0) == ()
    [back] = again.trial_ends(7.0 + TRIAL_S)
    assert back.transition.change in (Change.LOAD, Change.WAKE)
    assert again.trial_orders(7.0 + TRIAL_S, QUIET) == ()


def test_an_agent_that_has_just_connected_is_not_taken_for_one_that_is_back() -> None:
    """Before its first report nobody knows whether its model is still out of memory, and the trial stays open."""
    made = steering(unloaded())
    made.trial_orders(AN_HOUR_S, QUIET)
    again = Steering(max_changes_per_day=24, wishes=Wishes())
    again.trials.restore(made.trials.kept, 0.0)
    again.seen(together(Fleet((host("big"),), ()), small()), {}, 1.0)
    assert again.trial_ends(1.0) == ()
    again.seen(unloaded(Readiness.COLD), {}, 2.0)
    assert what(again.trial_ends(TRIAL_S)) == [("load", "big", "big/m")]


@pytest.mark.parametrize(
    "reason", ["busy", "just idle", "pinned", "sent to sleep", "needed", "not a quiet hour", "another is away"]
)
@pytest.mark.parametrize("fleet", [unloaded, unslept])
def test_no_trial_costs_anybody_an_answer(fleet: object, reason: str) -> None:
    """Nobody is tried who answers, has just answered, is pinned or sent to sleep, or whom others cannot replace now."""
    assert callable(fleet)
    made, circumstances = steering(fleet()), QUIET
    match reason:
        case "busy":
            made.seen(fleet(), {"big": 1}, AN_HOUR_S)
        case "just idle":
            made.seen(fleet(), {"big": 1}, AN_HOUR_S - TRIAL_AFTER_S + 1.0)
        case "pinned":
            made.wishes = Wishes().with_pin("big")
        case "sent to sleep":
            made.wishes = Wishes().with_sleep("big")
        case "needed":
            circumstances = replace(QUIET, spare={"small"})
        case "not a quiet hour":
            circumstances = replace(QUIET, is_quiet=False)
        case _:
            made.next_orders({"big/m"}, AN_HOUR_S, wanted_again_s=lambda _: 1e9)
            assert made.has_pending
    assert made.trial_orders(AN_HOUR_S, circumstances) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"may_suspend": False},
        {"wake_is_known": False},
        {"awake_w": None},
        {"asleep_w": None},
        {"wake_s": 14.0, "wake_j": 1.0, "suspend_s": 1.0, "suspend_j": 1.0},
    ],
    ids=["not allowed", "no way to wake it is known", "no sensor", "nobody tells its watts asleep", "measured"],
)
def test_no_host_is_suspended_in_vain_or_for_ever(changes: dict[str, object]) -> None:
    """Only one that its agent lets go, that is known to be woken, and of which a sleep tells something."""
    assert steering(unslept(changes=changes)).trial_orders(AN_HOUR_S, QUIET) == ()


def test_a_plug_tells_what_a_host_draws_asleep() -> None:
    """Where one stands in front of it, its watts asleep need not be known before."""
    made = steering(unslept(changes={"asleep_w": None, "has_plug": True}))
    assert what(made.trial_orders(AN_HOUR_S, QUIET)) == [("suspend", "big", None)]


def test_a_host_near_its_most_changes_of_a_day_is_not_tried() -> None:
    """A trial is two changes of state as others are."""
    made = steering(unslept())
    made.max_changes_per_day = 1
    assert made.trial_orders(AN_HOUR_S, QUIET) == ()


def test_trials_of_a_host_that_is_gone_are_left_alone() -> None:
    """Nothing is asked of a host that nobody knows any more."""
    trials = Trials()
    made = steering(unslept())
    made.trial_orders(AN_HOUR_S, QUIET)
    trials.restore(made.trials.kept, 0.0)
    assert trials.ends(small(), {}, made.rules(), AN_HOUR_S) == ()


def test_hosts_are_spare_where_others_carry_the_traffic_and_the_models_asked_for() -> None:
    """One alone never is, unless the whole fleet may sleep; one whose model is asked for by name is not."""
    both = together(big(), small())
    assert decide(both, traffic(5), Limits(), 0.0).spare == {"big", "small"}
    assert decide(both, traffic(5, model="m"), Limits(), 0.0).spare == {"small"}
    assert decide(both, traffic(100_000), Limits(), 0.0).spare == frozenset()
    assert decide(big(), traffic(5), Limits(), 0.0).spare == frozenset()
    assert decide(big(), traffic(5), Limits(least_awake=0), 0.0).spare == {"big"}
    asleep = together(big(), small(state=Readiness.ASLEEP))
    assert decide(asleep, traffic(5), Limits(), 0.0).spare == {"small"}


def test_no_model_is_unloaded_where_nobody_measures_what_that_saves() -> None:
    """On a host without a power sensor a trial would tell nothing, day after day."""
    assert is_unmeasured(host(), expert(ready_w=None))
    assert not is_unmeasured(host(awake_w=None), expert(ready_w=None, load_j=None))
    assert not is_unmeasured(host(), expert())
