"""The life of a panel's request: random schedules in every mode."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from moe2.common.generation import Sampling
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.serving.effects import Completed, Effect, Tell
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.panels import PanelBench, ballot
from tests.coordinator.schedules import ATTEMPTS, Schedule, lives

MODES = st.sampled_from([Mode.VOTE, Mode.RANK, Mode.CONSENSUS, Mode.MIX])
STOPS: st.SearchStrategy[tuple[str, ...]] = st.sampled_from([(), ("ab",)])


class AnyOrder(Schedule):
    """A request that three experts answer together; those of a consensus are asked in turn."""

    bench: PanelBench

    @initialize(mode=MODES, stop=STOPS)
    def first_request(self, mode: Mode, stop: tuple[str, ...]) -> None:
        self.begin(mode, stop)

    def begin(self, mode: Mode, stop: tuple[str, ...]) -> None:
        weights = (2.0, 1.5, 1.0) if mode is Mode.CONSENSUS else ()
        self.begin_on(
            PanelBench(
                mode, weights=weights, ballot=ballot("x", "y"), max_tokens=4, stop=stop, sampling=Sampling(seed=1)
            )
        )

    def check(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            assert not self.concluded
            assert self.running[effect.take.job_id][0] == effect.agent_id
            assert effect.take.job_id not in self.stopped

    @precondition(lambda self: self.retired)
    @rule(mode=MODES, stop=STOPS)
    def next_request(self, mode: Mode, stop: tuple[str, ...]) -> None:
        self.begin(mode, stop)

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

    @invariant()
    def has_somebody_at_work_until_it_concludes(self) -> None:
        assert self.concluded or self.running.keys() - self.stopped

    @invariant()
    def always_has_a_receipt(self) -> None:
        receipt = receipt_of(self.bench.life)
        assert len(receipt.experts) == len(self.bench.life.attempts)
        if receipt.collaboration and receipt.collaboration.members:
            assert abs(sum(share.weight for share in receipt.collaboration.members) - 1) < 1e-9

    @invariant()
    def a_completed_vote_has_an_answer(self) -> None:
        life = self.bench.life
        if isinstance(life.outcome, Completed) and receipt_of(life).mode == "vote":
            assert self.bench.text in ("x", "y")

    def let_time_pass(self) -> None:
        """Who is late, its deadline and the wait for those who stop are due, one after the other."""
        for _ in range(12):
            if not self.retired:
                self.take(self.bench.at_next())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
