"""Random schedules of one request's life: what agents, the client and the clock can do to any request, in any order."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.common.errors import JobErrorCode
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Conclude, Deliver, Effect, ReleaseExpert, Retire, StopJob, SubmitJob
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import USAGE, LifeBench

AGENTS = ("agent-1", "agent-2", "agent-3")
ATTEMPTS = st.integers(0, 6)
"""Numbers of attempts, some of which were never begun."""

lives = precondition(lambda self: not self.retired)


class Schedule(RuleBasedStateMachine):
    """One request after the other on a bench. Agents may say what makes no sense.

    A subclass begins requests with `begin_on`, adds the rules of its own kind of request, and looks at each effect
    in `check`.
    """

    bench: LifeBench
    retired = 0

    def begin_on(self, bench: LifeBench) -> None:
        """Admit a new request."""
        self.bench = bench
        self.running: dict[str, tuple[str, str]] = {}
        """Jobs that hold a place: their agent and expert."""
        self.stopped: set[str] = set()
        self.concluded = self.retired = 0
        self.take(self.bench.do(events.Admitted()))

    def check(self, effect: Effect) -> None:
        """What must hold of an effect of this kind of request, before it is counted."""

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.retired, "an effect after the last one"
            self.check(effect)
            match effect:
                case SubmitJob(expert=found, job=job):
                    assert not self.concluded
                    self.running[job.job_id] = (found.agent_id, found.key)
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

    @lives
    @rule(attempt=ATTEMPTS, reason=st.sampled_from(["stop", "length", "cancelled"]))
    def done(self, attempt: int, reason: str) -> None:
        self.take(self.bench.done(reason, attempt=attempt))

    @lives
    @rule(
        attempt=ATTEMPTS,
        code=st.sampled_from([*JobErrorCode, "new_code"]),
        spent=st.booleans(),
        in_batch=st.sampled_from([None, True, False]),
    )
    def failed(self, attempt: int, code: str, spent: bool, in_batch: bool | None) -> None:
        self.take(self.bench.failed(code, attempt=attempt, usage=USAGE if spent else None, in_batch=in_batch))

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
        self.take(self.bench.do(events.ServiceStopping()))

    @lives
    @rule(seconds=st.floats(0, 30))
    def pass_time(self, seconds: float) -> None:
        self.bench.now_s += seconds
        self.take(self.bench.do(events.TimePassed()))
        assert self.retired or self.bench.life.next_deadline_s > self.bench.now_s, "its timer would fire for ever"

    @invariant()
    def concludes_and_retires_at_most_once_in_this_order(self) -> None:
        assert self.retired <= self.concluded <= 1
        assert (self.bench.life.outcome is not None) == (self.concluded == 1)

    @invariant()
    def holds_no_place_once_retired(self) -> None:
        assert bool(self.retired) == (bool(self.concluded) and not self.running)

    @invariant()
    def never_adds_unknown_energy_up_as_nothing(self) -> None:
        receipt = receipt_of(self.bench.life)
        if any(line.energy.joules is None for line in receipt.experts):
            assert receipt.energy.joules is None

    def let_time_pass(self) -> None:
        """Bring the request to its end by time alone."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Time alone ends every request, and then nothing is held."""
        if not hasattr(self, "bench"):
            return
        self.let_time_pass()
        assert (self.concluded, self.retired) == (1, 1)
        assert not self.running
