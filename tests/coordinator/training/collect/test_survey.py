"""Tests of a survey's patience with experts that are away, busy or failing, on a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moe2.coordinator.training.collect.asking import (
    Asker,
    AskError,
    AwayError,
    BusyError,
    LiveExpert,
    UnreachableError,
)
from moe2.coordinator.training.collect.outfile import Answered, Outfile
from moe2.coordinator.training.collect.questions import Metric, Question
from moe2.coordinator.training.collect.survey import AWAY_PATIENCE_S, GIVE_UP_AFTER, Report, survey
from tests.virtualclock import on_virtual_clock

ONE, TWO = LiveExpert("one/m", "m"), LiveExpert("two/n", "n")
QUESTIONS = tuple(
    Question(id=f"q{n}", asked=f"say {n}", gold=str(n), metric=Metric.NUMERIC, choices=(), labels=()) for n in range(30)
)


class Script(Asker):
    """A coordinator whose experts answer in a second, unless `fault` raises at that time.

    away: for each expert the times between which it is not in the fleet.
    """

    def __init__(
        self,
        fault: Callable[[LiveExpert, float], None] = lambda *_: None,
        *,
        away: dict[str, tuple[float, float]] | None = None,
        joules: float | None = 2.0,
    ) -> None:
        self._fault = fault
        self._away = away or {}
        self._joules = joules
        self.asked: list[tuple[str, str, float]] = []

    def is_away(self, key: str, now_s: float) -> bool:
        begins_s, ends_s = self._away.get(key, (0.0, 0.0))
        return begins_s <= now_s < ends_s

    async def live_experts(self) -> tuple[LiveExpert, ...]:
        now_s = asyncio.get_running_loop().time()
        if self.is_away("coordinator", now_s):
            raise UnreachableError("Nobody answers.")
        return tuple(expert for expert in (ONE, TWO) if not self.is_away(expert.key, now_s))

    async def ask(self, question: Question, expert: LiveExpert) -> Answered:
        now_s = asyncio.get_running_loop().time()
        self.asked.append((question.id, expert.key, now_s))
        if self.is_away("coordinator", now_s):
            raise UnreachableError("Nobody answers.")
        if self.is_away(expert.key, now_s):
            raise AwayError("The model does not exist.")
        self._fault(expert, now_s)
        await asyncio.sleep(1.0)
        return Answered(
            model=expert.column,
            score=1.0,
            chars=1,
            tokens=1,
            seconds=1.0,
            joules=self._joules,
            energy_quality=None,
            file_sha256=expert.file_sha256,
        )


async def surveyed(
    script: Script,
    path: Path,
    *,
    experts: Sequence[LiveExpert] = (ONE, TWO),
    is_over: Callable[[Report], bool] = lambda _: False,
) -> tuple[Report, Outfile]:
    outfile = Outfile(path / "o.jsonl")
    report = await survey(script, QUESTIONS, experts, outfile, concurrency=3, progress=lambda: None, is_over=is_over)
    return report, outfile


def answers(outfile: Outfile, key: str) -> int:
    return sum(key in outfile.answers(question) for question in QUESTIONS)


@on_virtual_clock
async def test_a_gap_in_a_link_costs_no_answer(tmp_path: Path) -> None:
    """An expert that is away for 0.3 s, in which ten questions would fail in a row, answers all of them later."""
    report, outfile = await surveyed(Script(away={ONE.key: (2.0, 2.3)}), tmp_path)
    assert (report.answered, dict(report.failures), report.given_up) == (60, {}, set())
    assert (answers(outfile, ONE.key), answers(outfile, TWO.key)) == (30, 30)


@on_virtual_clock
async def test_the_others_are_asked_while_one_is_away(tmp_path: Path) -> None:
    """Four minutes without an expert are no time lost for the others, and it is asked when it is back."""
    script = Script(away={ONE.key: (0.0, 240.0)})
    report, _ = await surveyed(script, tmp_path)
    ended_s = max(at_s for _, key, at_s in script.asked if key == TWO.key)
    assert (report.answered, ended_s < 40.0) == (60, True)


@on_virtual_clock
async def test_an_expert_that_stays_away_is_left_alone(tmp_path: Path) -> None:
    """After minutes the survey ends without it, keeps what the others said, and tells so."""
    report, outfile = await surveyed(Script(away={ONE.key: (5.0, 1e9)}), tmp_path)
    assert report.given_up == {ONE.key}
    assert [reason for (_, reason) in report.failures] == ["Its agent was away for 5 minutes."]
    assert answers(outfile, TWO.key) == 30
    assert asyncio.get_running_loop().time() == pytest.approx(AWAY_PATIENCE_S, abs=30.0)


@on_virtual_clock
async def test_a_coordinator_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """A minute without the coordinator costs no answer."""
    report, _ = await surveyed(Script(away={"coordinator": (3.0, 63.0)}), tmp_path)
    assert (report.answered, report.given_up) == (60, set())


@on_virtual_clock
async def test_a_coordinator_that_stays_away_ends_the_survey(tmp_path: Path) -> None:
    """What was answered before is in the file."""
    with pytest.raises(UnreachableError):
        await surveyed(Script(away={"coordinator": (3.5, 1e9)}), tmp_path)
    assert answers(Outfile(tmp_path / "o.jsonl"), ONE.key) > 0


@on_virtual_clock
async def test_one_that_fails_while_it_is_there_is_left_alone(tmp_path: Path) -> None:
    """Ten failures in a row are enough, where the expert is there and refuses."""

    def refuse(expert: LiveExpert, _: float) -> None:
        if expert is ONE:
            raise AskError("Too long.")

    report, outfile = await surveyed(Script(refuse), tmp_path)
    assert report.given_up == {ONE.key}
    assert GIVE_UP_AFTER <= report.failures[ONE.key, "Too long."] < GIVE_UP_AFTER + 3
    assert answers(outfile, TWO.key) == 30


@on_virtual_clock
async def test_one_that_is_lost_with_each_question_fails_in_the_end(tmp_path: Path) -> None:
    """An expert that is in the fleet and lost at every question does not hold up the survey for good."""

    def crash(expert: LiveExpert, _: float) -> None:
        if expert is ONE:
            raise AwayError("The agent was lost.")

    report, outfile = await surveyed(Script(crash), tmp_path)
    assert (report.given_up, answers(outfile, TWO.key)) == ({ONE.key}, 30)


@on_virtual_clock
async def test_a_busy_expert_is_asked_again(tmp_path: Path) -> None:
    """An expert that is busy for a minute answers everything."""

    def busy(expert: LiveExpert, now_s: float) -> None:
        if expert is ONE and now_s < 60.0:
            raise BusyError("Busy.", 20.0)

    report, _ = await surveyed(Script(busy), tmp_path)
    assert (report.answered, dict(report.failures)) == (60, {})


@on_virtual_clock
async def test_a_limit_on_joules_ends_the_survey(tmp_path: Path) -> None:
    """No more is asked once the limit is reached, what is under way is kept, and the rest is counted."""
    report, outfile = await surveyed(Script(), tmp_path, is_over=lambda so_far: so_far.joules >= 20.0)
    assert (report.answered, report.left) == (12, 48)
    assert (report.joules, report.unmeasured) == (24.0, 0)
    assert answers(outfile, ONE.key) + answers(outfile, TWO.key) == 12


@on_virtual_clock
async def test_unmeasured_joules_are_counted_as_such(tmp_path: Path) -> None:
    """Answers without joules are told apart from answers that took none."""
    report, _ = await surveyed(Script(joules=None), tmp_path)
    assert (report.joules, report.unmeasured) == (0.0, 60)


@on_virtual_clock
async def test_a_complete_file_asks_nothing(tmp_path: Path) -> None:
    """A second survey has nothing to do."""
    await surveyed(Script(), tmp_path)
    script = Script()
    report, _ = await surveyed(script, tmp_path)
    assert (report.answered, script.asked) == (0, [])


@on_virtual_clock
async def test_a_model_whose_file_was_replaced_is_asked_again(tmp_path: Path) -> None:
    """The other model's answers stay, and the new file's take the place of the old one's."""
    before = LiveExpert("one/m", "m", file_sha256="ab" * 32)
    await surveyed(Script(), tmp_path, experts=(before, TWO))
    script = Script()
    await surveyed(script, tmp_path, experts=(replace(before, file_sha256="cd" * 32), TWO))
    assert {key for _, key, _ in script.asked} == {"one/m"}
    assert len(script.asked) == len(QUESTIONS)
