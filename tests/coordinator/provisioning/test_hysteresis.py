"""Hosts change state when that pays, not too soon, not too often, and nobody goes before whoever comes is there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import (
    DAY_S,
    TRUST,
    Activity,
    Change,
    Rules,
    Transition,
    break_even_s,
    transitions,
)

from .fleets import big, host, small, together

RULES = Rules()
BOTH = together(big(), small())


def found(
    fleet: Fleet,
    wanted: set[str],
    *,
    idle_s: float = 1e6,
    again_s: float = math.inf,
    rules: Rules = RULES,
    now_s: float = 1e7,
    **doing: Activity,
) -> tuple[Transition, ...]:
    """The transitions of a fleet whose hosts have been idle for `idle_s`, but for those in `doing`."""
    activity = {one.key: doing.get(one.key, Activity(idle_since_s=now_s - idle_s)) for one in fleet.hosts}
    return transitions(fleet, wanted, activity, now_s, wanted_again_s=lambda _: again_s, rules=rules)


def test_who_is_not_wanted_goes_to_sleep() -> None:
    """A host that nobody wants for long is suspended, with what that saves and costs."""
    [one] = found(BOTH, {"small/s"})
    assert (one.change, one.host) == (Change.SUSPEND, "big")
    assert one.saves_w == pytest.approx(49.0)
    assert one.costs_j == pytest.approx(1660.0)


def test_nobody_sleeps_before_it_pays() -> None:
    """A host that has just become idle waits for part of its break-even time."""
    pays_s = break_even_s(BOTH.hosts[0], BOTH.on("big"))
    assert found(BOTH, {"small/s"}, idle_s=TRUST * pays_s - 1.0) == ()
    assert found(BOTH, {"small/s"}, idle_s=TRUST * pays_s + 1.0) != ()


def test_a_short_absence_is_waited_out() -> None:
    """Where a host is predicted to be wanted before sleep pays, it waits longer, in case the prediction is wrong."""
    pays_s = break_even_s(BOTH.hosts[0], BOTH.on("big"))
    assert found(BOTH, {"small/s"}, idle_s=pays_s, again_s=pays_s / 2) == ()
    assert found(BOTH, {"small/s"}, idle_s=pays_s / TRUST + 1.0, again_s=pays_s / 2) != ()


def test_busy_hosts_stay() -> None:
    """Nothing that runs is cut."""
    assert found(BOTH, {"small/s"}, big=Activity(busy=1)) == ()


def test_a_change_under_way_is_left_alone() -> None:
    """A host that is changing gets no second command."""
    assert found(BOTH, {"small/s"}, big=Activity(is_changing=True)) == ()


def test_who_is_wanted_is_woken() -> None:
    """A sleeping host that is wanted is woken."""
    fleet = together(big(state=Readiness.ASLEEP), small())
    assert [(one.change, one.host) for one in found(fleet, {"big/m", "small/s"})] == [(Change.WAKE, "big")]


def test_nobody_goes_before_whoever_comes_is_there() -> None:
    """The board is awake until the workstation that replaces it is ready."""
    asleep = together(big(state=Readiness.ASLEEP), small())
    assert [one.change for one in found(asleep, {"big/m"})] == [Change.WAKE]
    assert [one.change for one in found(together(big(state=Readiness.LOADING), small()), {"big/m"})] == []
    assert [one.host for one in found(BOTH, {"big/m"})] == ["small"]


def test_no_two_changes_within_the_break_even_time() -> None:
    """A host that has just gone to sleep is not woken before it has slept for long enough to pay."""
    fleet = together(big(state=Readiness.ASLEEP), small())
    pays_s = break_even_s(fleet.hosts[0], fleet.on("big"))
    for since_s, expected in ((pays_s - 1.0, 0), (pays_s + 1.0, 1)):
        doing = Activity(changed_s=(1e7 - since_s,))
        assert len(found(fleet, {"big/m"}, big=doing)) == expected


def test_changes_a_day_are_bounded() -> None:
    """A host that has used up its changes stays awake, and one that sleeps has kept one to come back with."""
    used = Activity(changed_s=tuple(1e7 - 80_000.0 + 1000.0 * k for k in range(23)))
    assert found(BOTH, {"small/s"}, big=used) == ()
    asleep = together(big(state=Readiness.ASLEEP), small())
    assert [one.change for one in found(asleep, {"big/m"}, big=used)] == [Change.WAKE]


@pytest.mark.slow
def test_over_a_random_year_no_host_changes_more_often_than_allowed() -> None:
    """However wishes toggle, no host has more than 24 changes in any day, nor two within its break-even time."""
    rng = np.random.default_rng(4)
    changed: list[float] = []
    fleet, now_s = BOTH, 0.0
    state = Readiness.READY
    pays_s = break_even_s(fleet.hosts[0], fleet.on("big"))
    for _ in range(20_000):
        now_s += float(rng.choice([20.0, 60.0, 300.0, 1500.0]))
        fleet = together(big(state=state), small())
        wanted = {"big/m"} if rng.random() < 0.5 else {"small/s"}
        doing = Activity(idle_since_s=now_s - float(rng.uniform(0, 2000)), changed_s=tuple(changed[-40:]))
        for one in found(fleet, wanted, now_s=now_s, again_s=float(rng.uniform(0, 1e4)), big=doing):
            if one.host == "big":
                changed.append(now_s)
                state = Readiness.ASLEEP if one.change is Change.SUSPEND else Readiness.READY
    assert len(changed) > 100
    gaps = np.diff(changed)
    assert gaps.min() >= pays_s
    assert max(sum(1 for other in changed if at - DAY_S < other <= at) for at in changed) <= 24


def test_an_unmeasured_host_is_never_sent_to_sleep() -> None:
    """Without measured joules of waking there is nothing to weigh."""
    fleet = together(replace(big(), hosts=(host("big", wake_j=None, may_unload=False),)), small())
    assert found(fleet, {"small/s"}) == ()


def test_an_operator_is_obeyed() -> None:
    """A host sent to sleep goes although it is wanted, a pinned one stays and is woken, whatever that costs."""
    sent = Rules(keep_asleep=frozenset({"big"}))
    assert [one.host for one in found(BOTH, {"small/s"}, idle_s=0.0, rules=sent)] == ["big"]
    assert found(BOTH, {"small/s"}, rules=Rules(keep_awake=frozenset({"big"}))) == ()
    asleep = together(big(state=Readiness.ASLEEP), small())
    [woken] = found(asleep, {"small/s"}, rules=Rules(keep_awake=frozenset({"big"})))
    assert woken.change is Change.WAKE


def test_a_host_whose_wake_failed_is_not_counted_on() -> None:
    """It is not woken again, and nobody stays awake for its sake."""
    fleet = together(big(state=Readiness.ASLEEP), small(), small("other"))
    rules = Rules(unreachable=frozenset({"big"}))
    assert [(one.change, one.host) for one in found(fleet, {"big/m", "small/s"}, rules=rules)] == [
        (Change.SUSPEND, "other")
    ]


def test_where_a_host_may_not_sleep_its_models_are_unloaded() -> None:
    """A host that may only unload loses its idle models, and gets them back when they are wanted."""
    fleet = together(replace(big(), hosts=(host("big", may_suspend=False),)), small())
    [one] = found(fleet, {"small/s"})
    assert (one.change, one.expert, one.saves_w) == (Change.UNLOAD, "big/m", 25.0)
    cold = together(replace(big(state=Readiness.COLD), hosts=(host("big", may_suspend=False),)), small())
    [back] = found(cold, {"big/m", "small/s"})
    assert (back.change, back.expert) == (Change.LOAD, "big/m")
