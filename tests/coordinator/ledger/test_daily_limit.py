"""Choices within a key's daily limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from moe2.common.cost import Spread
from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.request import Demand, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.ledger.accounts import Accounts, Amount
from moe2.coordinator.ledger.daily_limit import is_limited, p95_of, select_within_limits, with_elsewhere
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.planning.problem import Quantile
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.bookkeeper import burnt_j, known_j, reservation_of
from moe2.coordinator.serving.life import Lifecycle
from tests.coordinator.experts import cost, expert, request, selector, speed

TODAY = "2026-11-23"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FAST_AND_DEAR = expert("dear", "m-8b", latency=speed(1000.0, 100.0), energy=cost(10.0))
SLOW_AND_CHEAP = expert("cheap", "m-1b", latency=speed(1000.0, 10.0), energy=cost(1.0))
UNMEASURED = expert("unmeasured", latency=speed(1000.0, 1000.0))
TOKENS = 8
"""A demand for which the expensive expert needs 80 J and the cheap one 8 J."""


def decide(
    limit_j: float | None,
    *,
    spent_j: float | None = 0.0,
    reserved_j: float = 0.0,
    burnt_j: float = 0.0,
    attempts_j: float = 0.0,
    now: datetime = NOON,
    **fields: Any,
) -> Selection | NoExpert:
    """attempts_j: what former attempts have taken of the request's own budgets."""
    key = Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=limit_j, tokens=fields.pop("tokens", None)))
    accounts = Accounts()
    accounts.settle(key, TODAY, "before", Amount(spent_j, fields.pop("spent_tokens", 0)))
    accounts.reserve(key, TODAY, "beside", Amount(reserved_j, fields.pop("reserved_tokens", 0)))
    experts = fields.pop("experts", (FAST_AND_DEAR, SLOW_AND_CHEAP))
    demand = fields.pop("demand", Demand(prompt_tokens=1, max_tokens=TOKENS))
    chooser = fields.pop("chooser", None) or selector()
    asked = SelectionRequest(model="moe2", demand=demand, spent_j=attempts_j, **fields)
    return select_within_limits(
        asked,
        lambda asked: chooser.select(asked, experts, {}, 0),
        key,
        accounts.left(key, TODAY),
        accounts.statement(key, TODAY),
        burnt_j=burnt_j,
        now=now,
    )


def answers(decided: Selection | NoExpert) -> str:
    assert isinstance(decided, Selection), decided
    return decided.first.expert.agent_id


def refused(decided: Selection | NoExpert) -> NoExpert:
    assert isinstance(decided, NoExpert)
    return decided


def test_with_room_the_choice_is_what_it_would_be_without_limit() -> None:
    """With room enough no budget is set on the request, so that equal requests are planned once."""
    decided = decide(1000.0)
    assert answers(decided) == "dear"
    assert isinstance(decided, Selection)
    assert decided.budgets.energy_budget_j is None


@pytest.mark.parametrize(("spent_j", "agent"), [(20.0, "dear"), (20.1, "cheap"), (92.0, "cheap")])
def test_what_is_left_decides_to_the_joule(spent_j: float, agent: str) -> None:
    """Of 100 J the cheaper expert answers exactly where the other one's p95 does not fit what is left."""
    assert answers(decide(100.0, spent_j=spent_j)) == agent


def test_a_spent_limit_says_what_was_spent_and_when_it_ends() -> None:
    """The refusal of a spent limit says what was spent and that it ends at midnight UTC."""
    refusal = refused(decide(100.0, spent_j=95.0))
    assert (refusal.code, refusal.retry_after_s) == ("budget_exhausted", 43_200)
    assert "limit 100 J, spent 95 J" in refusal.message
    assert "needs 8 J (p95)" in refusal.message
    assert "2026-11-24T00:00:00Z" in refusal.message


def test_what_is_only_reserved_may_be_free_soon() -> None:
    """A refusal because of reservations asks to try again soon, as requests rarely come to their p95."""
    assert refused(decide(100.0, reserved_j=95.0)).retry_after_s == 5


def test_more_than_a_whole_day_is_no_matter_of_waiting() -> None:
    """A request beyond a whole day's limit is refused with offers of what it would take."""
    refusal = refused(decide(5.0))
    assert (refusal.code, refusal.retry_after_s) == ("infeasible", None)
    assert refusal.plan is not None
    assert refusal.outlook is not None


@pytest.mark.parametrize(("own_j", "agent"), [(None, "middle"), (60.0, "middle"), (20.0, "cheap")])
def test_a_limit_and_a_budget_hold_together_at_p95(own_j: float | None, agent: str) -> None:
    """A budget that is kept at p50 does not soften the limit, and a tighter one than what is left stays in force."""
    # Half of the answers take an eighth of what is expected, and nearly all at most that.
    spread = Spread(p50=-2.0, p95=0.0)
    dear, middle = (
        expert(name, model, latency=speed(1000.0, rate), energy=msgspec.structs.replace(cost(joules), spread=spread))
        for name, model, rate, joules in (("dear", "m-8b", 100.0, 10.0), ("middle", "m-4b", 50.0, 5.0))
    )
    wish = Wish(energy_budget_j=own_j, quantile=Quantile.P50)
    assert answers(decide(100.0, spent_j=50.0, wish=wish, experts=(dear, middle, SLOW_AND_CHEAP))) == agent


def test_what_former_attempts_have_taken_is_taken_off_once() -> None:
    """The limit in force is what is left of the day; the planner takes the attempts' joules off a request's budget."""
    assert answers(decide(60.0, spent_j=50.0, attempts_j=9.0)) == "cheap"


def test_a_limit_of_nothing_is_told_as_such() -> None:
    """0 is a limit, and not the lack of one."""
    assert "limit 0 J, spent 0 J, reserved" in refused(decide(0.0)).message
    assert "limit 0, spent 0, reserved" in refused(decide(None, tokens=0)).message


def test_a_second_before_midnight_the_wait_is_a_second() -> None:
    """It is never 0, at which clients would ask again at once."""
    late = datetime(2026, 11, 23, 23, 59, 59, 800_000, tzinfo=UTC)
    assert refused(decide(100.0, spent_j=95.0, now=late)).retry_after_s == 1


def test_a_tighter_wish_stays_in_force() -> None:
    """A request's own tighter budget stays in force."""
    decided = decide(100.0, spent_j=50.0, wish=Wish(energy_budget_j=7.0))
    assert refused(decided).code == "infeasible"


def test_a_wish_for_p50_does_not_soften_the_limit() -> None:
    """Daily limits are held at p95, even if the request asks for p50."""
    decided = decide(100.0, spent_j=50.0, wish=Wish(quantile=Quantile.P50))
    assert answers(decided) == "cheap"


def test_an_unmeasured_expert_is_passed_over_under_a_limit() -> None:
    """An unmeasured expert is passed over under a limit, as nothing can be promised of it."""
    experts = (UNMEASURED, SLOW_AND_CHEAP)
    assert answers(decide(None, tokens=10_000, experts=experts)) == "unmeasured"
    assert answers(decide(100.0, experts=experts)) == "cheap"


def test_former_attempts_have_used_up_their_part() -> None:
    """After a failover only what the former attempts left may be used."""
    assert answers(decide(100.0, burnt_j=30.0, spent_j=0.0)) == "cheap"


def test_a_token_limit_takes_prompt_and_longest_answer() -> None:
    """A token limit has to hold the prompt and the longest answer: 9 tokens fit 9, not 8."""
    assert answers(decide(None, tokens=20, spent_tokens=11)) == "dear"
    refusal = refused(decide(None, tokens=20, spent_tokens=12))
    assert refusal.code == "budget_exhausted"
    assert "A smaller max_tokens needs less." in refusal.message


@pytest.mark.parametrize("length", [20, 2000])
def test_an_answer_without_a_limit_counts_with_its_learned_p95(length: int) -> None:
    """A token limit holds the prompt and the learned p95 of an answer without `max_tokens`, and is reserved as such."""
    endless = Demand(prompt_tokens=1, max_tokens=None)
    chooser = selector()
    for _ in range(200):
        chooser.lengths.answers.ended("default", "m-8b", endless, length, is_cut=False)
    chosen = chooser.select(SelectionRequest(model="moe2", demand=endless), (FAST_AND_DEAR,), {}, 0)
    assert isinstance(chosen, Selection)
    p95 = chosen.first.prediction.longest_tokens
    assert p95 is not None
    assert length <= p95 < 2 * length
    asked: dict[str, Any] = {"demand": endless, "chooser": chooser, "experts": (FAST_AND_DEAR,)}
    assert answers(decide(None, tokens=1 + p95, **asked)) == "dear"
    refusal = refused(decide(None, tokens=1 + p95, spent_tokens=1, **asked))
    assert refusal.code == "budget_exhausted"
    assert f"longest answer need {1 + p95}." in refusal.message
    life = Lifecycle(request=request(demand=endless), modes={})
    life.attempts.append(Attempt("job", chosen.first, chosen, 0.0, AttemptState.RUNNING, None))
    assert reservation_of(life).tokens == 1 + p95


def test_a_limit_of_tokens_that_no_answer_fits_is_refused_before_anything_is_planned() -> None:
    """Where not even the prompt and one token fit, the refusal needs no expert."""
    asked: dict[str, Any] = {"demand": Demand(prompt_tokens=8, max_tokens=None), "experts": ()}
    assert refused(decide(None, tokens=20, spent_tokens=12, **asked)).code == "budget_exhausted"


@pytest.mark.parametrize(
    ("energy_j", "tokens", "limited"), [(None, None, False), (1.0, None, True), (None, 1, True), (1.0, 1, True)]
)
def test_a_limit_of_either_kind_limits_a_key(energy_j: float | None, tokens: int | None, limited: bool) -> None:
    """A key is limited as soon as its joules or its tokens are."""
    assert is_limited(Principal(key_id="k1", name="app", daily=DailyLimits(energy_j, tokens))) is limited


def test_attempts_that_burnt_more_than_was_left_leave_nothing() -> None:
    """After attempts that overdrew the limit not even an expert of less than a joule may answer."""
    frugal = expert("frugal", latency=speed(1000.0, 10.0), energy=cost(0.05))
    assert answers(decide(100.0, experts=(frugal,))) == "frugal"
    assert refused(decide(100.0, burnt_j=200.0, experts=(frugal,))).code == "budget_exhausted"


def test_a_request_of_exactly_a_days_limit_may_fit_soon() -> None:
    """A request that needs the whole day's limit is possible, once reservations have ended."""
    refusal = refused(decide(8.0, reserved_j=1.0))
    assert (refusal.code, refusal.retry_after_s) == ("budget_exhausted", 5)


def test_a_request_of_exactly_a_days_tokens_waits_for_the_next_day() -> None:
    """A request that needs the whole day's tokens is possible tomorrow, where some are spent today."""
    refusal = refused(decide(None, tokens=9, spent_tokens=1))
    assert (refusal.code, refusal.retry_after_s) == ("budget_exhausted", 43_200)


def test_reserved_tokens_may_be_free_soon() -> None:
    """A refusal because of reserved tokens alone asks to try again soon."""
    assert refused(decide(None, tokens=20, spent_tokens=11, reserved_tokens=1)).retry_after_s == 5


def test_a_refusal_tells_what_could_not_be_measured() -> None:
    """The refusal counts the unmeasured requests beside what was spent, and only where there are any."""
    assert "could not be measured" not in refused(decide(100.0, spent_j=95.0)).message
    assert "spent 0 J (1 requests could not be measured)" in refused(decide(100.0, spent_j=None, reserved_j=95)).message


def test_a_limit_that_no_measured_expert_can_keep_is_explained_with_its_plan() -> None:
    """Where nothing was measured the refusal carries the plan and the outlook, and says what measures."""
    refusal = refused(decide(100.0, experts=(UNMEASURED,)))
    assert "`moe2-agent bench` measures it" in refusal.message
    assert refusal.code == "infeasible"
    assert refusal.plan is not None
    assert refusal.outlook is not None


def test_a_reservation_follows_the_attempts() -> None:
    """A reservation is the measured joules of ended attempts plus the p95 of running ones."""
    asked = SelectionRequest(model="moe2", demand=Demand(prompt_tokens=1, max_tokens=TOKENS))
    chosen = selector().select(asked, (FAST_AND_DEAR,), {}, 0)
    assert isinstance(chosen, Selection)
    life = Lifecycle(request=request(), modes={})
    usage = JobUsage(energy=Energy(joules=3.0, quality=Quality.MEASURED_COUNTER))
    for state, spent in (
        (AttemptState.FAILED, usage),
        (AttemptState.FAILED, None),
        (AttemptState.LOST, None),
        (AttemptState.RUNNING, None),
    ):
        life.attempts.append(Attempt("job", chosen.first, chosen, 0.0, state, spent))
    assert p95_of(chosen) == 80.0
    assert reservation_of(life) == Amount(3.0 + 0.0 + 80.0 + 80.0, 30)
    assert (burnt_j(life), known_j(life)) == (163.0, 3.0)


@pytest.mark.parametrize(
    ("elsewhere", "energy_j", "tokens"),
    [(Amount(5.0, 7), 15.0, 27), (Amount(None, None), 10.0, 20), (Amount(0.5, 1), 10.5, 21)],
)
def test_what_other_coordinators_have_drawn_counts_as_spent(elsewhere: Amount, energy_j: float, tokens: int) -> None:
    """What is not known of them adds nothing; everything else of the statement stays as it is."""
    key = Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=100.0, tokens=1000))
    accounts = Accounts()
    accounts.settle(key, TODAY, "r1", Amount(10.0, 20))
    accounts.reserve(key, TODAY, "r2", Amount(3.0, 4))
    own = accounts.statement(key, TODAY)
    joint = with_elsewhere(own, elsewhere)
    assert (joint.spent.energy_j, joint.spent.tokens) == (energy_j, tokens)
    assert replace(joint, spent=own.spent) == own
    assert msgspec.structs.replace(joint.spent, energy_j=own.spent.energy_j, tokens=own.spent.tokens) == own.spent
