"""The life of one request: random schedules."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.common.errors import JobErrorCode
from moe2.coordinator import dispatch
from moe2.coordinator.dispatch import (
    MOST_ATTEMPTS,
    AttemptState,
    Conclude,
    Deliver,
    Effect,
    ReleaseExpert,
    Retire,
    StopJob,
    SubmitJob,
)
from moe2.coordinator.receipt import receipt_of
from tests.coordinator.experts import expert
from tests.coordinator.lives import USAGE, LifeBench

AGENTS = ("agent-1", "agent-2", "agent-3")
ATTEMPTS = st.integers(0, MOST_ATTEMPTS)


class AnyOrder(RuleBasedStateMachine):
    """Agents, client and clock in any order, one request after the other. Agents may say what makes no sense."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        experts = [expert(agent_id, model, context_tokens=n) for n, agent_id in enumerate(AGENTS, 64) for model in "ab"]
        self.bench = LifeBench(*experts)
        self.running: dict[str, tuple[str, str]] = {}
        """Jobs that hold a place: their agent and expert."""
        self.concluded = self.retired = 0
        self.take(self.bench.do(dispatch.Admitted()))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.retired, "an effect after the last one"
            match effect:
                case SubmitJob(expert=found, job=job):
                    assert not self.concluded
                    assert not self.running, "two experts at once"
                    self.running[job.job_id] = (found.agent_id, found.key)
                case StopJob(agent_id=agent_id, job_id=job_id):
                    assert self.running[job_id][0] == agent_id
                case ReleaseExpert(expert_key=key, job_id=job_id):
                    assert self.running.pop(job_id)[1] == key
                case Deliver(pieces=pieces):
                    assert pieces
                    assert not self.concluded
                case Conclude():
                    self.concluded += 1
                case Retire():
                    self.retired += 1

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

    @invariant()
    def concludes_and_retires_at_most_once_in_this_order(self) -> None:
        assert self.retired <= self.concluded <= 1
        assert (self.bench.life.outcome is not None) == (self.concluded == 1)

    @invariant()
    def has_somebody_at_work_until_it_concludes(self) -> None:
        assert self.concluded or len(self.running) == 1

    @invariant()
    def holds_no_place_once_retired(self) -> None:
        assert bool(self.retired) == (bool(self.concluded) and not self.running)

    @invariant()
    def always_has_a_receipt(self) -> None:
        receipt = receipt_of(self.bench.life)
        assert len(receipt.experts) == len(self.bench.life.attempts) <= MOST_ATTEMPTS
        assert Counter(line.expert for line in receipt.experts).most_common(1)[0][1] == 1
        answered = [line for line in receipt.experts if line.outcome == AttemptState.ANSWERED]
        assert len(answered) <= 1
        # Unknown is never added up as nothing.
        if any(line.energy["joules"] is None for line in receipt.experts):
            assert receipt.energy["joules"] is None

    def teardown(self) -> None:
        """Time alone brings every request to its end: first its deadline, then the wait for those who stop."""
        for _ in range(2):
            if not self.retired:
                self.take(self.bench.at_deadline())
        assert (self.concluded, self.retired) == (1, 1)
        assert not self.running


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
