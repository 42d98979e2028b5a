"""Who is awake follows from traffic, worth, watts and capacity, and what is impossible is said with its correction."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.planning.proof import Status
from moe2.coordinator.provisioning.decision import (
    DAY_S,
    HourPlan,
    Leeway,
    Option,
    Tolerances,
    choose,
    decide,
    week_of,
    week_plans,
    week_price,
)
from moe2.coordinator.provisioning.figures import Fleet, Readiness
from moe2.coordinator.provisioning.problem import Limits, slow_problem
from moe2.coordinator.provisioning.shadow import Shadow
from moe2.coordinator.provisioning.statement import status_of
from moe2.coordinator.provisioning.traffic import HOUR_S, Asked, Traffic

from .fleets import big, expert, host, small, together, traffic

BOTH = together(big(), small())


def test_at_no_price_the_best_expert_is_awake() -> None:
    """Where joules of waiting cost nothing, the expert with the best score is in memory, and nobody superfluous."""
    assert decide(BOTH, traffic(60), Limits(), 0.0).members == ("big/m",)


def test_at_a_high_price_the_frugal_expert_is_awake() -> None:
    """Where joules of waiting are dear, the board answers alone, and what that loses is said."""
    found = decide(BOTH, traffic(5), Limits(), 1e-5)
    assert found.members == ("small/s",)
    assert found.loss == pytest.approx(0.05)
    assert found.status is Status.OPTIMAL
    assert found.standing_w is not None
    assert found.least_w == pytest.approx(found.standing_w)


def test_the_same_price_keeps_the_best_awake_when_many_ask() -> None:
    """A price that sends the workstation to sleep at five an hour keeps it awake at five hundred."""
    price = 1e-5
    assert decide(BOTH, traffic(5), Limits(), price).members == ("small/s",)
    assert decide(BOTH, traffic(500), Limits(), price).members == ("big/m",)


def test_long_prompts_need_an_expert_that_reads_fast() -> None:
    """Prompts that make the board late keep the workstation awake at a price at which short ones would not."""
    equal = together(big(), small(score=0.7))
    assert decide(equal, traffic(30, prompt=1000), Limits(), 5e-6).members == ("small/s",)
    found = decide(equal, traffic(30, prompt=4000), Limits(), 5e-6)
    assert found.members == ("big/m",)
    assert found.late == 0.0


def test_more_traffic_than_one_carries_keeps_several_awake() -> None:
    """Capacity is a need: a board that would make people queue is joined by others."""
    boards = together(small("a", score=0.7), small("b", score=0.7), small("c", score=0.7))
    assert len(decide(boards, traffic(60), Limits(), 1e-4).members) == 1
    assert len(decide(boards, traffic(1500), Limits(), 1e-4).members) >= 2


def test_a_model_that_is_asked_for_by_name_is_kept() -> None:
    """Requests for one model are worth something only to its experts."""
    found = decide(BOTH, traffic(60, model="s"), Limits(), 0.0)
    assert "small/s" in found.members


def test_requests_for_a_model_that_nobody_has_decide_nothing() -> None:
    """They are counted as late for everybody, whatever is in memory; nothing is subtracted from infinity."""
    assert decide(BOTH, (*traffic(60), *traffic(5, model="gone")), Limits(), 0.0).members == ("big/m",)
    assert decide(BOTH, traffic(5, model="gone"), Limits(), 1e-5).members == ("small/s",)


def test_watts_are_never_exceeded() -> None:
    """With an average of 20 W allowed the workstation sleeps, whatever it is worth."""
    found = decide(BOTH, traffic(60), Limits(average_w=20.0), 0.0)
    assert found.members == ("small/s",)
    assert found.standing_w is not None
    assert found.standing_w <= 20.0


def test_joules_per_answer_are_a_limit_by_rate() -> None:
    """One limit in joules per answer lets the workstation wait when many ask, and not when few do."""
    limits = Limits(joules_per_answer=9000.0)
    assert decide(BOTH, traffic(60), limits, 0.0).members == ("big/m",)
    assert decide(BOTH, traffic(8), limits, 0.0).members == ("small/s",)


def test_pins_above_the_watts_are_told_with_the_cheapest_correction() -> None:
    """A pinned workstation under 20 W is infeasible, and the correction names the watts and the pin."""
    found = decide(BOTH, traffic(60), Limits(average_w=20.0, pinned=frozenset({"big"})), 0.0)
    assert found.status is Status.INFEASIBLE
    assert found.members == ()
    assert found.correction is not None
    assert "20 W are allowed" in found.correction
    assert found.correction.endswith(f"or unpin {BOTH.hosts[0].name}.")


def test_a_limit_that_sleeping_hosts_alone_pass_is_told_as_it_was_set() -> None:
    """The operator's own figure is named, what is asked for instead is enough, and unpinning is not said to help."""
    limits = Limits(pinned=frozenset({"big"}), average_w=1.0)
    found = decide(big(), traffic(5), limits, 0.0)
    assert found.correction is not None
    assert "1 W are allowed" in found.correction
    assert "unpin" not in found.correction
    [asked] = re.findall(r"Allow (\d+) W", found.correction)
    assert decide(big(), traffic(5), replace(limits, average_w=float(asked)), 0.0).correction is None


def test_hosts_that_stay_awake_above_the_watts_are_told() -> None:
    """Hosts that cannot sleep draw more than is allowed, though what their experts add was never measured."""
    stuck = Fleet(
        (host(may_suspend=False, may_unload=False),), (expert(ready_w=None, load_s=None, load_j=None, energy=None),)
    )
    found = decide(stuck, traffic(5), Limits(average_w=20.0), 0.0)
    assert found.status is Status.INFEASIBLE
    assert found.correction is not None
    assert "20 W are allowed. Allow 27 W" in found.correction


def test_more_hosts_than_there_are_is_told() -> None:
    """A least number of hosts that the fleet does not have is named."""
    found = decide(BOTH, traffic(60), Limits(least_hosts={"m": 3}), 0.0)
    assert found.correction == "3 hosts with m are needed, and the fleet has 1. Ask for 1."


def test_memory_of_a_host_is_shared() -> None:
    """Two models that do not fit beside each other are not both kept in memory."""
    on = host("big", memory_bytes=10 * 2**30)
    models = tuple(
        expert("big", name, scores={"a": a, "b": b, "": 0.0}, memory_bytes=6 * 2**30)
        for name, a, b in (("m1", 0.9, 0.1), ("m2", 0.1, 0.9))
    )
    fleet = together(replace(big(), hosts=(on,), experts=models))
    found = decide(fleet, (*traffic(60, category="a"), *traffic(40, category="b")), Limits(), 0.0)
    assert found.members == ("big/m1",)


@pytest.mark.parametrize("state", [Readiness.READY, Readiness.ASLEEP])
def test_what_is_not_measured_stays_as_it_is(state: Readiness) -> None:
    """An expert of a host whose wake was never measured is neither sent to sleep nor woken, and the reason is told."""
    unmeasured = replace(big(state=state), hosts=(host("big", wake_j=None, may_unload=False),))
    found = decide(together(unmeasured, small()), traffic(5), Limits(), 1e-3)
    assert ("big/m" in found.members) is (state is Readiness.READY)
    assert dict(found.stays)["big/m"] == "unmeasured: wake_j"


def test_a_host_that_may_do_nothing_is_left_alone() -> None:
    """Where the agent allows neither, its expert stays in memory."""
    fixed = replace(big(), hosts=(host("big", may_suspend=False, may_unload=False),))
    found = decide(together(fixed, small()), traffic(5), Limits(), 1e-3)
    assert "big/m" in found.members


def test_an_empty_fleet_and_no_traffic_are_answers() -> None:
    """No traffic at all keeps the least awake that is asked for."""
    assert decide(BOTH, (), Limits(), 0.0).members == ("small/s",)
    assert decide(BOTH, (), Limits(least_awake=0), 0.0).members == ()


def test_no_needless_change_for_a_little_better() -> None:
    """Of two equal hosts the one that is awake stays awake, as waking the other costs joules."""
    for awake, asleep in (("a", "b"), ("b", "a")):
        fleet = together(big(awake), big(asleep, state=Readiness.ASLEEP))
        assert decide(fleet, traffic(60), Limits(), 1e-6).members == (f"{awake}/m",)


def twins(awake_w: float, asleep_w: float, score: float = 0.7) -> Fleet:
    """Two hosts alike but for their watts awake and the score of the second, of which the second sleeps."""
    first = Fleet((host("a", awake_w=awake_w),), (expert("a"),))
    second = Fleet((host("b", awake_w=asleep_w),), (expert("b", readiness=Readiness.ASLEEP, scores={"": score}),))
    return together(first, second)


def test_of_hosts_that_cost_alike_the_one_that_is_awake_stays() -> None:
    """Noise of two watts in idle power, and of a tenth of a point in scores, wakes nobody; the proof stays true."""
    rng = np.random.default_rng(3)
    for watts, score in zip(rng.uniform(25.0, 27.0, 12).tolist(), rng.uniform(0.699, 0.701, 12).tolist(), strict=True):
        found = decide(twins(27.0, watts, score), traffic(20), Limits(), 1e-6)
        assert found.members == ("a/m",)
        assert found.least_w is not None
        assert found.standing_w is not None
        assert found.least_w <= found.standing_w


def test_a_host_that_costs_clearly_less_is_woken() -> None:
    """So is one that answers clearly better, where joules of waiting are cheap."""
    assert decide(twins(27.0, 15.0), traffic(20), Limits(), 1e-6).members == ("b/m",)
    assert "b/m" in decide(twins(27.0, 27.0, 0.72), traffic(20), Limits(), 1e-8).members


def test_who_is_awake_does_not_stay_where_it_makes_requests_late() -> None:
    """A board that is awake and late gives way to a workstation, however many watts it draws."""
    slow = together(big(state=Readiness.ASLEEP), small(score=0.7))
    assert "big/m" in decide(slow, traffic(30, prompt=4000), Limits(), 1e-7).members


def test_a_dear_answer_counts_by_its_price() -> None:
    """With a price of an answer's joules, the expert whose answers take fewer is preferred at equal scores."""
    cheap = expert("small", "s", scores={"": 0.7}, energy=None)
    assert cheap.energy is None
    equal = together(big(), small(score=0.69))
    slow = slow_problem(equal, traffic(60), Limits(price_per_j=1e-3))
    assert slow.value.shape == (96, 2)
    assert (slow.value[:, 0] < 0.7).all()


@pytest.mark.slow
def test_the_price_of_a_week_keeps_the_tolerances() -> None:
    """Over a week of busy days and quiet nights the chosen sets lose no more than allowed, for the nights."""
    seen = Traffic()
    seen.passed(0.0)
    for hour in range(168):
        n = 60 if 8 <= hour % 24 < 20 else 4
        seen.note_all(Asked(hour * HOUR_S + k * HOUR_S / n, "chat", None, 1000, 200) for k in range(n))
    plans = week_plans(BOTH, week_of(seen, 168 * HOUR_S), Limits())
    price = week_price(plans, Tolerances(quality_loss=0.005))
    chosen = [(plan, choose(plan.options, plan.rate_per_s, price)) for plan in plans]
    total = sum(plan.rate_per_s for plan, _ in chosen)
    loss = sum(plan.rate_per_s * one.loss for plan, one in chosen) / total
    assert 0.0 < loss <= 0.005
    nights = [one for hour, (_, one) in enumerate(chosen) if not 8 <= hour % 24 < 20]
    assert sum(one.loss > 0.0 for one in nights) > len(nights) / 2


def test_patience_is_kept_in_every_hour() -> None:
    """A price that has one answer in ten of a night late leaves the fast host awake, where late is one in twenty."""
    equal = together(big(), small(score=0.7))
    night = (replace(traffic(1)[0], lengths=((1000, 200),) * 9 + ((4000, 200),)),)
    assert decide(equal, night, Limits(), 1e-3).members == ("small/s",)
    assert decide(equal, night, Limits(), 1e-3).late == pytest.approx(0.1, abs=0.02)
    kept = decide(equal, night, Limits(hourly_late_share=0.05), 1e-3)
    assert (kept.members, kept.late) == (("big/m",), 0.0)
    plans = week_plans(equal, (night,), Limits(hourly_late_share=0.05))
    assert [option.members for option in plans[0].options] == [(0,)]


def test_patience_that_nobody_keeps_is_no_reason_to_be_awake() -> None:
    """Where every set is as late, or the whole fleet may sleep, the price decides as before."""
    equal = together(big(), small(score=0.7))
    assert decide(equal, traffic(1, prompt=400_000), Limits(hourly_late_share=0.05), 1e-3).members == ("small/s",)
    night = (replace(traffic(1)[0], lengths=((1000, 200),) * 9 + ((4000, 200),)),)
    asleep = decide(equal, night, Limits(hourly_late_share=0.05, least_awake=0), 1e-3)
    assert asleep.members == decide(equal, night, Limits(least_awake=0), 1e-3).members != ("big/m",)


def test_patience_is_kept_in_every_category() -> None:
    """A rare category whose prompts are long is not late for the sake of a common one whose prompts are short."""
    equal = together(big(), small(score=0.7))
    rare = replace(traffic(0.01, prompt=4000)[0], category="code")
    both = (*traffic(1, prompt=100), rare)
    slow = slow_problem(equal, both, Limits(hourly_late_share=0.05))
    assert slow.quality((1,))[1] < 0.05
    assert slow.worst_late((1,)) == 1.0
    assert decide(equal, both, Limits(hourly_late_share=0.05), 1e-3).members == ("big/m",)


def test_no_tolerance_is_no_price() -> None:
    """Where nothing may be given up, only what loses nothing is chosen."""
    options = (
        Option((0,), 50.0, 0.0, 0.0, 50.0, Status.OPTIMAL),
        Option((1,), 10.0, 0.05, 0.0, 10.0, Status.OPTIMAL),
    )
    price = week_price([HourPlan(0.01, options)], Tolerances(quality_loss=0.0, late_share=0.0))
    assert choose(options, 0.01, price).members == (0,)


def test_a_day_that_loses_too_much_lowers_the_price() -> None:
    """The price falls from four fifths of the day's tolerance on, to nothing at the whole of it, and comes back."""
    leeway = Leeway(Tolerances(quality_loss=0.01, late_share=0.1))
    assert leeway.factor(0.0, 100.0) == 1.0
    for second in range(9):
        leeway.answered(float(second), loss=0.0, late=True)
    assert leeway.factor(10.0, 100.0) == pytest.approx(0.5)
    leeway.answered(11.0, loss=0.0, late=True)
    assert leeway.factor(12.0, 100.0) == 0.0
    assert leeway.factor(DAY_S + 20.0, 100.0) == 1.0


def test_a_fleet_that_nobody_may_change_needs_no_plan() -> None:
    """Where no agent allows anything, no hour has options, and the decision still tells what the fleet draws."""
    hosts = (host("a", may_suspend=False, may_unload=False), host("b", may_suspend=False, may_unload=False))
    still = Fleet(hosts, (expert("a"), expert("b")))
    assert week_plans(still, (traffic(60.0),), Limits()) == ()
    assert decide(still, traffic(60.0), Limits(), 0.0).members == ("a/m", "b/m")
    free = replace(still, hosts=(host("a"), hosts[1]))
    assert len(week_plans(free, (traffic(60.0),), Limits())[0].options) > 0


def test_what_was_never_measured_is_said_to_be_unknown() -> None:
    """A fleet of which no speed is known yet shows neither watts nor late tokens, and no zero in their place."""
    unmeasured = Fleet(big().hosts, tuple(replace(one, latency=None, energy=None) for one in big().experts))
    for fleet, is_known in ((unmeasured, False), (big(), True)):
        decided = decide(fleet, traffic(5), Limits(), 0.0)
        shadow = Shadow(max_changes_per_day=24)
        told = status_of("observe", decided, shadow, (), solve_s=None, pinned=(), kept_asleep=(), names={})
        shown = (told.standing_w, told.least_w, told.loss, told.late)
        assert [figure is not None for figure in shown] == [is_known] * 4
        assert told.awake == decided.members
