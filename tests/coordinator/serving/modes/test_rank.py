"""Rank: members write, all score, the mixture decides."""

from __future__ import annotations

import math

import pytest

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import ContinuationScore, JobScored, ScoreJob, Submit
from moe2.coordinator.choosing.mixture import JUDGES_SAY
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Completed, Effect, Failed
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import USAGE, outcomes, retires, stopped, submitted
from tests.coordinator.panels import THREE, PanelBench, jobs


@pytest.fixture
def rank() -> PanelBench:
    bench = PanelBench(Mode.RANK, weights=(0.5, 0.3, 0.2), judges=(1.0, 1.0, 1.0))
    bench.admitted()
    return bench


def written(bench: PanelBench, *texts: str) -> list[Effect]:
    """All of them, one after the other."""
    for attempt, text in enumerate(texts):
        bench.tokens(*text, attempt=attempt)
    effects: list[Effect] = []
    for attempt in range(len(texts)):
        effects = bench.done("length" if attempt else "stop", attempt=attempt)
    return effects


def scored(bench: PanelBench, attempt: int, *per_byte: float) -> list[Effect]:
    """Log-likelihoods per byte of candidates of 2 bytes each."""
    scores = tuple(ContinuationScore(2 * value, 1, 2) for value in per_byte)
    return bench.do(events.AttemptScored(JobScored(job_id=f"req-1.{attempt}", scores=scores, usage=USAGE)))


def test_members_write_and_then_score_all_candidates(rank: PanelBench) -> None:
    """The client sees nothing of it yet."""
    assert [type(job) for job in jobs(rank.effects)] == [Submit] * 3
    asked = jobs(written(rank, "aa", "bb", "cc"))
    assert [type(job) for job in asked] == [ScoreJob] * 3
    assert {job.continuations for job in asked if isinstance(job, ScoreJob)} == {("aa", "bb", "cc")}
    assert rank.text == ""


def test_the_gate_and_the_views_of_others_texts_decide(rank: PanelBench) -> None:
    """The heaviest prefers its own, which does not count; it and the third agree on b."""
    written(rank, "aa", "bb", "cc")
    scored(rank, 3, -0.1, -0.6, -3.0)
    scored(rank, 4, -2.0, -0.1, -2.0)
    effects = scored(rank, 5, -2.0, -0.1, -2.0)
    assert rank.text == "bb"
    assert outcomes(effects) == [Completed("length")]
    assert retires(effects)
    # In standard deviations around the mean of others' texts, by the weight of those who have not written it.
    opinions = (-1.0 * 0.2 / 0.5, 1.0, -1.0 * 0.5 / 0.8)
    masses = [weight * math.exp(JUDGES_SAY * said) for weight, said in zip((0.5, 0.3, 0.2), opinions, strict=True)]
    candidates = rank.together.candidates or ()
    assert [candidate.probability for candidate in candidates] == pytest.approx([m / sum(masses) for m in masses])
    assert [candidate.chosen for candidate in candidates] == [False, True, False]


def test_judges_do_not_overrule_a_gate_that_is_sure() -> None:
    """Two members that agree on a third one's text cannot outvote one that the gate takes for far better."""
    bench = PanelBench(Mode.RANK, weights=(0.8, 0.1, 0.1), judges=(1.0, 1.0, 1.0))
    bench.admitted()
    written(bench, "aa", "bb", "cc")
    for attempt in (3, 4, 5):
        scored(bench, attempt, -9.0, -0.1, -9.0)
    assert bench.text == "aa"


def test_judges_only_break_ties_of_members_that_the_gate_does_not_know() -> None:
    """With priors by size the heaviest member's text is taken, however the judges like it; of equals the best liked."""
    for weights, text in (((0.5, 0.3, 0.2), "aa"), ((0.4, 0.4, 0.2), "bb")):
        bench = PanelBench(Mode.RANK, weights=weights, trained=False, judges=(1.0, 1.0, 1.0))
        bench.admitted()
        written(bench, "aa", "bb", "cc")
        for attempt in (3, 4, 5):
            scored(bench, attempt, -9.0, -0.1, -9.0)
        assert bench.text == text


@pytest.mark.parametrize(
    ("judges", "text"),
    [((1.0, 1.0, 1.0), "bb"), ((1.0, 1.0, 0.25), "aa"), (None, "aa")],
    ids=["good", "chance", "none"],
)
def test_a_judge_is_heard_as_it_was_right_before(judges: tuple[float, ...] | None, text: str) -> None:
    """The third one alone prefers the second text: that counts if it was right about options, and if anybody knows."""
    bench = PanelBench(Mode.RANK, weights=(0.36, 0.34, 0.3), judges=judges)
    bench.admitted()
    written(bench, "aa", "bb", "cc")
    scored(bench, 3, -1.0, -1.0, -1.0)
    scored(bench, 4, -1.0, -1.0, -1.0)
    scored(bench, 5, -3.0, -1.0, -1.0)
    assert bench.text == text


def test_losers_are_accounted_as_outvoted(rank: PanelBench) -> None:
    """By cause: what was written for nothing, and what was spent on judging."""
    written(rank, "aa", "bb", "cc")
    for attempt in (3, 4, 5):
        scored(rank, attempt, -1.0, -2.0, -3.0)
    lines = [(line.purpose, line.outcome) for line in receipt_of(rank.life).experts]
    assert lines == [
        ("candidate", "answered"),
        ("candidate", "outvoted"),
        ("candidate", "outvoted"),
        *[("score", "answered")] * 3,
    ]


def test_one_member_returns_its_own_answer() -> None:
    """Without a round of scoring."""
    bench = PanelBench(Mode.RANK, THREE[0])
    bench.admitted()
    effects = written(bench, "mine")
    assert bench.text == "mine"
    assert submitted(effects) == []
    assert outcomes(effects) == [Completed("stop")]


def test_the_same_text_is_one_candidate(rank: PanelBench) -> None:
    """All agreeing, there is nothing to score; two agreeing, two candidates are left."""
    effects = written(rank, "aa", "aa", "aa")
    assert (rank.text, submitted(effects)) == ("aa", [])
    assert {attempt.state for attempt in rank.life.attempts} == {AttemptState.ANSWERED}
    other = PanelBench(Mode.RANK).admitted()
    assert isinstance(other, PanelBench)
    asked = jobs(written(other, "aa", "bb", "aa"))
    assert {job.continuations for job in asked if isinstance(job, ScoreJob)} == {("aa", "bb")}


def test_an_empty_answer_is_no_candidate_beside_another(rank: PanelBench) -> None:
    """It has no bytes to be likely."""
    effects = written(rank, "", "bb", "")
    assert (rank.text, submitted(effects)) == ("bb", [])
    empty = PanelBench(Mode.RANK)
    empty.admitted()
    assert outcomes(written(empty, "", "", "")) == [Completed("stop")]


def test_a_writer_that_fails_is_left_out(rank: PanelBench) -> None:
    """Its half answer is no candidate, and it does not score."""
    rank.tokens("a", attempt=0)
    rank.failed(attempt=0)
    rank.tokens("bb", attempt=1)
    rank.tokens("cc", attempt=2)
    rank.done(attempt=1)
    asked = jobs(rank.done(attempt=2))
    assert [job.continuations for job in asked if isinstance(job, ScoreJob)] == [("bb", "cc")] * 2


def test_a_scorer_that_fails_is_left_out() -> None:
    """The others' weights are renormalised."""
    rank = PanelBench(Mode.RANK, weights=(0.36, 0.34, 0.3), judges=(1.0, 1.0, 1.0))
    rank.admitted()
    written(rank, "aa", "bb", "cc")
    rank.failed(attempt=3)
    scored(rank, 4, -2.0, -2.0, -0.1)
    scored(rank, 5, -2.0, -2.0, -0.1)
    assert rank.text == "cc"
    assert [share.weight for share in rank.together.members] == pytest.approx([0.34 / 0.64, 0.3 / 0.64])


def test_without_scorers_the_heaviest_members_answer_is_taken(rank: PanelBench) -> None:
    """There are answers: better one of them than an error."""
    written(rank, "aa", "bb", "cc")
    rank.failed(attempt=3)
    rank.failed(attempt=4)
    effects = rank.failed(attempt=5)
    assert rank.text == "aa"
    assert outcomes(effects) == [Completed("stop")]


def test_a_writer_that_hangs_is_stopped_once_another_is_done(rank: PanelBench) -> None:
    """One answer is left, which needs no scoring."""
    rank.tokens("aa", attempt=0)
    rank.done(attempt=0)
    effects = rank.at_next()
    assert stopped(effects) == [("agent-2", "req-1.1"), ("agent-3", "req-1.2")]
    assert rank.text == "aa"


def test_when_all_writers_fail_the_client_is_told(rank: PanelBench) -> None:
    """Nobody else is there."""
    rank.experts = []
    for attempt in (0, 1):
        rank.failed(attempt=attempt)
    assert outcomes(rank.failed(attempt=2)) == [Failed(JobErrorCode.ENGINE_CRASHED, "It died.")]


def test_each_part_has_its_own_prediction(rank: PanelBench) -> None:
    """What writing takes, then what scoring takes: together what the member was chosen for."""
    written(rank, "aa", "bb", "cc")
    writing, scoring = rank.life.attempts[0], rank.life.attempts[3]
    whole = writing.selection.members[0].prediction
    assert writing.prediction.total_s is not None
    assert scoring.prediction.total_s is not None
    assert whole.total_s is not None
    assert whole.total_s.p95 == pytest.approx(writing.prediction.total_s.p95 + scoring.prediction.total_s.p95)
    assert scoring.prediction.total_s.p95 < writing.prediction.total_s.p95
