"""The coordinator's commands to load, unload and suspend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.effects import AnswerCommand, Effect, StartEngine, StopEngine, SuspendHost
from moe2.agent.jobs.events import (
    CommandReceived,
    DrainRequested,
    EngineStopped,
    LinkLost,
    SuspendChecked,
    SuspendEnded,
    TimePassed,
)
from moe2.agent.settings import ModelSection
from moe2.common.link.messages import CommandAnswer, JobFailed, LoadModel, Suspend, UnloadModel
from moe2.common.link.reports import ExpertState
from tests.agent.jobs.corebench import LOADED, MAX_QUEUE, SLOTS, CoreBench, finished, section

LOAD, UNLOAD, SUSPEND = (
    LoadModel(command_id="l", model="m"),
    UnloadModel(command_id="u", model="m"),
    Suspend(command_id="s"),
)


class Desk(CoreBench):
    """A core that may be told everything; its models are ready."""

    def __init__(self, *models: str, ready: bool = True, **allowed: Any) -> None:
        super().__init__(ready=False)
        names = models or ("m",)
        self.core = AgentCore(
            tuple(section(name) for name in names), **{"allow_unload": True, "allow_suspend": True, **allowed}
        )
        self.answers: list[CommandAnswer] = []
        if ready:
            for name in names:
                self.engine(LOADED, name)

    def do(self, event: Any) -> list[Effect]:
        effects = super().do(event)
        self.answers += [effect.answer for effect in effects if isinstance(effect, AnswerCommand)]
        return effects

    def order(self, command: LoadModel | UnloadModel | Suspend) -> list[Effect]:
        return self.do(CommandReceived(command))

    def said(self) -> list[tuple[str, str, str | None]]:
        """Which commands were answered, and how."""
        return [(answer.command_id, answer.outcome.value, answer.code) for answer in self.answers]

    def state(self) -> ExpertState:
        return self.core.experts["m"].state


# --- Unloading --------------------------------------------------------------------------------------------------------


def test_an_idle_model_is_unloaded_and_done_when_its_process_has_ended() -> None:
    """Not before: until then its memory is not given back."""
    desk = Desk()
    assert StopEngine("m") in desk.order(UNLOAD)
    assert (desk.state(), desk.said()) == (ExpertState.COLD, [])
    desk.do(EngineStopped("m"))
    assert desk.said() == [("u", "done", None)]


def test_a_busy_model_is_unloaded_after_its_last_job() -> None:
    """What runs is not cut off."""
    desk = Desk()
    desk.submit("a")
    desk.order(UNLOAD)
    assert desk.state() is ExpertState.READY
    assert StopEngine("m") in desk.engine(finished("a"))


def test_a_job_that_comes_while_a_model_drains_calls_the_unloading_off() -> None:
    """It is answered without any loading."""
    desk = Desk()
    desk.submit("a")
    desk.order(UNLOAD)
    desk.submit("b")
    assert desk.said() == [("u", "refused", "busy")]
    desk.engine(finished("a"))
    desk.engine(finished("b"))
    assert desk.state() is ExpertState.READY


def test_a_job_that_comes_while_the_process_ends_loads_the_model_again() -> None:
    """The command is done all the same, and the job is not lost."""
    desk = Desk()
    desk.order(UNLOAD)
    assert StartEngine("m") in desk.submit("a")
    desk.do(EngineStopped("m"))
    assert desk.said() == [("u", "done", None)]
    desk.engine(LOADED)
    assert desk.core.experts["m"].active == {"a"}


def test_patience_with_running_jobs_ends() -> None:
    """The command is refused then, and nothing was done."""
    desk = Desk()
    desk.submit("a")
    desk.order(UnloadModel(command_id="u", model="m", drain_s=30.0))
    assert desk.core.next_deadline_s == desk.now_s + 30.0
    desk.now_s += 30.0
    desk.do(TimePassed())
    assert desk.said() == [("u", "refused", "busy")]
    assert desk.state() is ExpertState.READY


def test_a_cold_model_is_unloaded_already() -> None:
    """Nothing has to end."""
    desk = Desk()
    desk.order(UNLOAD)
    desk.do(EngineStopped("m"))
    effects = desk.order(UnloadModel(command_id="u2", model="m"))
    assert not [effect for effect in effects if isinstance(effect, StopEngine)]
    assert desk.said()[-1] == ("u2", "done", None)


def test_an_unloaded_model_takes_jobs_although_it_was_loaded_with_the_agent() -> None:
    """A model that the coordinator may unload is one that waits for requests."""
    desk = Desk()
    desk.order(UNLOAD)
    desk.do(EngineStopped("m"))
    [report] = desk.core.expert_reports(desk.now_s)
    assert (report.state, report.on_demand) == (ExpertState.COLD, True)
    assert StartEngine("m") in desk.submit("a")


def test_a_model_that_restarts_can_be_unloaded() -> None:
    """An engine that keeps dying is left alone."""
    desk = Desk()
    desk.crash()
    assert StopEngine("m") in desk.order(UNLOAD)
    desk.do(EngineStopped("m"))
    assert desk.said() == [("u", "done", None)]


# --- Loading ----------------------------------------------------------------------------------------------------------


def test_loading_is_done_when_the_model_is_ready() -> None:
    """Its engine is started once, however many ask."""
    desk = Desk()
    desk.order(UNLOAD)
    desk.do(EngineStopped("m"))
    assert StartEngine("m") in desk.order(LOAD)
    assert StartEngine("m") not in desk.order(LoadModel(command_id="l2", model="m"))
    desk.engine(LOADED)
    assert desk.said()[1:] == [("l", "done", None), ("l2", "done", None)]


def test_loading_that_fails_is_answered_with_the_reason() -> None:
    """The agent tries again by itself; the command does not wait for that."""
    desk = Desk()
    desk.order(UNLOAD)
    desk.do(EngineStopped("m"))
    desk.order(LOAD)
    desk.crash("no memory", permanent=True)
    assert desk.said()[1:] == [("l", "failed", "load_failed")]
    assert desk.answers[-1].message == "no memory"


def test_the_later_command_holds() -> None:
    """Unload, then load, while a job runs: the model stays."""
    desk = Desk()
    desk.submit("a")
    desk.order(UNLOAD)
    desk.order(LOAD)
    assert desk.said() == [("u", "refused", "superseded"), ("l", "done", None)]
    desk.engine(finished("a"))
    assert desk.state() is ExpertState.READY


# --- Suspending -------------------------------------------------------------------------------------------------------


def test_an_idle_host_is_suspended() -> None:
    """Done is said before the goodbye."""
    desk = Desk()
    effects = desk.order(SUSPEND)
    assert [type(effect) for effect in effects] == [AnswerCommand, SuspendHost]
    assert desk.said() == [("s", "done", None)]


def test_a_host_is_suspended_after_its_last_job_is_accounted_for() -> None:
    """Its joules are sent before the host goes."""
    desk = Desk()
    desk.submit("a")
    desk.order(SUSPEND)
    desk.engine(finished("a"))
    assert desk.said() == []
    desk.settle("a")
    assert desk.said() == [("s", "done", None)]


def test_a_job_that_comes_keeps_the_host_awake() -> None:
    """For any of its models."""
    desk = Desk("m", "other")
    desk.submit("a")
    desk.order(SUSPEND)
    desk.submit("b", model="other")
    assert desk.said() == [("s", "refused", "busy")]


def test_a_host_is_not_suspended_while_a_model_is_loaded() -> None:
    """It waits until the model is there."""
    desk = Desk(ready=False)
    desk.order(SUSPEND)
    assert desk.said() == []
    desk.engine(LOADED)
    assert desk.said() == [("s", "done", None)]


def test_a_job_for_a_host_that_goes_to_sleep_is_refused() -> None:
    """The coordinator then asks another one; after the sleep jobs run again."""
    desk = Desk()
    desk.order(SUSPEND)
    refusal = desk.refusal("a")
    assert isinstance(refusal, JobFailed)
    assert refusal.code == "draining"
    desk.do(SuspendEnded("s"))
    desk.submit("b")
    assert desk.core.experts["m"].active == {"b"}


def test_a_host_that_stayed_awake_answers_the_command_once_more() -> None:
    """As failed, with logind's reason."""
    desk = Desk()
    desk.order(SUSPEND)
    desk.do(SuspendEnded("s", "Access denied."))
    assert desk.said() == [("s", "done", None), ("s", "failed", "suspend_failed")]


def test_a_host_whose_coordinator_is_lost_stays_awake() -> None:
    """Who wanted it to sleep could not wake it; it is told so when it is back."""
    desk = Desk()
    desk.submit("a")
    desk.order(SUSPEND)
    desk.order(UNLOAD)
    effects = desk.do(LinkLost())
    effects += desk.engine(finished("a", "cancelled"))
    assert not [effect for effect in effects if isinstance(effect, SuspendHost | StopEngine)]
    assert desk.said() == [("s", "refused", "superseded"), ("u", "refused", "superseded")]


def test_a_sleep_that_nobody_commanded_is_answered_to_nobody() -> None:
    """Somebody closed the lid."""
    desk = Desk()
    desk.do(SuspendEnded(None))
    assert desk.said() == []


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (LoadModel(command_id="c", model="absent"), "unknown_model"),
        (UnloadModel(command_id="c", model=""), "unknown_model"),
        (UnloadModel(command_id="c", model="m"), "not_allowed"),
        (Suspend(command_id="c"), "not_allowed"),
    ],
)
def test_what_cannot_be_or_is_not_allowed_is_refused_at_once(
    command: LoadModel | UnloadModel | Suspend, code: str
) -> None:
    """Nothing else is done."""
    desk = Desk(allow_unload=False, allow_suspend=False)
    [effect] = desk.order(command)
    assert isinstance(effect, AnswerCommand)
    assert desk.said() == [("c", "refused", code)]


def test_a_host_that_cannot_be_suspended_refuses_with_the_reason() -> None:
    """Known beforehand, so that nobody says goodbye for nothing."""
    desk = Desk()
    desk.do(SuspendChecked("polkit says no"))
    desk.order(SUSPEND)
    assert (desk.said(), desk.answers[0].message) == ([("s", "refused", "not_possible")], "polkit says no")


def test_an_agent_that_shuts_down_obeys_no_command() -> None:
    """It is leaving for good."""
    desk = Desk()
    desk.do(DrainRequested())
    desk.order(LOAD)
    assert desk.said() == [("l", "refused", "draining")]


def test_the_same_command_twice_is_one_command() -> None:
    """A coordinator that repeats itself gets one answer."""
    desk = Desk()
    desk.submit("a")
    desk.order(UNLOAD)
    desk.order(UNLOAD)
    desk.engine(finished("a"))
    desk.do(EngineStopped("m"))
    assert desk.said() == [("u", "done", None)]


def test_a_model_that_is_unloaded_by_time_is_loaded_by_command() -> None:
    """Both ways of becoming cold are the same state."""
    desk = Desk()
    model = ModelSection(name="m", path=Path("m.gguf"), slots=SLOTS, max_queue=MAX_QUEUE, unload_after_s=5.0)
    desk.core = AgentCore((model,), allow_unload=True)
    desk.engine(LOADED)
    desk.now_s += 5.0
    assert StopEngine("m") in desk.do(TimePassed())
    desk.do(EngineStopped("m"))
    assert StartEngine("m") in desk.order(LOAD)
