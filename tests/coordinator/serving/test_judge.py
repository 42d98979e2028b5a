"""What the ends of jobs say of their experts."""

from __future__ import annotations

import pytest

from moe2.common.link.messages import JobStarted, JobUsage
from moe2.common.link.reports import ExpertState
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Completed, Failed, Outcome
from moe2.coordinator.serving.judge import ExpertJudge, Suspects
from tests.coordinator.experts import expert
from tests.coordinator.lives import USAGE, LifeBench

GUILTY = ["agent-1/m"]


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


def in_death(suspects: Suspects, *request_ids: str, now_s: float = 101.0) -> list[LifeBench]:
    """Requests that were in the batch when the engine of `agent-1` died."""
    lives = [LifeBench(request_id=request_id).admitted() for request_id in request_ids]
    for life in lives:
        attempt = life.life.attempts[0]
        attempt.died_with = True
        suspects.died(life.life, attempt, now_s)
        suspects.note(life.life)
    return lives


def end(suspects: Suspects, life: LifeBench, outcome: Outcome) -> list[str]:
    life.life.outcome = outcome
    return suspects.ended(life.life)


ANSWERED = Completed("stop")
CONVICTED = Failed("crash_suspected", "It died.")


def test_a_death_whose_suspects_are_all_answered_is_the_engines_fault() -> None:
    """Once, when the last of them has ended."""
    suspects = Suspects()
    first, second = in_death(suspects, "a", "b")
    assert end(suspects, first, ANSWERED) == []
    assert end(suspects, second, ANSWERED) == GUILTY
    assert len(suspects) == 0


def test_a_death_with_a_convicted_suspect_is_explained() -> None:
    """Whoever else was there is answered, and the engine is innocent."""
    for order in ((0, 1), (1, 0)):
        suspects = Suspects()
        lives = in_death(suspects, "poison", "b")
        found = [end(suspects, lives[n], (CONVICTED, ANSWERED)[n]) for n in order]
        assert found == [[], []]


def test_a_death_whose_suspect_ended_otherwise_is_held_against_nobody() -> None:
    """Nobody knows what it was."""
    suspects = Suspects()
    first, second = in_death(suspects, "a", "b")
    assert end(suspects, first, Failed("engine_crashed", "It died.")) == []
    assert end(suspects, second, ANSWERED) == []


def test_deaths_one_after_another_are_told_apart() -> None:
    """One that is explained says nothing of the other."""
    suspects = Suspects()
    [poison] = in_death(suspects, "poison", now_s=101.0)
    innocent = LifeBench(request_id="b")
    innocent.now_s = 102.0
    innocent.admitted()
    attempt = innocent.life.attempts[0]
    attempt.died_with = True
    suspects.died(innocent.life, attempt, 103.0)
    suspects.note(innocent.life)
    assert end(suspects, poison, CONVICTED) == []
    assert end(suspects, innocent, ANSWERED) == GUILTY


def test_requests_that_are_no_suspects_are_not_remembered() -> None:
    """Their ends say nothing."""
    suspects = Suspects()
    life = LifeBench(request_id="a").admitted()
    suspects.note(life.life)
    assert "a" not in suspects
    assert end(suspects, life, ANSWERED) == []
