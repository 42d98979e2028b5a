"""Mix: members with one vocabulary write together in lock step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import Candidate, FollowJob, NextTokens, TokenPiece
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Completed, Deliver, Effect, Failed
from moe2.coordinator.serving.modes.panel import GRACE_S
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import outcomes, retires, stopped
from tests.coordinator.panels import THREE, PanelBench, jobs, told

GREEDY = Sampling(temperature=0.0)


def mixing(*weights: float, **fields: Any) -> PanelBench:
    """As many members as weights."""
    bench = PanelBench(Mode.MIX, *THREE[: len(weights)], weights=weights, **{"sampling": GREEDY, **fields})
    bench.admitted()
    return bench


def test_members_are_asked_to_follow() -> None:
    """With what the request allows them to send."""
    bench = mixing(0.5, 0.5)
    asked = jobs(bench.effects)
    assert [type(job) for job in asked] == [FollowJob] * 2
    assert [(job.max_tokens, job.deadline_s) for job in asked if isinstance(job, FollowJob)] == [(20, 59.5)] * 2


def test_each_token_is_the_mixtures_and_is_told_to_all() -> None:
    """0.6 (a .6, b .3) + 0.4 (b .9, a .1) = a .40, b .54."""
    bench = mixing(0.6, 0.4)
    assert bench.thinks(0, 0, a=0.6, b=0.3) == []
    effects = bench.thinks(1, 0, b=0.9, a=0.1)
    assert [(agent, take.step, take.token) for agent, take in told(effects)] == [("agent-1", 0, 1), ("agent-2", 0, 1)]
    assert bench.text == "b"
    bench.thinks(0, 1, c=0.9)
    bench.thinks(1, 1, c=0.9)
    assert bench.text == "bc"


def test_the_end_is_drawn_like_any_token() -> None:
    """All are told that the answer is complete, and the client learns of it when they have accounted for it."""
    bench = mixing(0.5, 0.5)
    bench.thinks(0, 0, end=0.9, a=0.1)
    effects = bench.thinks(1, 0, a=0.6, end=0.4)
    assert [take.token for _, take in told(effects)] == [None, None]
    assert bench.done(attempt=0)[1:] == []
    effects = bench.done(attempt=1)
    assert outcomes(effects) == [Completed("stop")]
    assert retires(effects)


def test_the_limit_ends_the_answer() -> None:
    """After so many tokens."""
    bench = mixing(1.0, max_tokens=2)
    bench.thinks(0, 0, a=0.9)
    assert [take.token for _, take in told(bench.thinks(0, 1, b=0.9))] == [None]
    assert outcomes(bench.done()) == [Completed("length")]
    assert bench.text == "ab"
    assert receipt_of(bench.life).tokens.decoded == 2


def test_a_stop_string_may_span_tokens() -> None:
    """Nothing of it reaches the client."""
    bench = mixing(1.0, stop=("bc",))
    for step, name in enumerate("abc"):
        bench.thinks(0, step, **{name: 0.9})
    assert outcomes(bench.done()) == [Completed("stop")]
    assert bench.text == "a"


def test_characters_are_delivered_whole() -> None:
    """Two tokens, one euro sign."""
    bench = mixing(1.0)
    euro = "€".encode()
    for step, piece in enumerate((euro[:1], euro[1:])):
        candidates = (Candidate(step, -0.1, piece, False),)
        bench.do(events.NextTokensArrived(NextTokens(job_id="req-1.0", step=step, candidates=candidates)))
    pieces = [piece.text for effect in bench.effects if isinstance(effect, Deliver) for piece in effect.pieces]
    assert pieces == ["", "€"]


def test_log_probabilities_are_the_mixtures() -> None:
    """0.5 * 0.8 + 0.5 * 0.4 = 0.6; the alternatives are the mixture's best."""
    bench = mixing(0.5, 0.5, logprobs=2)
    bench.thinks(0, 0, a=0.8, b=0.1)
    [delivered] = [effect for effect in bench.thinks(1, 0, a=0.4, c=0.3) if isinstance(effect, Deliver)]
    [piece] = delivered.pieces
    assert piece.logprob == pytest.approx(math.log(0.6))
    assert [other.text for other in piece.alternatives] == ["a", "c"]
    assert [math.exp(other.logprob) for other in piece.alternatives] == pytest.approx([0.6, 0.15])


# --- Members that drop out --------------------------------------------------------------------------------------------


def test_a_member_that_fails_is_dropped_in_mid_answer() -> None:
    """Those who are there go on at once, with renormalised weights."""
    bench = mixing(0.5, 0.3, 0.2)
    for attempt in range(3):
        bench.thinks(attempt, 0, a=0.9)
    bench.thinks(1, 1, b=0.9)
    bench.thinks(2, 1, c=0.9)
    effects = bench.failed(attempt=0)
    assert [agent for agent, _ in told(effects)] == ["agent-2", "agent-3"]
    assert bench.text == "ab"
    assert [share.weight for share in bench.together.members] == pytest.approx([0.6, 0.4])
    assert [dropped.expert for dropped in bench.together.dropped] == ["agent-1/m"]


def test_a_late_member_is_dropped() -> None:
    """Once the others are there, after its p95 of a token twice and a moment."""
    bench = mixing(0.5, 0.5)
    for attempt in range(2):
        bench.thinks(attempt, 0, a=0.9)
    assert bench.life.next_deadline_s == 160.0
    bench.thinks(0, 1, b=0.9)
    # 50 tokens/s, and no round trip was measured.
    assert bench.life.next_deadline_s == pytest.approx(bench.now_s + GRACE_S + 2 * 0.02)
    effects = bench.at_next()
    assert stopped(effects) == [("agent-2", "req-1.1")]
    assert bench.text == "ab"
    assert bench.thinks(1, 1, c=0.9) == []


def test_the_last_member_failing_after_the_first_token_is_told() -> None:
    """There is no answer to go on from."""
    bench = mixing(1.0)
    bench.thinks(0, 0, a=0.9)
    assert outcomes(bench.failed()) == [Failed(JobErrorCode.ENGINE_CRASHED, "It died.")]


def test_a_full_context_ends_the_answer_or_the_members_part() -> None:
    """The larger contexts go on."""
    bench = mixing(0.5, 0.5)
    for attempt in range(2):
        bench.thinks(attempt, 0, a=0.9)
    bench.thinks(1, 1, b=0.9)
    bench.done("length", attempt=0)
    assert bench.text == "ab"
    effects = bench.done("length", attempt=1)
    assert outcomes(effects) == [Completed("length")]


def test_a_member_that_does_not_confirm_the_end_is_not_waited_for() -> None:
    """The answer is complete."""
    bench = mixing(0.5, 0.5)
    bench.thinks(0, 0, end=0.9)
    bench.thinks(1, 0, end=0.9)
    bench.done(attempt=0)
    effects = bench.at_next()
    assert stopped(effects) == [("agent-2", "req-1.1")]
    assert outcomes(effects) == [Completed("stop")]


@pytest.mark.parametrize("end", ["failed", "lost"])
def test_losing_the_last_member_after_the_end_changes_nothing(end: str) -> None:
    """It only had to confirm."""
    bench = mixing(1.0)
    bench.thinks(0, 0, end=0.9)
    effects = bench.failed() if end == "failed" else bench.lost()
    assert outcomes(effects) == [Completed("stop")]


def test_words_about_another_step_are_ignored() -> None:
    """A repeated or an early word must not move the answer."""
    bench = mixing(0.5, 0.5)
    bench.thinks(0, 0, a=0.9)
    assert bench.thinks(0, 0, b=0.9) == []
    assert bench.thinks(1, 1, b=0.9) == []
    bench.thinks(1, 0, a=0.9)
    assert bench.text == "a"


# --- What it must equal -----------------------------------------------------------------------------------------------

VIEWS = st.lists(st.lists(st.integers(1, 1000), min_size=2, max_size=5), min_size=1, max_size=6)


def played(members: int, views: list[list[int]], sampling: Sampling) -> list[TokenPiece]:
    """The answer of identical members."""
    bench = mixing(*[1 / members] * members, sampling=sampling)
    effects: list[Effect] = []
    for step, raw in enumerate(views):
        masses = {chr(97 + n): value / sum(raw) for n, value in enumerate(raw)}
        for attempt in range(members):
            effects += bench.thinks(attempt, step, **masses)
    return [piece for effect in effects if isinstance(effect, Deliver) for piece in effect.pieces]


@pytest.mark.slow
@given(VIEWS, st.integers(2, 3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_identical_members_write_what_one_writes(views: list[list[int]], members: int, seed: int) -> None:
    """Drawn with the same seed, and greedily."""
    for sampling in (GREEDY, Sampling(seed=seed)):
        assert played(members, views, sampling) == played(1, views, sampling)


@given(VIEWS)
@settings(max_examples=50, deadline=None)
def test_one_member_at_temperature_0_writes_its_own_best(views: list[list[int]]) -> None:
    """Token for token."""
    best = [chr(97 + max(range(len(raw)), key=lambda n: (raw[n], -n))) for raw in views]
    assert "".join(piece.text for piece in played(1, views, GREEDY)) == "".join(best)
