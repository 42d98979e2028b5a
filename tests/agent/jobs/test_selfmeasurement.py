"""An idle expert measures itself: when, with what, and how it makes way."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.agent.engine import protocol
from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.effects import SendToCoordinator, SendToEngine
from moe2.agent.jobs.events import (
    CommandReceived,
    DrainRequested,
    EnergySettled,
    LinkLost,
    OwnWorkSpent,
    PowerModeChanged,
    TimePassed,
)
from moe2.agent.jobs.selfmeasurement import JOB_S, QUIET_S, RETRY_S, MeasuringRules
from moe2.common.energy import Energy, Quality
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import CancelJob, JobFailed, Submit, UnloadModel
from tests.agent.jobs.corebench import LOADED, CoreBench, commands, decoded, finished, section

RULES = MeasuringRules(max_j=1000.0, stale_s=3600.0)


def joules(j: float | None) -> Energy:
    quality = Quality.MEASURED_COUNTER if j is not None else Quality.UNMEASURED
    return Energy(joules=j, marginal_joules=j, quality=quality, n_samples=15)


class Bench(CoreBench):
    """A core that measures itself."""

    def __init__(self, *models: str, rules: MeasuringRules | None = RULES, ready: bool = True, **fields: Any) -> None:
        super().__init__(ready=False)
        names = models or ("m",)
        self.core = AgentCore(tuple(section(name) for name in names), measuring=rules, **fields)
        if ready:
            for name in names:
                self.engine(LOADED, name)

    def pass_s(self, seconds: float) -> list[Submit]:
        """Returns the jobs that begin meanwhile, by the core's own deadlines."""
        end_s = self.now_s + seconds
        begun: list[Submit] = []
        while (deadline_s := self.core.next_deadline_s) is not None and deadline_s <= end_s:
            self.now_s = max(self.now_s, deadline_s)
            sent = commands(self.do(TimePassed()))
            begun += [command for command in sent if isinstance(command, Submit)]
            if sent:
                break
        else:
            self.now_s = end_s
        return begun

    def finish(self, job: Submit, j: float | None = 50.0) -> list[Submit]:
        """Ends a job that decoded all it was asked for; returns the jobs that follow at once."""
        self.now_s += JOB_S
        self.engine(finished(job.job_id, cached_tokens=0, decoded_tokens=job.max_tokens, decode_s=JOB_S), job.model)
        sent = commands(self.do(EnergySettled(job.job_id, joules(j))))
        return [command for command in sent if isinstance(command, Submit)]

    def measure(self) -> list[Submit]:
        """Runs all jobs of one measurement; returns them."""
        begun = self.pass_s(QUIET_S)
        jobs: list[Submit] = []
        while begun:
            [job] = begun
            jobs.append(job)
            begun = self.finish(job) or self.pass_s(QUIET_S)
        return jobs


def test_an_expert_that_was_loaded_measures_itself_with_two_jobs() -> None:
    """One with a short and one with a long prompt, each about as long as a sensor needs; then it is measured."""
    bench = Bench()
    assert bench.pass_s(QUIET_S - 0.1) == []
    short, long = bench.measure()
    assert isinstance(short.prompt, type(long.prompt))
    assert len(str(short.prompt)) < len(str(long.prompt)) / 3
    assert short.max_tokens is not None
    assert long.max_tokens is not None
    assert long.max_tokens < short.max_tokens
    assert short.max_tokens == round(JOB_S * 50.0)
    assert not short.cache_prompt
    [report] = bench.core.expert_reports(bench.now_s)
    assert report.energy is not None
    assert report.latency is not None
    assert (report.energy.n_requests, report.latency.n_requests) == (2, 2)
    assert bench.pass_s(RULES.stale_s / 2) == []


def test_nobody_is_told_of_the_hosts_own_work() -> None:
    """Neither in messages nor in counts, and its slot counts as free."""
    bench = Bench()
    [job] = bench.pass_s(QUIET_S)
    bench.engine(protocol.Started(job_id=job.job_id, prompt_tokens=30))
    bench.engine(decoded(job.job_id, "a", "b"))
    assert bench.core.is_own(job.job_id)
    [report] = bench.core.expert_reports(bench.now_s)
    assert (report.active, report.queued) == (0, 0)
    bench.finish(job)
    assert (bench.sent, bench.tokens) == ([], [])
    assert (bench.core.jobs_finished, bench.core.jobs_failed) == (0, 0)


def test_a_request_that_comes_ends_it_at_once_and_gets_its_slot() -> None:
    """Measuring waits for a quieter time."""
    bench = Bench()
    [job] = bench.pass_s(QUIET_S)
    assert commands(bench.submit("a"))[0] == CancelJob(job_id=job.job_id)
    bench.engine(finished(job.job_id, "cancelled"))
    bench.do(EnergySettled(job.job_id, joules(None)))
    bench.engine(finished("a", decoded_tokens=5))
    bench.do(EnergySettled("a", joules(None)))
    assert bench.pass_s(RETRY_S - 1.0) == []
    assert len(bench.pass_s(QUIET_S + 1.0)) == 1


def test_a_request_that_comes_while_it_measures_is_not_refused_for_its_slot() -> None:
    """Also where the expert has one slot and no queue."""
    bench = Bench(ready=False)
    model = section("m").model_copy(update={"slots": 1, "max_queue": 0})
    bench.core = AgentCore((model,), measuring=RULES)
    bench.engine(LOADED)
    [job] = bench.pass_s(QUIET_S)
    assert not [
        effect
        for effect in bench.submit("a")
        if isinstance(effect, SendToCoordinator) and isinstance(effect.message, JobFailed)
    ]
    started = commands(bench.engine(finished(job.job_id, "cancelled")))
    assert [command.job_id for command in started if isinstance(command, Submit)] == ["a"]
    assert bench.refusal("b").code == JobErrorCode.QUEUE_FULL


def test_measuring_never_runs_beside_a_request_of_another_model() -> None:
    """The host's power belongs to whoever asked."""
    bench = Bench("m", "other")
    bench.submit("a", model="other")
    assert bench.pass_s(60.0) == []


def test_experts_of_one_host_measure_themselves_one_after_the_other() -> None:
    """Each has the host for itself."""
    bench = Bench("m", "other")
    jobs = bench.measure()
    assert sorted(job.model for job in jobs) == ["m", "m", "other", "other"]


def test_it_ends_when_its_joules_are_spent() -> None:
    """What was measured until then counts, and it is not tried again before the figures are old."""
    bench = Bench()
    [job] = bench.pass_s(QUIET_S)
    assert commands(bench.do(OwnWorkSpent(799.0))) == []
    assert commands(bench.do(OwnWorkSpent(800.0))) == [CancelJob(job_id=job.job_id)]
    bench.engine(finished(job.job_id, "cancelled", cached_tokens=0, decoded_tokens=40))
    bench.do(EnergySettled(job.job_id, joules(900.0)))
    assert bench.pass_s(RULES.stale_s - 60.0) == []
    [report] = bench.core.expert_reports(bench.now_s)
    assert report.energy is not None


def test_a_second_job_that_could_not_be_afforded_is_not_begun() -> None:
    """Two of 600 J would exceed 1000 J."""
    bench = Bench()
    [job] = bench.pass_s(QUIET_S)
    assert bench.finish(job, 600.0) == []
    assert bench.pass_s(60.0) == []


def test_a_host_without_a_sensor_measures_its_speed_once() -> None:
    """It stays without joules, and does not try for ever."""
    bench = Bench()
    begun = bench.pass_s(QUIET_S)
    while begun:
        begun = bench.finish(begun[0], None) or bench.pass_s(QUIET_S)
    assert bench.pass_s(RULES.stale_s - 60.0) == []


def test_another_power_mode_is_measured_anew() -> None:
    """And the first one, entered again, is known."""
    bench = Bench()
    bench.do(PowerModeChanged("MAXN"))
    bench.measure()
    [first] = commands(bench.do(PowerModeChanged("MODE_30W")))
    assert isinstance(first, Submit)
    [second] = bench.finish(first)
    assert bench.finish(second) == []
    bench.do(PowerModeChanged("MAXN"))
    assert bench.pass_s(60.0) == []


def test_old_figures_are_measured_again() -> None:
    """A request in between makes them new."""
    bench = Bench()
    bench.measure()
    bench.pass_s(RULES.stale_s - 100.0)
    bench.submit("a")
    bench.engine(finished("a"))
    bench.do(EnergySettled("a", joules(5.0)))
    assert bench.pass_s(RULES.stale_s - 100.0) == []
    assert len(bench.pass_s(200.0)) == 1


@pytest.mark.parametrize("what", ["drain", "unload"])
def test_a_command_and_a_shutdown_end_it(what: str) -> None:
    """Neither waits for it."""
    bench = Bench(allow_unload=True)
    [job] = bench.pass_s(QUIET_S)
    event = DrainRequested() if what == "drain" else CommandReceived(UnloadModel(command_id="u", model="m"))
    assert commands(bench.do(event)) == [CancelJob(job_id=job.job_id)]


def test_a_lost_link_does_not_disturb_it() -> None:
    """It is nobody's but the host's."""
    bench = Bench()
    bench.pass_s(QUIET_S)
    assert [effect for effect in bench.do(LinkLost()) if isinstance(effect, SendToEngine)] == []


def test_an_engine_that_dies_of_it_is_not_killed_again_and_again() -> None:
    """After its two jobs the expert is left alone until its figures would be old."""
    bench = Bench()
    deaths = 0
    for _ in range(5):
        begun = bench.pass_s(60.0)
        if not begun:
            break
        bench.crash()
        bench.do(EnergySettled(begun[0].job_id, joules(None)))
        bench.engine(LOADED)
        deaths += 1
    assert deaths == 2


def test_switched_off_it_never_begins() -> None:
    """The configuration's word."""
    assert Bench(rules=None).pass_s(10_000.0) == []
