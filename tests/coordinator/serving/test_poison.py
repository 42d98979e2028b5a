"""The life of a request that may be what kills engines, and of those that were there with it."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from moe2.coordinator.choosing.request import Ballot, Mode
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.effects import (
    Completed,
    Deliver,
    EnterQueue,
    Failed,
    LeaveQueue,
    Retract,
    ShareExpert,
    Suspect,
)
from moe2.coordinator.serving.judge import reserved_experts
from moe2.coordinator.serving.suspicion import has_downed_an_engine
from tests.coordinator.experts import expert
from tests.coordinator.lives import LifeBench, outcomes, retires, stopped, submitted
from tests.coordinator.panels import PanelBench

TOOLED = ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),), tools=(Tool(name="f"),))
CUSTOM: dict[str, dict[str, Any]] = {
    "grammar": {"grammar": "root ::= x"},
    "schema": {"json_schema": "{}"},
    "forced tool": {"forced_tools": ("f",), "prompt": TOOLED},
    "tools": {"prompt": TOOLED},
}


def code_of(effects: list[effects.Effect]) -> str:
    [outcome] = outcomes(effects)
    assert isinstance(outcome, Failed)
    return outcome.code


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def test_the_second_death_is_the_last() -> None:
    """One more engine is tried, and no third one; the client learns of what, where, and what to do."""
    life = LifeBench(queue_s=30.0).admitted()
    assert submitted(life.failed(in_batch=True)) == ["req-1.1"]
    effects = life.failed(attempt=1, in_batch=True, message="killed by SIGABRT")
    assert submitted(effects) == []
    assert outcomes(effects) == [
        Failed(
            "crash_suspected",
            "2 engines died while they worked on this request (on name of agent-1 and name of agent-2): it may be the "
            "cause, and is not tried again. Change the request before you send it again. The engine's last words: "
            "killed by SIGABRT",
        )
    ]
    assert retires(effects)


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_grammar_a_schema_or_tools_of_its_own_convict_at_once(kind: str) -> None:
    """They are the likeliest cause."""
    life = LifeBench(queue_s=30.0, **CUSTOM[kind]).admitted()
    effects = life.failed(in_batch=True)
    assert code_of(effects) == "crash_suspected"
    assert retires(effects)


@pytest.mark.parametrize("kind", CUSTOM)
def test_who_only_waited_at_the_agent_is_no_suspect(kind: str) -> None:
    """Whatever it brings along, it goes on elsewhere, with company."""
    life = LifeBench(**CUSTOM[kind]).admitted()
    assert submitted(life.failed(in_batch=False)) == ["req-1.1"]
    assert not life.life.is_suspect
    assert not life.life.attempts[1].is_isolated
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]


def test_where_an_agent_does_not_say_who_was_in_the_batch_everybody_is_a_suspect() -> None:
    """Agents of before that word may hold the one that did it."""
    life = LifeBench().admitted()
    life.failed(in_batch=None)
    assert life.life.is_suspect


def test_other_failures_make_no_suspect() -> None:
    """A lost link says nothing of the request."""
    life = LifeBench(*(expert(f"agent-{n}") for n in range(4)), grammar="root ::= x").admitted()
    assert submitted(life.lost("agent-0")) == ["req-1.1"]
    assert submitted(life.failed("internal", attempt=1)) == ["req-1.2"]
    assert not life.life.is_suspect


def test_in_a_panel_the_second_death_ends_all_members() -> None:
    """The first member that dies is dropped; after the second one the others are stopped."""
    bench = PanelBench(Mode.RANK).admitted()
    assert outcomes(bench.failed(attempt=0, in_batch=True)) == []
    effects = bench.failed(attempt=1, in_batch=True)
    assert code_of(effects) == "crash_suspected"
    assert stopped(effects) == [("agent-3", "req-1.2")]


def test_the_votes_of_a_panel_are_not_custom() -> None:
    """Choices are scored, and no grammar is at work: the others go on."""
    bench = PanelBench(Mode.VOTE, ballot=Ballot(("yes", "no")), grammar="root ::= x").admitted()
    assert outcomes(bench.failed(attempt=0, in_batch=True)) == []
    assert not any(attempt.is_custom for attempt in bench.life.attempts)


# --- The second trial -------------------------------------------------------------------------------------------------


def test_a_suspect_works_alone_until_it_is_past_where_the_engine_died() -> None:
    """Then others may use its engine, too."""
    life = LifeBench(is_streamed=False).admitted()
    life.tokens("a", "b")
    life.failed(in_batch=True)
    second = life.life.attempts[1]
    assert second.is_isolated
    assert life.tokens("a", "b", attempt=1) == [Deliver((TokenPiece("a"), TokenPiece("b")))]
    assert second.is_isolated
    assert life.tokens("c", attempt=1) == [ShareExpert("agent-2/m"), Deliver((TokenPiece("c"),))]
    assert not second.is_isolated


def test_what_a_client_has_not_seen_begins_anew() -> None:
    """One that waits for the whole answer has seen none of it, so another expert writes it from the start."""
    life = LifeBench(is_streamed=False).admitted()
    life.tokens("a")
    effects = life.failed(in_batch=True)
    assert Retract() in effects
    assert submitted(effects) == ["req-1.1"]
    assert life.life.n_tokens_left == 20
    life.tokens("a", attempt=1)
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]


def test_what_a_client_has_seen_is_broken_off() -> None:
    """A stream that has begun ends in an error."""
    life = LifeBench().admitted()
    life.tokens("a")
    assert code_of(life.failed(in_batch=True)) == "engine_crashed"


def test_with_one_engine_it_waits_until_that_is_back() -> None:
    """Not at once: it has to be started again first."""
    life = LifeBench(expert(), queue_s=30.0).admitted()
    assert EnterQueue() in life.failed(in_batch=False)
    assert life.do(events.RoomAppeared()) == []
    life.restarted()
    effects = life.room()
    assert effects[0] == LeaveQueue(served=True)
    assert submitted(effects) == ["req-1.1"]
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]


def test_another_engine_comes_before_the_one_that_died() -> None:
    """It may have died by its own fault."""
    life = LifeBench().admitted()
    life.restarted()
    life.failed(in_batch=True)
    assert life.life.attempts[1].expert.key == "agent-2/m"


def test_a_refusal_by_an_engine_that_is_down_is_waited_out() -> None:
    """The coordinator did not know yet."""
    life = LifeBench(expert(), queue_s=30.0).admitted()
    assert EnterQueue() in life.failed("not_ready", usage=None)
    life.restarted()
    assert submitted(life.room()) == ["req-1.1"]


def test_an_engine_that_does_not_come_back_is_waited_for_within_the_queues_limit() -> None:
    """Then the client is told what has happened."""
    life = LifeBench(expert(), queue_s=30.0).admitted()
    life.failed(in_batch=False)
    life.now_s += 29.0
    assert life.do(events.TimePassed()) == []
    assert code_of(life.at_next()) == "engine_crashed"


def test_a_panel_of_one_waits_for_its_engine_too() -> None:
    """And begins anew when that is back."""
    bench = PanelBench(Mode.RANK, expert(), queue_s=30.0).admitted()
    assert EnterQueue() in bench.failed(in_batch=False)
    bench.restarted()
    assert submitted(bench.room()) == ["req-1.1"]


# --- Hanging ----------------------------------------------------------------------------------------------------------


def hangs(**fields: Any) -> LifeBench:
    """A request whose engine has said nothing for so long that it may hang."""
    life = LifeBench(**fields).admitted()
    life.now_s = 200.0 - 60.0
    return life


def test_what_makes_an_engine_hang_is_given_to_one_other_and_alone() -> None:
    """As after a death; the second silence is the last."""
    life = hangs(deadline_s=600.0)
    effects = life.do(events.TimePassed())
    assert Suspect("agent-1/m", "req-1.0", hangs=True) in effects
    assert submitted(effects) == ["req-1.1"]
    assert life.life.attempts[1].is_isolated
    life.now_s = 400.0
    assert submitted(life.do(events.TimePassed())) == []


@pytest.mark.parametrize("kind", CUSTOM)
def test_what_brings_a_grammar_of_its_own_has_no_second_engine_beside_a_late_one(kind: str) -> None:
    """Neither as a hedge nor in the place of one that hangs."""
    life = hangs(hedges=9, deadline_s=600.0, **CUSTOM[kind])
    effects = life.do(events.TimePassed())
    assert Suspect("agent-1/m", "req-1.0", hangs=True) in effects
    assert submitted(effects) == []
    assert life.life.next_deadline_s == 600.0


def test_while_no_engine_is_idle_a_request_whose_engine_hangs_looks_again() -> None:
    """A second later."""
    life = hangs(deadline_s=600.0)
    life.full = {"agent-2/m", "agent-3/m"}
    assert submitted(life.do(events.TimePassed())) == []
    life.full.clear()
    assert submitted(life.at_next()) == ["req-1.1"]
    assert life.now_s == 141.0


def test_being_late_is_no_crash_to_be_counted() -> None:
    """Only a death is, and an engine that does not confirm that it was told to stop."""
    late = hangs(deadline_s=300.0)
    late.experts = []
    late.do(events.TimePassed())
    assert late.life.is_suspect
    assert not has_downed_an_engine(late.life.attempts)
    late.at_deadline()
    late.at_deadline()
    assert has_downed_an_engine(late.life.attempts)
    died = LifeBench().admitted()
    died.failed(in_batch=True)
    assert has_downed_an_engine(died.life.attempts)


def test_two_engines_that_are_killed_because_they_hang_convict() -> None:
    """A watchdog's kill is a death like another."""
    life = hangs(deadline_s=600.0)
    life.do(events.TimePassed())
    assert outcomes(life.failed(in_batch=True, message="stuck")) == []
    assert code_of(life.failed(attempt=1, in_batch=True, message="stuck")) == "crash_suspected"


# --- Whose engine is whose --------------------------------------------------------------------------------------------

FLEET = tuple(expert(f"agent-{n}") for n in (1, 2, 3))


def reserved(life: LifeBench, *suspects: LifeBench, **in_flight: int) -> set[str]:
    """Agents whose expert the request must not be given. in_flight: jobs by agent."""
    counts = {f"{name.replace('_', '-')}/m": n_jobs for name, n_jobs in in_flight.items()}
    found = reserved_experts(life.life, [suspect.life for suspect in suspects], lambda _: FLEET, counts)
    return {key.partition("/")[0] for key in found}


def suspect(*, waits: bool = False) -> LifeBench:
    """A request whose first engine, `agent-1`, died with it. waits: for an idle one; else it is on `agent-2`."""
    life = LifeBench(*FLEET, queue_s=30.0).admitted()
    if waits:
        life.full = {found.key for found in FLEET}
    life.failed(in_batch=True)
    return life


def test_a_suspect_is_kept_from_whoever_works() -> None:
    """A second death is to hit nobody else."""
    asking = suspect(waits=True)
    assert reserved(asking, asking, agent_1=0, agent_2=1, agent_3=2) == {"agent-2", "agent-3"}


def test_the_engine_of_a_lonely_suspect_is_nobody_elses() -> None:
    """Until it is past the place where the engine died."""
    other = LifeBench(*FLEET).admitted()
    lonely = suspect()
    assert reserved(other, lonely, agent_2=1) == {"agent-2"}
    lonely.tokens("a", attempt=1)
    assert reserved(other, lonely, agent_2=1) == set()


def test_while_a_suspect_waits_the_least_busy_engine_takes_nothing_new() -> None:
    """So that it falls idle; nothing is kept back where one is idle already."""
    other, waiting = LifeBench(*FLEET).admitted(), suspect(waits=True)
    assert reserved(other, waiting, agent_1=3, agent_2=2, agent_3=2) == {"agent-2"}
    assert reserved(other, waiting, agent_1=3, agent_2=0, agent_3=2) == set()
