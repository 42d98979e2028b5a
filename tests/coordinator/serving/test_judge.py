"""What the ends of jobs say of their experts."""

from __future__ import annotations

import pytest

from moe2.common.link.messages import JobStarted, JobUsage
from moe2.common.link.reports import ExpertState
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving import events
from moe2.coordinator.serving.judge import ExpertJudge
from tests.coordinator.experts import expert
from tests.coordinator.lives import USAGE, LifeBench


@pytest.mark.parametrize(
    ("asked", "usage", "opens"),
    [
        (expert(), None, False),
        (expert(), USAGE, True),
        (expert(state=ExpertState.COLD), None, True),
    ],
    ids=["its engine has just died", "its model could not be loaded", "its host did not wake"],
)
def test_jobs_that_an_engine_turns_away_open_no_breaker(asked: Expert, usage: JobUsage | None, opens: bool) -> None:
    """The report that says so is on its way; an expert that was asked to become ready and did not has failed."""
    judge = ExpertJudge(lambda: ())
    for n in range(4):
        life = LifeBench(asked).admitted()
        life.failed("not_ready", usage=usage)
        judge.released(life.life, "req-1.0", 101.0 + 0.1 * n)
    assert bool(judge.breakers.barred(102.0)) is opens


@pytest.mark.parametrize(("is_answered", "opens"), [(True, True), (False, False)])
def test_what_fails_everywhere_for_unknown_reasons_is_held_against_nobody(is_answered: bool, opens: bool) -> None:
    """A request that no expert can prepare may be the cause; one that another expert answers is none."""
    judge = ExpertJudge(lambda: ())
    for n in range(4):
        now_s = 101.0 + 0.1 * n
        life = LifeBench().admitted()
        life.failed("internal", usage=None)
        judge.released(life.life, "req-1.0", now_s)
        life.done(attempt=1) if is_answered else life.failed("internal", attempt=1, usage=None)
        judge.released(life.life, "req-1.1", now_s)
        judge.ended(life.life, now_s)
    assert set(judge.breakers.barred(102.0)) == ({"agent-1/m"} if opens else set())


def test_what_fails_after_it_has_begun_counts() -> None:
    """Whether or not its request is answered elsewhere."""
    judge = ExpertJudge(lambda: ())
    for n in range(3):
        life = LifeBench(expert()).admitted()
        life.do(events.AttemptStarted(JobStarted(job_id="req-1.0", prompt_tokens=3, queue_s=0.0)))
        life.failed("internal")
        judge.released(life.life, "req-1.0", 101.0 + 0.1 * n)
    assert set(judge.breakers.barred(102.0)) == {"agent-1/m"}
