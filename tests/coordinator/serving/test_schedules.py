"""The life of one request: random schedules."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from moe2.common.link.messages import Submit
from moe2.coordinator.choosing.request import Wish
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Completed, Deliver, Effect, EnterQueue, LeaveQueue, Retract, SubmitJob
from moe2.coordinator.serving.life import MAX_ATTEMPTS
from moe2.coordinator.serving.receipt import receipt_of
from moe2.coordinator.serving.suspicion import MAX_DEATHS
from tests.coordinator.experts import cost, expert
from tests.coordinator.lives import LifeBench
from tests.coordinator.schedules import AGENTS, ATTEMPTS, Schedule, lives

BUDGET_J = 3.5
"""A request of 20 tokens is predicted to take 1 J at most, and takes 2 J."""


class AnyOrder(Schedule):
    """A request for one expert, which may wait for room, fail over and hedge."""

    @initialize()
    def first_request(self) -> None:
        self.begin(custom=False, streamed=True, resume=True)

    def begin(self, *, custom: bool, streamed: bool, resume: bool) -> None:
        experts = [
            expert(agent_id, model, context_tokens=n, energy=cost(0.05))
            for n, agent_id in enumerate(AGENTS, 64)
            for model in "ab"
        ]
        wish = Wish(energy_budget_j=BUDGET_J, latency_budget_s=40.0, resume=resume)
        grammar = "root ::= x" if custom else None
        self.most_deaths = 1 if custom else MAX_DEATHS
        self.waits = False
        self.written = 0
        self.begin_on(
            LifeBench(*experts, queue_s=20.0, hedges=1, logprobs=None, wish=wish, grammar=grammar, is_streamed=streamed)
        )

    def check(self, effect: Effect) -> None:
        match effect:
            case EnterQueue():
                assert not self.waits
                assert not self.concluded
                self.waits = True
            case LeaveQueue():
                assert self.waits
                self.waits = False
            case SubmitJob(job=job):
                assert not self.waits
                assert isinstance(job, Submit)
                assert job.max_tokens == 20 - self.written, "what the client has is written again"
                assert len(job.prefix) == self.written
                assert self.n_deaths < self.most_deaths, "it would kill one more engine"
                self.is_within_the_budget()
            case Deliver(pieces=pieces):
                self.written += len(pieces)
            case Retract():
                assert not self.bench.life.request.is_streamed, "its client has seen it"
                self.written = 0

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

    @rule(custom=st.booleans(), streamed=st.booleans(), resume=st.booleans())
    @precondition(lambda self: self.retired)
    def next_request(self, custom: bool, streamed: bool, resume: bool) -> None:
        self.begin(custom=custom, streamed=streamed, resume=resume)

    @lives
    @rule(attempt=ATTEMPTS)
    def tokens(self, attempt: int) -> None:
        self.take(self.bench.tokens("x", attempt=attempt))

    @lives
    @precondition(lambda self: self.bench.life.attempts)
    @rule(in_batch=st.sampled_from([None, True, True, False]))
    def engine_died(self, in_batch: bool | None) -> None:
        """The one that was asked last; it took nothing that would count against the budget."""
        newest = len(self.bench.life.attempts) - 1
        self.take(self.bench.failed(attempt=newest, in_batch=in_batch, usage=None))

    @lives
    @rule(agent_id=st.sampled_from(AGENTS))
    def engine_back(self, agent_id: str) -> None:
        """Who waits is told."""
        self.bench.restarted(agent_id)
        self.take(self.bench.do(events.RoomAppeared()))

    @property
    def n_deaths(self) -> int:
        return sum(attempt.died_with for attempt in self.bench.life.attempts)

    @lives
    @rule(keys=st.sets(st.sampled_from([f"{agent_id}/{model}" for agent_id in AGENTS for model in "ab"])))
    def others_come_and_go(self, keys: set[str]) -> None:
        """These experts have no room from now on; one that waits is told."""
        self.bench.full = keys
        self.take(self.bench.do(events.RoomAppeared()))

    @lives
    @precondition(lambda self: self.waits)
    @rule()
    def displaced(self) -> None:
        self.waits = False
        self.take(self.bench.do(events.RoomRefused()))

    @invariant()
    def has_somebody_at_work_or_waits_until_it_concludes(self) -> None:
        working = [attempt for attempt in self.bench.life.attempts if attempt.state is AttemptState.RUNNING]
        assert self.concluded or self.waits or 1 <= len(working) <= 2
        assert self.waits == (self.bench.life.wait is not None)
        if self.bench.life.first_token_s is not None and not self.concluded:
            assert len(working) == 1, "two experts write the answer"

    @invariant()
    def always_has_a_receipt(self) -> None:
        receipt = receipt_of(self.bench.life)
        if not receipt.experts:
            return
        assert len(receipt.experts) == len(self.bench.life.attempts) <= MAX_ATTEMPTS
        # An engine that died may be tried again once it has been started again; every other expert gets one chance.
        again = Counter(attempt.expert.key for attempt in self.bench.life.attempts if not attempt.is_engines_fault)
        assert not again or again.most_common(1)[0][1] == 1
        answered = [line for line in receipt.experts if line.outcome == AttemptState.ANSWERED]
        assert len(answered) <= 1 or not isinstance(self.bench.life.outcome, Completed)

    def let_time_pass(self) -> None:
        """First its deadline passes, then the wait for those who stop."""
        for _ in range(2):
            if not self.retired:
                self.take(self.bench.at_deadline())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
