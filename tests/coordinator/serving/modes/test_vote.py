"""Vote: every member scores the choices, the mixture decides."""

from __future__ import annotations

import pytest

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import ScoreJob
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Purpose
from moe2.coordinator.serving.effects import Completed, Failed
from moe2.coordinator.serving.modes.panel import GRACE_S
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import outcomes, retires, stopped, submitted
from tests.coordinator.panels import PanelBench, ballot, jobs


@pytest.fixture
def vote() -> PanelBench:
    bench = PanelBench(Mode.VOTE, ballot=ballot("yes", "no", "maybe"), weights=(0.5, 0.3, 0.2))
    bench.admitted()
    return bench


def test_every_member_scores_every_choice(vote: PanelBench) -> None:
    """One job each, with the time that is left."""
    asked = jobs(vote.effects)
    assert [type(job) for job in asked] == [ScoreJob] * 3
    assert {job.continuations for job in asked if isinstance(job, ScoreJob)} == {("yes", "no", "maybe")}
    assert {job.deadline_s for job in asked} == {59.5}
    assert [attempt.purpose for attempt in vote.life.attempts] == [Purpose.SCORE] * 3


def test_the_answer_is_the_mixtures(vote: PanelBench) -> None:
    """0.5 (.6 .3 .1) + 0.3 (.1 .8 .1) + 0.2 (.2 .7 .1) = (.37 .53 .10), though the heaviest member says yes."""
    vote.scored(0, 0.6, 0.3, 0.1)
    vote.scored(1, 0.1, 0.8, 0.1)
    assert vote.text == ""
    effects = vote.scored(2, 0.2, 0.7, 0.1)
    assert vote.text == "no"
    assert outcomes(effects) == [Completed("stop")]
    assert retires(effects)
    assert vote.together.distribution == pytest.approx((0.37, 0.53, 0.10))
    assert [share.weight for share in vote.together.members] == pytest.approx([0.5, 0.3, 0.2])
    assert vote.together.members[1].distribution == pytest.approx((0.1, 0.8, 0.1))


def test_a_member_that_fails_is_left_out_by_name(vote: PanelBench) -> None:
    """(.5 (.6 .3 .1) + .2 (.2 .7 .1)) / .7 = (.486 .414 .1)."""
    vote.scored(0, 0.6, 0.3, 0.1)
    vote.failed(attempt=1, message="Out of memory.")
    vote.scored(2, 0.2, 0.7, 0.1)
    assert vote.text == "yes"
    assert vote.together.distribution == pytest.approx((0.34 / 0.7, 0.29 / 0.7, 0.1))
    assert [share.weight for share in vote.together.members] == pytest.approx([5 / 7, 2 / 7])
    [dropped] = vote.together.dropped
    assert (dropped.expert, dropped.reason) == ("agent-2/m", "Out of memory.")


def test_a_lost_agent_is_a_member_that_failed(vote: PanelBench) -> None:
    """The others decide."""
    vote.lost("agent-1")
    vote.scored(1, 0.1, 0.8, 0.1)
    vote.scored(2, 0.1, 0.8, 0.1)
    assert vote.text == "no"


def test_a_member_that_hangs_does_not_hold_up_the_others(vote: PanelBench) -> None:
    """It is told to stop once it is late and somebody is there; what it spent is still accounted."""
    assert vote.life.run is not None
    assert vote.life.run.next_deadline_s is None
    vote.scored(0, 0.6, 0.3, 0.1)
    vote.scored(1, 0.6, 0.3, 0.1)
    assert vote.now_s + GRACE_S < vote.life.next_deadline_s < 110
    effects = vote.at_next()
    assert stopped(effects) == [("agent-3", "req-1.2")]
    assert outcomes(effects) == [Completed("stop")]
    assert not retires(effects)
    assert retires(vote.done("cancelled", attempt=2))
    assert vote.life.attempts[2].state is AttemptState.CANCELLED
    assert vote.together.dropped[0].expert == "agent-3/m"


def test_nobody_being_there_nobody_is_late(vote: PanelBench) -> None:
    """Then only the request's own deadline counts."""
    vote.now_s = 150.0
    assert vote.at_deadline()
    assert isinstance(vote.life.outcome, Failed)
    assert vote.life.outcome.code == JobErrorCode.DEADLINE_EXCEEDED


def test_scores_of_the_wrong_number_are_a_failure(vote: PanelBench) -> None:
    """Whatever that agent thought it was asked."""
    vote.scored(0, 0.5, 0.5)
    assert vote.together.dropped[0].expert == "agent-1/m"


def test_when_all_fail_others_are_asked() -> None:
    """With what is left of the budgets; and when nobody is left, the last reason is the answer."""
    bench = PanelBench(Mode.VOTE, ballot=ballot("a", "b"))
    bench.admitted()
    kept = bench.experts
    bench.experts = kept[:0]
    for attempt in (0, 1):
        assert submitted(bench.failed(attempt=attempt)) == []
    assert outcomes(bench.failed(attempt=2, message="third")) == [Failed(JobErrorCode.ENGINE_CRASHED, "third")]


def test_length_normalisation_compares_per_byte() -> None:
    """e^-2 over 2 bytes loses to e^-4 over 8."""
    for normalised, answer in ((False, "no"), (True, "probably")):
        bench = PanelBench(Mode.VOTE, ballot=ballot("no", "probably", length_normalised=normalised))
        bench.admitted()
        for attempt in range(3):
            bench.scored(attempt, 0.1353, 0.0183)
        assert bench.text == answer


def test_the_receipt_tells_how_it_came_about(vote: PanelBench) -> None:
    """The mode, every member's joules, the shares."""
    for attempt in range(3):
        vote.scored(attempt, 0.6, 0.3, 0.1)
    receipt = receipt_of(vote.life)
    assert receipt.mode == "vote"
    assert [(line.purpose, line.outcome) for line in receipt.experts] == [("score", "answered")] * 3
    assert receipt.energy.joules == pytest.approx(6.0)
    assert receipt.collaboration == vote.together
    assert receipt.decision is not None
    assert [row.weight for row in receipt.decision.experts] == pytest.approx([0.5, 0.3, 0.2])
