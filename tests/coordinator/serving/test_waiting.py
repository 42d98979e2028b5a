"""The life of one request: waiting for room, and what its budgets mean for the clock."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.request import Budgets, Wish
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import events
from moe2.coordinator.serving.attempt import LATE_UNMEASURED_S, MIN_LATE_S
from moe2.coordinator.serving.effects import Cancelled, Completed, EnterQueue, Failed, LeaveQueue, Suspect
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.experts import cost, expert, speed
from tests.coordinator.lives import EXPERTS, LifeBench, outcomes, retires, stopped, submitted


def waiting(**fields: object) -> LifeBench:
    life = LifeBench(queue_s=30.0, **fields)  # type: ignore[arg-type]
    life.full = {found.key for found in EXPERTS}
    life.admitted()
    return life


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_a_request_that_nobody_has_room_for_waits() -> None:
    """It is neither refused nor submitted."""
    life = waiting()
    assert life.effects == [EnterQueue()]
    assert life.life.next_deadline_s == 130.5


def test_room_ends_the_wait() -> None:
    """Its receipt tells how long it was, and does not take it for the coordinator's own slowness."""
    life = waiting()
    life.now_s = 103.5
    effects = life.room()
    assert effects[0] == LeaveQueue(served=True)
    assert submitted(effects) == ["req-1.0"]
    life.tokens("a")
    life.done()
    seconds = receipt_of(life.life).seconds
    assert (seconds.admission, seconds.overhead, seconds.ttft) == (3.0, 0.5, 3.5)


def test_room_for_others_changes_nothing() -> None:
    """It keeps its place, and its time goes on."""
    life = waiting()
    life.now_s = 110.0
    assert life.do(events.RoomAppeared()) == []
    assert life.life.next_deadline_s == 130.5
    life.now_s = 111.5
    life.room()
    assert life.life.waited_s == 11.0


def test_waiting_uses_up_the_budgets() -> None:
    """What is planned with afterwards is the rest."""
    life = waiting(wish=Wish(latency_budget_s=20.0))
    life.now_s = 108.0
    life.room()
    assert life.chosen_for[-1].elapsed_s == 8.0
    assert life.life.limits.end_by_s == 120.0


def test_a_wait_ends_with_a_clear_refusal() -> None:
    """After the configured time, or when the request's own budget or its key's is used up."""
    keys = waiting(principal=Principal(budgets=Budgets(latency_budget_s=7.0)))
    for life, ends_s in ((waiting(), 130.5), (waiting(wish=Wish(ttft_budget_s=4.0)), 104.0), (keys, 107.0)):
        assert life.life.next_deadline_s == ends_s
        effects = life.at_next()
        assert effects[0] == LeaveQueue(served=False)
        [outcome] = outcomes(effects)
        assert isinstance(outcome, Failed)
        assert outcome.code == ErrorCode.OVERLOADED
        assert retires(effects)


def test_no_place_in_the_queue_is_a_refusal_at_once() -> None:
    """The room belongs to others."""
    life = waiting()
    effects = life.do(events.RoomRefused())
    [outcome] = outcomes(effects)
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.OVERLOADED
    assert retires(effects)


def test_who_waits_for_the_fleets_watts_is_told_of_the_cap() -> None:
    """A request waits for room under it as for room with an expert; in vain, it is refused for that."""
    life = LifeBench(queue_s=30.0)
    life.full, life.why_full = {found.key for found in EXPERTS}, NoExpert(ErrorCode.FLEET_CAPPED, "The cap of 100 W.")
    assert life.admitted().effects == [EnterQueue()]
    assert life.do(events.RoomAppeared()) == []
    [outcome] = outcomes(life.at_next())
    assert outcome == Failed(ErrorCode.FLEET_CAPPED, "After 30.5 s: The cap of 100 W.")


def test_who_gives_up_while_waiting_leaves_nothing() -> None:
    """No place, no attempt, no joule."""
    life = waiting()
    effects = life.gone()
    assert effects[0] == LeaveQueue(served=False)
    assert outcomes(effects) == [Cancelled()]
    assert retires(effects)
    assert receipt_of(life.life).energy.joules == 0.0
    assert life.do(events.RoomAppeared()) == []


def test_shutting_down_ends_the_wait() -> None:
    """With an error that says that it can be sent again."""
    life = waiting()
    [outcome] = outcomes(life.do(events.ServiceStopping()))
    assert isinstance(outcome, Failed)
    assert outcome.code == "stopping"


def test_who_waits_for_agents_that_leave_is_told() -> None:
    """Nobody is left who could ever fall free."""
    life = waiting()
    life.experts.clear()
    [outcome] = outcomes(life.do(events.RoomAppeared()))
    assert outcome == Failed("exhausted", "Nobody is left.")


def test_failover_waits_too() -> None:
    """A crash while all others are busy loses no request."""
    life = LifeBench(queue_s=30.0).admitted()
    life.full = {"agent-2/m", "agent-3/m"}
    assert EnterQueue() in life.failed()
    life.now_s = 102.0
    effects = life.room()
    assert submitted(effects) == ["req-1.1"]
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]
    assert receipt_of(life.life).seconds.admission == 1.5


def test_a_failover_that_waits_in_vain_tells_the_failure() -> None:
    """It says more than that the others were busy."""
    life = LifeBench(queue_s=30.0).admitted()
    life.full = {"agent-2/m", "agent-3/m"}
    life.failed()
    assert outcomes(life.at_next()) == [Failed("engine_crashed", "It died.")]


# --- Waiting for less load --------------------------------------------------------------------------------------------


def busy(waits_s: float) -> NoExpert:
    return NoExpert(ErrorCode.INFEASIBLE_NOW, "Not now.", waits_s=waits_s)


def crowded(waits_s: float, *, queue_s: float = 30.0, **fields: Any) -> LifeBench:
    """With less load its budgets could be kept, for so many seconds."""
    life = LifeBench(queue_s=queue_s, **fields)
    life.refusal = busy(waits_s)
    return life.admitted()


def test_budgets_that_only_load_breaks_are_waited_for() -> None:
    """It is served as soon as somebody can keep them."""
    life = crowded(8.0, wish=Wish(latency_budget_s=10.0))
    assert life.effects == [EnterQueue()]
    life.now_s = 104.0
    life.refusal = None
    effects = life.room()
    assert effects[0] == LeaveQueue(served=True)
    assert submitted(effects) == ["req-1.0"]
    assert life.life.refused is None


def test_it_waits_no_longer_than_an_idle_expert_would_leave_it() -> None:
    """Nor longer than the queue allows. The refusal keeps its reason, and says how long it took."""
    for life, ends_s in ((crowded(8.0), 108.5), (crowded(math.inf), 130.5), (crowded(40.0), 130.5)):
        assert life.life.next_deadline_s == ends_s
        effects = life.at_next()
        assert effects[0] == LeaveQueue(served=False)
        assert outcomes(effects) == [Failed(ErrorCode.INFEASIBLE_NOW, f"After {ends_s - 100.0:.1f} s: Not now.")]
        assert retires(effects)
        assert life.life.refused is not None


def test_what_waiting_cannot_help_is_refused_at_once() -> None:
    """No second is left for it, or nobody waits here, or there is no place."""
    full = crowded(8.0)
    full.do(events.RoomRefused())
    for life in (crowded(0.0), crowded(8.0, queue_s=0.0), full):
        [outcome] = outcomes(life.effects)
        assert isinstance(outcome, Failed)
        assert outcome.code == ErrorCode.INFEASIBLE_NOW
        assert outcome.message.endswith("Not now.")
        assert retires(life.effects)


def test_every_look_says_anew_how_long_waiting_may_help() -> None:
    """A faster expert that has joined is worth waiting for longer, one that has left less long."""
    life = crowded(8.0)
    life.now_s = 103.0
    for waits_s, ends_s in ((20.0, 123.0), (2.0, 105.0)):
        life.refusal = busy(waits_s)
        assert life.room() == []
        assert life.life.next_deadline_s == ends_s


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.INFEASIBLE])
def test_a_fleet_that_is_full_or_has_lost_somebody_leaves_the_limit_where_it_was(code: ErrorCode) -> None:
    """What was said of the waiting's use was said then, not now; and whoever is gone may come back."""
    life = crowded(8.0)
    life.now_s, life.refusal = 103.0, NoExpert(code, "Nobody.")
    assert life.room() == []
    [outcome] = outcomes(life.at_next())
    assert (life.now_s, outcome) == (108.5, Failed(ErrorCode.INFEASIBLE_NOW, "After 8.5 s: Not now."))


def test_a_wait_that_has_used_up_the_budget_is_not_the_requests_fault() -> None:
    """It ends as soon as that is known."""
    life = crowded(8.0)
    life.now_s, life.refusal = 105.0, busy(0.0)
    effects = life.room()
    assert effects[0] == LeaveQueue(served=False)
    assert outcomes(effects) == [Failed(ErrorCode.INFEASIBLE_NOW, "Not now.")]


LOADING = NoExpert(ErrorCode.MODEL_LOADING, "It is being loaded.")


def test_a_model_that_is_being_loaded_is_waited_for_as_long_as_the_budgets_last() -> None:
    """The queue's limit is for room: a large model takes longer to load. Once it is ready, the request is submitted."""
    life = LifeBench(queue_s=30.0, wish=Wish(ttft_budget_s=50.0))
    life.refusal = LOADING
    assert life.admitted().effects == [EnterQueue()]
    assert life.life.next_deadline_s == 150.0
    life.now_s, life.refusal = 140.0, None
    assert submitted(life.room()) == ["req-1.0"]


def test_a_model_that_does_not_get_ready_in_time_is_said_to_be_loading() -> None:
    """The code tells the client that it may come again."""
    life = LifeBench(queue_s=30.0, wish=Wish(latency_budget_s=50.0))
    life.refusal = LOADING
    life.admitted()
    assert outcomes(life.at_next()) == [Failed(ErrorCode.MODEL_LOADING, "After 50.0 s: It is being loaded.")]


def test_a_model_that_fails_to_load_ends_the_wait() -> None:
    """Nobody waits for what will not come."""
    life = LifeBench(queue_s=30.0)
    life.refusal = LOADING
    life.admitted()
    life.refusal = NoExpert(ErrorCode.NO_LIVE_EXPERT, "No expert is ready.")
    assert outcomes(life.room()) == [Failed(ErrorCode.NO_LIVE_EXPERT, "No expert is ready.")]


def test_without_a_queue_nobody_waits_for_a_model() -> None:
    """Where the settings let nobody wait, a model that is being loaded is no exception."""
    life = LifeBench(queue_s=0.0)
    life.refusal = LOADING
    life.admitted()
    assert outcomes(life.effects) == [Failed(ErrorCode.MODEL_LOADING, "It is being loaded.")]


def test_a_failover_waits_for_less_load_too() -> None:
    """If that is in vain, it tells what the expert said."""
    for in_time in (True, False):
        life = LifeBench(queue_s=30.0).admitted()
        life.refusal = busy(5.0)
        assert EnterQueue() in life.failed()
        if in_time:
            life.refusal = None
            assert submitted(life.room()) == ["req-1.1"]
        else:
            assert outcomes(life.at_next()) == [Failed("engine_crashed", "It died.")]
            assert life.now_s == 105.5


# --- Budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish", [Wish(ttft_budget_s=5.0), Wish(latency_budget_s=5.0), Wish(ttft_budget_s=5.0, latency_budget_s=50.0)]
)
def test_before_the_first_token_a_used_up_budget_is_an_error(wish: Wish) -> None:
    """There is nothing to lose yet; the expert is stopped."""
    life = LifeBench(wish=wish).admitted()
    life.now_s = 105.0
    effects = life.do(events.TimePassed())
    assert stopped(effects) == [("agent-1", "req-1.0")]
    [outcome] = outcomes(effects)
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.BUDGET_EXCEEDED


def test_after_the_first_token_an_answer_is_finished_and_the_receipt_tells() -> None:
    """Most readers prefer a late end to none."""
    life = LifeBench(wish=Wish(latency_budget_s=5.0, ttft_budget_s=0.6)).admitted()
    life.tokens("a")
    life.now_s = 106.0
    assert life.do(events.TimePassed()) == []
    life.tokens("b")
    assert outcomes(life.done()) == [Completed("stop")]
    assert receipt_of(life.life).exceeded == ("latency_budget_s",)


def test_a_strict_request_ends_when_its_budget_does() -> None:
    """It asked for that."""
    life = LifeBench(wish=Wish(latency_budget_s=5.0, strict=True)).admitted()
    life.tokens("a")
    life.now_s = 105.0
    effects = life.do(events.TimePassed())
    assert stopped(effects) == [("agent-1", "req-1.0")]
    [outcome] = outcomes(effects)
    assert isinstance(outcome, Failed)
    assert outcome.code == ErrorCode.BUDGET_EXCEEDED


def test_joules_over_the_budget_are_told() -> None:
    """Predictions are quantiles: now and then more is measured."""
    thrifty = expert(energy=cost(0.05))
    life = LifeBench(thrifty, wish=Wish(energy_budget_j=1.5)).admitted()
    life.tokens("a")
    life.done()
    assert receipt_of(life.life).exceeded == ("energy_budget_j",)


def test_kept_budgets_leave_nothing_to_tell() -> None:
    """All four of them."""
    wish = Wish(energy_budget_j=3.0, latency_budget_s=5.0, ttft_budget_s=3.0, tpot_budget_s=0.5)
    life = LifeBench(expert(energy=cost(0.05)), wish=wish).admitted()
    life.tokens("a")
    life.now_s = 102.0
    life.done()
    assert receipt_of(life.life).exceeded == ()
    life.life.concluded_s = 104.0
    assert receipt_of(life.life).exceeded == ("tpot_budget_s",)


# --- Lateness ---------------------------------------------------------------------------------------------------------


def test_an_expert_without_a_sign_of_life_is_suspected_once() -> None:
    """Its link may be alive; the request itself goes on."""
    life = LifeBench(EXPERTS[0]).admitted()
    life.now_s = 100.5 + MIN_LATE_S
    assert life.do(events.TimePassed()) == [Suspect("agent-1/m", "req-1.0", hangs=True)]
    assert life.do(events.TimePassed()) == []


def test_how_late_is_late_follows_the_prediction() -> None:
    """A slow expert gets longer, and one that nobody has measured a minute."""
    for found, late_s in (
        (expert(latency=speed(1.0, 50.0)), 40.0),
        (expert(latency=None), LATE_UNMEASURED_S),
    ):
        life = LifeBench(found, deadline_s=1000.0).admitted()
        life.now_s = 100.5 + late_s - 0.1
        assert life.do(events.TimePassed()) == []
        life.now_s = 100.5 + late_s
        assert life.do(events.TimePassed()) == [Suspect("agent-1/m", "req-1.0", hangs=True)]


def test_who_has_begun_is_not_suspected() -> None:
    """Slow is not hung."""
    life = LifeBench().admitted()
    life.tokens("a")
    life.now_s = 155.0
    assert life.do(events.TimePassed()) == []
    assert life.life.attempts[0].state is AttemptState.RUNNING
