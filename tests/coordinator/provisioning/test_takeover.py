"""What hosts have been told by another coordinator, or by an earlier run, holds for this one as its own orders do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import Change, break_even_s
from moe2.coordinator.provisioning.steering import Away, Steering, Wishes
from moe2.coordinator.provisioning.trials import TRIAL_S

from .fleets import big, small, together

BOTH = together(big(), small())
ASLEEP = together(big(state=Readiness.ASLEEP), small())
COLD = together(big(state=Readiness.COLD), small())
AN_HOUR_S = 3600.0
PAYS_S = break_even_s(big().hosts[0], big().experts)


def watching(fleet: Fleet = BOTH, *, wishes: Wishes | None = None) -> Steering:
    """The memory of a coordinator that has looked on for an hour while another one decided."""
    made = Steering(max_changes_per_day=24, wishes=wishes or Wishes())
    made.seen(fleet, {}, 0.0, others_act=True)
    made.seen(fleet, {}, AN_HOUR_S, others_act=True)
    return made


def changes(made: Steering, wanted: set[str], now_s: float) -> list[tuple[Change, str]]:
    found = made.next_orders(wanted, now_s, wanted_again_s=lambda _: math.inf)
    return [(one.transition.change, one.transition.host) for one in found]


def unmeasured(fleet: Fleet) -> Fleet:
    """The fleet as it is before the big host's first sleep and first unloading."""
    hosts = tuple(replace(one, wake_s=None, wake_j=None) if one.key == "big" else one for one in fleet.hosts)
    experts = tuple(replace(one, load_j=None) if one.host == "big" else one for one in fleet.experts)
    return Fleet(hosts, experts)


def test_no_host_changes_again_within_the_break_even_time_of_anothers_change() -> None:
    """Who takes over a host that has just fallen asleep does not wake it before its sleep has paid for itself."""
    made = watching()
    made.seen(ASLEEP, {}, AN_HOUR_S + 10.0, others_act=True)
    assert changes(made, {"big/m"}, AN_HOUR_S + 9.0 + PAYS_S) == []
    assert changes(made, {"big/m"}, AN_HOUR_S + 10.0 + PAYS_S) == [(Change.WAKE, "big")]


def test_no_model_is_loaded_again_within_the_break_even_time_of_its_unloading() -> None:
    """A reload of 360 J pays after 14.4 s at the 25 W that the model adds."""
    made = watching()
    made.seen(COLD, {}, AN_HOUR_S + 10.0, others_act=True)
    assert changes(made, {"big/m", "small/s"}, AN_HOUR_S + 24.0) == []
    assert changes(made, {"big/m", "small/s"}, AN_HOUR_S + 25.0) == [(Change.LOAD, "big")]


def test_anothers_changes_count_for_the_day() -> None:
    """Twelve sleeps and wakes that another coordinator has ordered leave none of the day's 24."""
    made = watching()
    for nap in range(12):
        made.seen(ASLEEP, {}, AN_HOUR_S + 600.0 * nap, others_act=True)
        made.seen(BOTH, {}, AN_HOUR_S + 600.0 * nap + 300.0, others_act=True)
    assert changes(made, {"small/s"}, 4 * AN_HOUR_S) == []


def test_an_order_of_ones_own_counts_once() -> None:
    """What was asked for here and is then seen is one change."""
    made = watching()
    assert changes(made, {"small/s"}, AN_HOUR_S) == [(Change.SUSPEND, "big")]
    made.seen(ASLEEP, {}, AN_HOUR_S + 10.0)
    assert made.activity()["big"].changed_s == (AN_HOUR_S,)


@pytest.mark.parametrize(
    ("gone", "back"), [(ASLEEP, (Change.WAKE, None)), (COLD, (Change.LOAD, "big/m"))], ids=["asleep", "cold"]
)
def test_anothers_first_trial_is_ended_in_its_time(gone: Fleet, back: tuple[Change, str | None]) -> None:
    """What was put out of the way although its costs are unmeasured was put there to measure them, and comes back."""
    made = watching(unmeasured(BOTH))
    made.seen(unmeasured(gone), {}, AN_HOUR_S + 10.0, others_act=True)
    assert made.trial_ends(AN_HOUR_S + 9.0 + TRIAL_S) == ()
    [end] = made.trial_ends(AN_HOUR_S + 10.0 + TRIAL_S)
    assert (end.transition.change, end.transition.expert) == back


def test_what_is_measured_is_left_where_it_is_wanted_to_be() -> None:
    """A host whose costs are known sleeps because nobody wants it; it is brought back when nobody may act any more."""
    made = watching()
    made.seen(ASLEEP, {}, AN_HOUR_S + 10.0, others_act=True)
    assert made.trial_ends(2 * AN_HOUR_S) == ()
    assert made.away == (Away(host="big"),)
    assert [order.transition.change for order in made.return_orders(2 * AN_HOUR_S)] == [Change.WAKE]


def test_where_nobody_else_acts_nothing_is_to_be_brought_back() -> None:
    """An agent unloads models by itself, too, and in mode observe only an operator sends a host to sleep."""
    made = watching(unmeasured(BOTH))
    for gone in (COLD, ASLEEP):
        made.seen(unmeasured(gone), {}, AN_HOUR_S + 10.0)
        assert (made.away, made.trials.are_open) == ((), False)


def test_an_operators_word_to_another_coordinator_is_no_trial() -> None:
    """A host that is kept asleep stays so."""
    made = watching(unmeasured(BOTH), wishes=Wishes().with_sleep("big"))
    made.seen(unmeasured(ASLEEP), {}, AN_HOUR_S + 10.0, others_act=True)
    assert (made.away, made.trials.are_open) == ((), False)


def test_a_restart_does_not_forget_when_hosts_have_changed() -> None:
    """The next run keeps the break-even time of the last one's order; a time to come counts as now."""
    before = watching()
    assert changes(before, {"small/s"}, AN_HOUR_S) == [(Change.SUSPEND, "big")]
    for ahead_s in (0.0, 1e6):
        after = Steering(max_changes_per_day=24, wishes=Wishes())
        kept = {host: [at_s + ahead_s for at_s in changed_s] for host, changed_s in before.changes.items()}
        after.restore_changes(kept, AN_HOUR_S)
        after.seen(ASLEEP, {}, AN_HOUR_S)
        assert changes(after, {"big/m"}, AN_HOUR_S + PAYS_S - 1.0) == []
        assert changes(after, {"big/m"}, AN_HOUR_S + PAYS_S) == [(Change.WAKE, "big")]
