"""The life of a panel's request: random schedules in every mode."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moe2.common.errors import JobErrorCode
from moe2.common.messages import Sampling
from moe2.coordinator import dispatch
from moe2.coordinator.budgets import Mode
from moe2.coordinator.dispatch import (
    Completed,
    Conclude,
    Deliver,
    Effect,
    ReleaseExpert,
    Retire,
    StopJob,
    SubmitJob,
    Tell,
)
from moe2.coordinator.receipt import receipt_of
from tests.coordinator.lives import USAGE
from tests.coordinator.panels import THREE, PanelBench, ballot

AGENTS = [found.agent_id for found in THREE]
ATTEMPTS = st.integers(0, 6)
MODES = st.sampled_from([Mode.VOTE, Mode.RANK, Mode.MIX])
STOPS: st.SearchStrategy[tuple[str, ...]] = st.sampled_from([(), ("ab",)])


class AnyOrder(RuleBasedStateMachine):
    """Agents, client and clock in any order. Agents may say what makes no sense."""

    bench: PanelBench

    @initialize(mode=MODES, stop=STOPS)
    def first_request(self, mode: Mode, stop: tuple[str, ...]) -> None:
        self.begin(mode, stop)

    def begin(self, mode: Mode, stop: tuple[str, ...]) -> None:
        self.bench = PanelBench(mode, ballot=ballot("x", "y"), max_tokens=4, stop=stop, sampling=Sampling(seed=1))
        self.running: dict[str, tuple[str, str]] = {}
        """Jobs that hold a place: their agent and expert."""
        self.stopped: set[str] = set()
        self.concluded = self.retired = 0
        self.take(self.bench.do(dispatch.Admitted()))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.retired, "an effect after the last one"
            match effect:
                case SubmitJob(expert=found, job=job):
                    assert not self.concluded
                    self.running[job.job_id] = (found.agent_id, found.key)
                case Tell(agent_id=agent_id, take=said):
                    assert not self.concluded
                    assert self.running[said.job_id][0] == agent_id
                    assert said.job_id not in self.stopped
                case StopJob(agent_id=agent_id, job_id=job_id):
                    assert self.running[job_id][0] == agent_id
                    self.stopped.add(job_id)
                case ReleaseExpert(expert_key=key, job_id=job_id):
                    assert self.running.pop(job_id)[1] == key
                case Deliver(pieces=pieces):
                    assert pieces
                    assert not self.concluded
                case Conclude():
                    self.concluded += 1
                case Retire():
                    self.retired += 1

    @precondition(lambda self: self.retired)
    @rule(mode=MODES, stop=STOPS)
    def next_request(self, mode: Mode, stop: tuple[str, ...]) -> None:
        self.begin(mode, stop)

    lives = precondition(lambda self: not self.retired)

    @lives
    @rule(attempt=ATTEMPTS, text=st.sampled_from(["a", "b", ""]))
    def tokens(self, attempt: int, text: str) -> None:
        self.take(self.bench.tokens(text, attempt=attempt))

    @lives
    @rule(attempt=ATTEMPTS, step=st.integers(0, 4), ends=st.booleans())
    def thinks(self, attempt: int, step: int, ends: bool) -> None:
        likely = {"end": 0.8, "a": 0.1} if ends else {"a": 0.6, "b": 0.3}
        self.take(self.bench.thinks(attempt, step, **likely))

    @lives
    @rule(attempt=ATTEMPTS, count=st.integers(1, 3))
    def scores(self, attempt: int, count: int) -> None:
        self.take(self.bench.scored(attempt, *[0.1] * count))

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
        assert self.concluded or self.running.keys() - self.stopped

    @invariant()
    def holds_no_place_once_retired(self) -> None:
        assert bool(self.retired) == (bool(self.concluded) and not self.running)

    @invariant()
    def always_has_a_receipt(self) -> None:
        receipt = receipt_of(self.bench.life)
        assert len(receipt.experts) == len(self.bench.life.attempts)
        if receipt.collaboration and receipt.collaboration.members:
            assert abs(sum(share.weight for share in receipt.collaboration.members) - 1) < 1e-9
        if any(line.energy.joules is None for line in receipt.experts):
            assert receipt.energy.joules is None

    @invariant()
    def a_completed_vote_has_an_answer(self) -> None:
        life = self.bench.life
        if isinstance(life.outcome, Completed) and receipt_of(life).mode == "vote":
            assert self.bench.text in ("x", "y")

    def teardown(self) -> None:
        """Time alone brings every request to its end: who is late, its deadline, the wait for those who stop."""
        for _ in range(12):
            if hasattr(self, "bench") and not self.retired:
                self.take(self.bench.at_next())
        if hasattr(self, "bench"):
            assert (self.concluded, self.retired) == (1, 1)
            assert not self.running


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
