"""The life of jobs on an agent: random schedules."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.agent.engine import protocol
from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.effects import SendToCoordinator, SendToEngine, SendTokens, SettleEnergy
from moe2.agent.jobs.events import (
    CancelRequested,
    DrainRequested,
    EnergySettled,
    EngineExited,
    EngineSpoke,
    Event,
    JobSubmitted,
    LinkLost,
    TimePassed,
)
from moe2.agent.jobs.expert import Phase
from moe2.common.energy import unmeasured
from moe2.common.link.messages import CancelJob, JobStarted, Submit
from moe2.common.link.reports import ExpertState
from tests.agent.jobs.corebench import (
    LOADED,
    MAX_QUEUE,
    SLOTS,
    decoded,
    finished,
    section,
    submit,
)

# --- Everything at once -----------------------------------------------------------------------------------------------

MODELS = ("m", "other")
WORDS = ("started", "decoded", "finished", "failed")


class AnyOrder(RuleBasedStateMachine):
    """Random events from coordinator, engines, sensors and clock; the engines are modelled as the sets they run."""

    def __init__(self) -> None:
        super().__init__()
        self.core = AgentCore(tuple(section(name) for name in MODELS))
        self.now_s = 0.0
        self.next_id = 0
        self.in_engine: dict[str, list[str]] = {name: [] for name in MODELS}
        self.accounts: list[str] = []
        self.accepted: set[str] = set()
        self.refused: set[str] = set()
        self.abandoned: set[str] = set()
        self.endings: Counter[str] = Counter()
        self.settled: Counter[str] = Counter()

    def do(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now_s):
            match effect:
                case SendToEngine(model=model, command=Submit(job_id=job_id)):
                    assert self.core.experts[model].state is ExpertState.READY
                    assert job_id not in self.in_engine[model]
                    self.in_engine[model].append(job_id)
                case SendToEngine(model=model, command=CancelJob(job_id=job_id)):
                    assert job_id in self.in_engine[model]
                case SettleEnergy(job_id=job_id):
                    self.settled[job_id] += 1
                    self.accounts.append(job_id)
                case SendToCoordinator(message=JobStarted(job_id=job_id)):
                    assert not self.endings[job_id]
                case SendToCoordinator(message=message):
                    self.endings[message.job_id] += 1
                case SendTokens(jobs=jobs):
                    assert jobs
                    assert all(job.pieces and not self.endings[job.job_id] for job in jobs)

    def speak(self, model: str, event: protocol.Event) -> None:
        self.do(EngineSpoke(model, event))

    @rule(model=st.sampled_from([*MODELS, "unknown"]), deadline_s=st.none() | st.floats(0, 5))
    def submit(self, model: str, deadline_s: float | None) -> None:
        job_id = str(self.next_id)
        self.next_id += 1
        self.do(JobSubmitted(submit(job_id, model=model, deadline_s=deadline_s)))
        (self.accepted if job_id in self.core.jobs else self.refused).add(job_id)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.do(CancelRequested(str(data.draw(st.integers(0, max(0, self.next_id - 1))))))

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        deadline_s = self.core.next_deadline_s
        if deadline_s is not None and deadline_s <= self.now_s:
            self.do(TimePassed())
            left_s = self.core.next_deadline_s
            assert left_s is None or left_s > self.now_s

    @rule(
        model=st.sampled_from(MODELS),
        what=st.sampled_from(["started", "decoded", "finished", "failed"]),
        data=st.data(),
    )
    def engine_speaks(self, model: str, what: str, data: st.DataObject) -> None:
        running = self.in_engine[model]
        if not running:
            return
        job_id = data.draw(st.sampled_from(running))
        match what:
            case "started":
                self.speak(model, protocol.Started(job_id=job_id, prompt_tokens=1))
            case "decoded":
                self.speak(model, decoded(job_id, "x"))
            case "finished":
                running.remove(job_id)
                self.speak(model, finished(job_id, data.draw(st.sampled_from(["stop", "length", "cancelled"]))))
            case _:
                running.remove(job_id)
                self.speak(model, protocol.JobFailed(job_id=job_id, code="out_of_memory", message="No memory."))

    @rule(model=st.sampled_from(MODELS))
    def load(self, model: str) -> None:
        if self.core.experts[model].state is not ExpertState.READY:
            self.speak(model, LOADED)

    @rule(model=st.sampled_from(MODELS), permanent=st.booleans())
    @precondition(lambda self: self.next_id > 3)
    def crash(self, model: str, permanent: bool) -> None:
        self.in_engine[model].clear()
        self.do(EngineExited(model, "it died", permanent))

    @rule()
    def lose_link(self) -> None:
        self.abandoned |= set(self.core.jobs)
        self.do(LinkLost())

    @rule()
    @precondition(lambda self: self.next_id > 8)
    def drain(self) -> None:
        self.do(DrainRequested())

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.accounts:
            job_id = data.draw(st.sampled_from(self.accounts))
            self.accounts.remove(job_id)
            self.do(EnergySettled(job_id, unmeasured("a test")))

    @invariant()
    def keeps_its_bounds(self) -> None:
        for name, expert in self.core.experts.items():
            assert len(expert.active) <= SLOTS
            assert len(expert.queue) <= MAX_QUEUE
            assert set(self.in_engine[name]) == expert.active
            assert all(self.core.jobs[job_id].phase is Phase.RUNNING for job_id in expert.active)
            assert all(self.core.jobs[job_id].phase is Phase.QUEUED for job_id in expert.queue)
            assert not expert.queue or len(expert.active) == SLOTS

    @invariant()
    def ends_nothing_twice(self) -> None:
        assert all(number <= 1 for number in self.endings.values())
        assert all(number <= 1 for number in self.settled.values())
        assert all(self.endings[job_id] == 1 for job_id in self.refused)

    def teardown(self) -> None:
        """The engines answer everything and the sensors too: nothing is left, and everybody was told."""
        while any(self.in_engine.values()) or self.accounts:
            for model, running in self.in_engine.items():
                if running:
                    self.speak(model, finished(running.pop(0)))
            for job_id in self.accounts[:]:
                self.accounts.remove(job_id)
                self.do(EnergySettled(job_id, unmeasured("a test")))
        assert self.core.is_idle
        assert self.core.next_deadline_s is None
        assert set(self.settled) == self.accepted
        for job_id in self.accepted:
            assert self.endings[job_id] == (0 if job_id in self.abandoned else 1)
        assert self.core.jobs_finished + self.core.jobs_failed == len(self.accepted)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
