"""Models that are loaded on demand and unloaded when nobody wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.effects import ReportChange, StartEngine, StopEngine
from moe2.agent.jobs.events import CancelRequested, TimePassed
from moe2.agent.settings import ModelSection
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import JobDone, JobFailed, Submit
from moe2.common.link.reports import ExpertState
from tests.agent.jobs.corebench import LOADED, MAX_QUEUE, SLOTS, CoreBench, commands, finished, settling


class ColdBench(CoreBench):
    """A core whose one model is `m`, with these settings."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(ready=False)
        fields = {"load": "on_demand", **fields}
        model = ModelSection(name="m", path=Path("m.gguf"), slots=SLOTS, max_queue=MAX_QUEUE, **fields)
        self.core = AgentCore((model,))

    def state(self) -> ExpertState:
        return self.core.expert_reports(self.now_s)[0].state


def test_the_first_job_starts_the_engine_and_waits() -> None:
    """Once, however many jobs come; they run when the model is in memory."""
    bench = ColdBench()
    assert bench.state() is ExpertState.COLD
    assert StartEngine("m") in bench.submit("a")
    assert StartEngine("m") not in bench.submit("b")
    assert bench.state() is ExpertState.LOADING
    bench.now_s += 4.0
    started = commands(bench.engine(LOADED))
    assert [command.job_id for command in started if isinstance(command, Submit)] == ["a", "b"]
    assert bench.core.expert_reports(bench.now_s)[0].load_s == 4.0


def test_as_many_wait_for_a_cold_model_as_for_a_ready_one() -> None:
    """Its slots and its queue; one more is refused."""
    bench = ColdBench()
    for number in range(SLOTS + MAX_QUEUE):
        bench.submit(f"j{number}")
    assert bench.refusal("more").code == JobErrorCode.QUEUE_FULL


def test_a_failed_load_fails_those_who_wait_for_it() -> None:
    """With the reason, and as something that another expert may do."""
    bench = ColdBench()
    bench.submit("a")
    assert settling(bench.crash("There is no model file.", permanent=True)) == ["a"]
    failed = bench.settle("a")
    assert isinstance(failed, JobFailed)
    assert failed.code == JobErrorCode.NOT_READY
    assert "m could not be loaded: There is no model file." in failed.message
    assert bench.state() is ExpertState.FAILED


def test_a_job_may_be_cancelled_while_the_model_loads() -> None:
    """The load goes on: the next one is quicker for it."""
    bench = ColdBench()
    bench.submit("a")
    assert settling(bench.do(CancelRequested("a"))) == ["a"]
    assert commands(bench.engine(LOADED)) == []
    assert bench.state() is ExpertState.READY


def test_an_idle_model_is_unloaded_when_its_time_is_up() -> None:
    """Counted from the end of its last job; the next job loads it again."""
    bench = ColdBench(unload_after_s=60.0)
    bench.submit("a")
    bench.engine(LOADED)
    bench.now_s += 100.0
    assert bench.core.next_deadline_s is None, "a busy model stays"
    bench.engine(finished("a"))
    bench.settle("a")
    assert bench.core.next_deadline_s == bench.now_s + 60.0
    bench.now_s += 59.0
    assert bench.do(TimePassed()) == []
    bench.now_s += 1.0
    assert bench.do(TimePassed()) == [StopEngine("m"), ReportChange()]
    assert bench.state() is ExpertState.COLD
    assert bench.core.next_deadline_s is None
    assert StartEngine("m") in bench.submit("b")


def test_a_model_that_was_loaded_at_the_start_may_turn_cold_too() -> None:
    """`unload_after_s` alone makes it one that is loaded on demand."""
    bench = ColdBench(load="start", unload_after_s=1.0)
    assert bench.state() is ExpertState.LOADING
    bench.engine(LOADED)
    bench.now_s += 1.0
    assert StopEngine("m") in bench.do(TimePassed())
    assert bench.core.expert_reports(bench.now_s)[0].on_demand


def test_what_was_learned_of_a_model_outlives_its_unloading() -> None:
    """A cold expert can still be predicted and told from others."""
    bench = ColdBench(unload_after_s=1.0)
    bench.submit("a")
    bench.engine(LOADED)
    bench.engine(finished("a"))
    bench.now_s += 1.0
    bench.do(TimePassed())
    (report,) = bench.core.expert_reports(bench.now_s)
    assert (report.quantization, report.load_s, report.state) == ("Q4_1", 0.0, ExpertState.COLD)
    assert report.performance.decode_tokens_per_s is not None


def test_waiting_for_a_load_is_no_waiting_for_a_slot() -> None:
    """The job's usage tells the whole wait; what is learned of the expert's speed leaves the loading out."""
    bench = ColdBench()
    bench.submit("a")
    bench.now_s += 9.0
    bench.engine(LOADED)
    bench.now_s += 2.0
    bench.engine(finished("a", wait_s=0.5))
    timing = bench.core.jobs["a"].timing
    assert timing is not None
    assert timing.queue_s == 0.5
    done = bench.settle("a")
    assert isinstance(done, JobDone)
    assert done.usage.queue_s == 9.5
