"""Exchanging models while jobs come: which engine serves them, what is kept, and that none is lost."""

from __future__ import annotations

from pathlib import Path

from moe2.agent.engine import protocol
from moe2.agent.jobs.effects import AddEngine, AnswerCommand, Effect, KeepServed, RemoveEngine, SendToEngine
from moe2.agent.jobs.events import EngineExited, EngineGone, EngineSpoke, ModelOffered, ModelWithdrawn
from moe2.agent.settings import ModelSection
from moe2.common.link.messages import CommandOutcome, JobDone, Submit
from moe2.common.link.reports import ExpertState
from tests.agent.jobs.corebench import LOADED, CoreBench, finished


def offer(name: str = "m", *, beside: bool = True, command_id: str = "c", **fields: int) -> ModelOffered:
    """A model that was checked."""
    section = ModelSection.model_validate({"name": name, "path": Path("/models/new.gguf"), **fields})
    return ModelOffered(command_id, section, beside, "ab" * 32)


def answers(effects: list[Effect]) -> list[tuple[str, CommandOutcome, str | None]]:
    """What the coordinator is told."""
    return [
        (one.answer.command_id, one.answer.outcome, one.answer.code)
        for one in effects
        if isinstance(one, AnswerCommand)
    ]


def added(effects: list[Effect]) -> list[str]:
    """Names of the engines that are started."""
    return [one.engine for one in effects if isinstance(one, AddEngine)]


def removed(effects: list[Effect]) -> list[str]:
    """Names of the engines that are ended."""
    return [one.engine for one in effects if isinstance(one, RemoveEngine)]


def kept(effects: list[Effect]) -> list[tuple[str, str | None]]:
    """What is served from then on, with the file."""
    return [
        (one.name, one.section.path.name if one.section else None) for one in effects if isinstance(one, KeepServed)
    ]


def given(effects: list[Effect]) -> list[tuple[str, str]]:
    """(engine, job) of the jobs that are begun."""
    return [
        (one.model, one.command.job_id)
        for one in effects
        if isinstance(one, SendToEngine) and isinstance(one.command, Submit)
    ]


def speak(bench: CoreBench, event: protocol.Event, engine: str) -> list[Effect]:
    """An engine says something."""
    return bench.do(EngineSpoke(engine, event))


def test_a_new_model_is_served_once_it_is_loaded() -> None:
    """Until then nobody hears of it, and nothing is kept."""
    bench = CoreBench()
    begun = bench.do(offer("n"))
    assert added(begun) == ["n@1"]
    assert not kept(begun)
    assert not answers(begun)
    assert set(bench.core.experts) == {"m"}
    ready = speak(bench, LOADED, "n@1")
    assert kept(ready) == [("n", "new.gguf")]
    assert answers(ready) == [("c", CommandOutcome.DONE, None)]
    assert given(bench.submit("j", model="n")) == [("n@1", "j")]
    assert bench.core.experts["n"].file_sha256 == "ab" * 32


def test_a_model_that_cannot_be_loaded_changes_nothing() -> None:
    """Its engine ends, the coordinator hears why, and the former model serves on."""
    bench = CoreBench()
    bench.do(offer())
    failed = bench.do(EngineExited("m@1", "it is corrupt", permanent=True))
    assert removed(failed) == ["m@1"]
    assert answers(failed) == [("c", CommandOutcome.FAILED, "load_failed")]
    assert kept(failed) == []
    bench.do(EngineGone("m@1"))
    assert bench.core.swaps.is_empty
    assert given(bench.submit()) == [("m", "j")]


def test_beside_each_other_the_new_one_takes_new_jobs_and_the_old_one_ends_its_own() -> None:
    """The old engine is ended when its last job has ended, and not before."""
    bench = CoreBench()
    bench.submit("old")
    bench.do(offer(slots=2))
    assert given(bench.submit("between")) == [("m", "between")]
    assert removed(speak(bench, LOADED, "m@1")) == []
    assert given(bench.submit("new")) == [("m@1", "new")]
    assert removed(speak(bench, finished("old"), "m")) == []
    assert removed(speak(bench, finished("between"), "m")) == ["m"]
    bench.do(EngineGone("m"))
    assert bench.core.swaps.is_empty
    assert bench.core.experts["m"].section.slots == 2


def test_jobs_that_wait_go_over_to_the_new_model() -> None:
    """They begin there at once, and can be cancelled there."""
    bench = CoreBench()
    slots = bench.core.experts["m"].section.slots
    for number in range(slots + 1):
        bench.submit(f"j{number}")
    bench.do(offer())
    assert given(speak(bench, LOADED, "m@1")) == [("m@1", f"j{slots}")]


def test_without_room_beside_the_old_one_is_drained_and_jobs_wait() -> None:
    """Its engine is gone before the new one is started; whoever came meanwhile is served by the new one."""
    bench = CoreBench()
    bench.submit("old")
    assert added(bench.do(offer(beside=False))) == []
    assert given(bench.submit("waits")) == []
    drained = speak(bench, finished("old"), "m")
    assert (removed(drained), added(drained)) == (["m"], [])
    assert added(bench.do(EngineGone("m"))) == ["m@1"]
    assert given(bench.submit("later")) == []
    assert bench.core.expert_reports(bench.now_s)[0].state is ExpertState.LOADING
    ready = speak(bench, LOADED, "m@1")
    assert given(ready) == [("m@1", "waits"), ("m@1", "later")]
    assert answers(ready) == [("c", CommandOutcome.DONE, None)]
    assert kept(ready) == [("m", "new.gguf")]


def test_where_the_new_one_fails_the_old_one_is_brought_back_for_those_who_wait() -> None:
    """No job fails, and nothing else is kept."""
    bench = CoreBench()
    bench.do(offer(beside=False))
    bench.submit("waits")
    bench.do(EngineGone("m"))
    failed = bench.do(EngineExited("m@1", "out of memory", permanent=True))
    assert (removed(failed), answers(failed)) == (["m@1"], [("c", CommandOutcome.FAILED, "load_failed")])
    assert given(bench.submit("later")) == []
    assert added(bench.do(EngineGone("m@1"))) == ["m@2"]
    assert bench.core.experts["m"].section.path == Path("m.gguf")
    assert given(speak(bench, LOADED, "m@2")) == [("m@2", "waits"), ("m@2", "later")]
    assert not bench.sent


def test_a_withdrawn_model_answers_what_it_has_taken() -> None:
    """New jobs are refused at once; the answer comes when its memory is free."""
    bench = CoreBench("m", "n")
    bench.submit("old")
    begun = bench.do(ModelWithdrawn("c", "m"))
    assert kept(begun) == [("m", None)]
    assert answers(begun) == []
    assert bench.refusal("new").code == "unknown_expert"
    assert removed(speak(bench, finished("old"), "m")) == ["m"]
    assert isinstance(bench.settle("old"), JobDone)
    assert answers(bench.do(EngineGone("m"))) == [("c", CommandOutcome.DONE, None)]


def test_one_exchange_at_a_time_for_one_name() -> None:
    """A second order is refused, whatever it wants; another name's is not."""
    bench = CoreBench("m", "n")
    bench.do(offer())
    assert answers(bench.do(offer(command_id="d"))) == [("d", CommandOutcome.REFUSED, "busy")]
    assert answers(bench.do(ModelWithdrawn("e", "m"))) == [("e", CommandOutcome.REFUSED, "busy")]
    assert added(bench.do(offer("n", command_id="f"))) == ["n@2"]


def test_nobody_withdraws_what_is_not_served() -> None:
    """The answer names what is."""
    bench = CoreBench("m")
    assert answers(bench.do(ModelWithdrawn("c", "other"))) == [("c", CommandOutcome.REFUSED, "unknown_model")]
