"""The life of one request: random schedules."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.common.errors import JobErrorCode
from moe2.common.messages import Submit
from moe2.coordinator import dispatch
from moe2.coordinator.budgets import Wish
from moe2.coordinator.dispatch import (
    MOST_ATTEMPTS,
    AttemptState,
    Completed,
    Conclude,
    Deliver,
    Effect,
    EnterQueue,
    LeaveQueue,
    ReleaseExpert,
    Retire,
    StopJob,
    SubmitJob,
)
from moe2.coordinator.receipt import receipt_of
from tests.coordinator.experts import cost, expert
from tests.coordinator.lives import USAGE, LifeBench

AGENTS = ("agent-1", "agent-2", "agent-3")
BUDGET_J = 3.5
"""A request of 20 tokens is predicted to take 1 J at most, and takes 2 J."""
ATTEMPTS = st.integers(0, MOST_ATTEMPTS)


class AnyOrder(RuleBasedStateMachine):
    """Agents, client and clock in any order, one request after the other. Agents may say what makes no sense."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        experts = [
            expert(agent_id, model, context_tokens=n, energy=cost(0.05))
            for n, agent_id in enumerate(AGENTS, 64)
            for model in "ab"
        ]
        wish = Wish(energy_budget_j=BUDGET_J, latency_budget_s=40.0, resume=True)
        self.bench = LifeBench(*experts, queue_s=20.0, hedges=1, logprobs=None, wish=wish)
        self.waits = False
        self.written = 0
        self.running: dict[str, tuple[str, str]] = {}
        """Jobs that hold a place: their agent and expert."""
        self.concluded = self.retired = 0
        self.take(self.bench.do(dispatch.Admitted()))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.retired, "an effect after the last one"
            match effect:
                case EnterQueue():
                    assert not self.waits
                    assert not self.concluded
                    self.waits = True
                case LeaveQueue():
                    assert self.waits
                    self.waits = False
                case SubmitJob(expert=found, job=job):
                    assert not self.concluded
                    assert not self.waits
                    assert isinstance(job, Submit)
                    assert job.max_tokens == 20 - self.written, "what the client has is written again"
                    assert len(job.prefix) == self.written
                    self.is_within_the_budget()
                    self.running[job.job_id] = (found.agent_id, found.key)
                case StopJob(agent_id=agent_id, job_id=job_id):
                    assert self.running[job_id][0] == agent_id
                case ReleaseExpert(expert_key=key, job_id=job_id):
                    assert self.running.pop(job_id)[1] == key
                case Deliver(pieces=pieces):
                    assert pieces
                    assert not self.concluded
                    self.written += len(pieces)
                case Conclude():
                    self.concluded += 1
                case Retire():
                    self.retired += 1

    def is_within_the_budget(self) -> None:
        """What every attempt took, or was predicted to take while nobody knows, with the newest one's prediction."""
        *former, newest = self.bench.life.attempts
        asked, predicted_j = self.bench.chosen_for[-1], newest.prediction.energy_j
        assert predicted_j is not None
        refused = [attempt for attempt in former if attempt.usage is None and attempt.state is AttemptState.FAILED]
        predicted = (attempt.prediction.energy_j for attempt in former if attempt not in refused and not attempt.usage)
        known_j = sum(2.0 for attempt in former if attempt.usage) + sum(found.p95 for found in predicted if found)
        assert asked.spent_j == pytest.approx(known_j)
        assert asked.spent_j + predicted_j.p95 <= BUDGET_J

    @rule()
    @precondition(lambda self: self.retired)
    def next_request(self) -> None:
        self.begin()

    lives = precondition(lambda self: not self.retired)

    @lives
    @rule(attempt=ATTEMPTS)
    def tokens(self, attempt: int) -> None:
        self.take(self.bench.tokens("x", attempt=attempt))

    @lives
    @rule(attempt=ATTEMPTS, reason=st.sampled_from(["stop", "length", "cancelled"]))
    def done(self, attempt: int, reason: str) -> None:
        self.take(self.bench.done(reason, attempt=attempt))

    @lives
    @rule(attempt=ATTEMPTS, code=st.sampled_from([*JobErrorCode, "new_code"]), spent=st.booleans())
    def failed(self, attempt: int, code: str, spent: bool) -> None:
        self.take(self.bench.failed(code, attempt=attempt, usage=USAGE if spent else None))

    @lives
    @rule(agent_id=st.sampled_from(AGENTS))
    def lost(self, agent_id: str) -> None:
        self.take(self.bench.lost(agent_id))

    @lives
    @rule()
    def client_gone(self) -> None:
        self.take(self.bench.gone())

    @lives
    @rule()
    def stopping(self) -> None:
        self.take(self.bench.do(dispatch.ServiceStopping()))

    @lives
    @rule(seconds=st.floats(0, 30))
    def pass_time(self, seconds: float) -> None:
        self.bench.now_s += seconds
        self.take(self.bench.do(dispatch.TimePassed()))
        assert self.retired or self.bench.life.next_deadline_s > self.bench.now_s, "its timer would fire for ever"

    @invariant()
    def concludes_and_retires_at_most_once_in_this_order(self) -> None:
        assert self.retired <= self.concluded <= 1
        assert (self.bench.life.outcome is not None) == (self.concluded == 1)

    @lives
    @rule(keys=st.sets(st.sampled_from([f"{agent_id}/{model}" for agent_id in AGENTS for model in "ab"])))
    def others_come_and_go(self, keys: set[str]) -> None:
        """These experts have no room from now on; one that waits is told."""
        self.bench.full = keys
        self.take(self.bench.do(dispatch.RoomAppeared()))

    @lives
    @precondition(lambda self: self.waits)
    @rule()
    def displaced(self) -> None:
        self.waits = False
        self.take(self.bench.do(dispatch.RoomRefused()))

    @invariant()
    def has_somebody_at_work_or_waits_until_it_concludes(self) -> None:
        working = [attempt for attempt in self.bench.life.attempts if attempt.state is AttemptState.RUNNING]
        assert self.concluded or self.waits or 1 <= len(working) <= 2
        assert self.waits == (self.bench.life.wait is not None)
        if self.bench.life.first_token_s is not None and not self.concluded:
            assert len(working) == 1, "two experts write the answer"

    @invariant()
    def holds_no_place_once_retired(self) -> None:
        assert bool(self.retired) == (bool(self.concluded) and not self.running)

    @invariant()
    def always_has_a_receipt(self) -> None:
        receipt = receipt_of(self.bench.life)
        if not receipt.experts:
            return
        assert len(receipt.experts) == len(self.bench.life.attempts) <= MOST_ATTEMPTS
        assert Counter(line.expert for line in receipt.experts).most_common(1)[0][1] == 1
        answered = [line for line in receipt.experts if line.outcome == AttemptState.ANSWERED]
        assert len(answered) <= 1 or not isinstance(self.bench.life.outcome, Completed)
        # Unknown is never added up as nothing.
        if any(line.energy.joules is None for line in receipt.experts):
            assert receipt.energy.joules is None

    def teardown(self) -> None:
        """Time alone brings every request to its end: first its deadline, then the wait for those who stop."""
        for _ in range(2):
            if not self.retired:
                self.take(self.bench.at_deadline())
        assert (self.concluded, self.retired) == (1, 1)
        assert not self.running


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
