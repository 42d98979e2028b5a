"""What the ends of jobs say of their experts."""

from __future__ import annotations

import pytest

from moe2.common.link.messages import JobUsage
from moe2.common.link.reports import ExpertState
from moe2.coordinator.fleet.table import Expert
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
