"""Leases of one budget, under made-up schedules of coordinators that ask, reserve, spend, expire and crash."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moe2.coordinator.ledger.leases import FRESH_S, LEASE_S, Answer, Ask, Lease, lend, limit_uj, microjoules

NAMES = ("a", "b", "c")
needs = st.integers(min_value=1, max_value=400)


@dataclass
class Coordinator:
    """What one coordinator knows; `settled` is in its journal, and survives a crash with what was reserved."""

    lease: Lease
    settled: int = 0
    reserved: list[int] = field(default_factory=list)

    @property
    def used(self) -> int:
        return self.settled + sum(self.reserved)


class Schedules(RuleBasedStateMachine):
    """Coordinators share one budget; whatever happens in whatever order, the limit holds."""

    @initialize(limit=st.integers(min_value=1, max_value=5000), n=st.integers(min_value=1, max_value=3))
    def begin(self, limit: int, n: int) -> None:
        self.limit, self.n, self.now_s = limit, n, 0.0
        self.drawn: dict[str, int] = {}
        self.all = {name: Coordinator(Lease(limit)) for name in NAMES[:n]}

    def ask(self, name: str, ask: Ask) -> None:
        one = self.all[name]
        one.lease = one.lease.asked(ask)
        self.drawn, answer = lend(self.drawn, name, self.limit, ask)
        one.lease = one.lease.took(answer, self.now_s)

    @rule(data=st.data(), need=needs, wants=st.booleans())
    def request_while_a_question_is_under_way(self, data: st.DataObject, need: int, wants: bool) -> None:
        """A request is reserved for while the database answers a draw, or takes something back."""
        name = data.draw(st.sampled_from(sorted(self.all)))
        one = self.all[name]
        ask = one.lease.draw(one.used, need, self.now_s, self.n) if wants else one.lease.surplus(one.used, self.now_s)
        if ask is None:
            return
        one.lease = one.lease.asked(ask)
        self.drawn, answer = lend(self.drawn, name, self.limit, ask)
        if one.lease.free(one.used, self.now_s) >= need:
            one.reserved.append(need)
        one.lease = one.lease.took(answer, self.now_s)

    @rule(data=st.data(), need=needs)
    def request(self, data: st.DataObject, need: int) -> None:
        """A request comes: it is reserved for where that fits, after a draw where it does not."""
        name = data.draw(st.sampled_from(sorted(self.all)))
        one = self.all[name]
        one.lease = one.lease.needs(need)
        if one.lease.free(one.used, self.now_s) < need:
            self.ask(name, one.lease.draw(one.used, need, self.now_s, self.n))
        if one.lease.free(one.used, self.now_s) >= need:
            one.reserved.append(need)
        else:
            held = sum(self.drawn.get(known, 0) - other.used for known, other in self.all.items() if known != name)
            assert sum(other.used for other in self.all.values()) + need + held > self.limit

    @rule(data=st.data(), share=st.floats(min_value=0.0, max_value=1.0))
    def settle(self, data: st.DataObject, share: float) -> None:
        """A request ends, and has taken at most what was reserved for it."""
        one = self.all[data.draw(st.sampled_from(sorted(self.all)))]
        if one.reserved:
            one.settled += int(share * one.reserved.pop())

    @rule(data=st.data(), passed_s=st.floats(min_value=0.0, max_value=LEASE_S))
    def renew(self, data: st.DataObject, passed_s: float) -> None:
        """Time passes, and a coordinator renews or gives back."""
        self.now_s += passed_s
        name = data.draw(st.sampled_from(sorted(self.all)))
        one = self.all[name]
        if (ask := one.lease.renewal(one.used, self.now_s, self.n)) is not None:
            self.ask(name, ask)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A coordinator dies; what it had reserved stays charged, and it gives back the rest after its restart."""
        name = data.draw(st.sampled_from(sorted(self.all)))
        one = self.all[name]
        self.all[name] = Coordinator(Lease(self.limit), settled=one.used)

    @rule(data=st.data())
    @precondition(lambda self: any(name in self.drawn for name in self.all))
    def restarted(self, data: st.DataObject) -> None:
        """A coordinator that has started again tells what its journal has, which gives back what it had drawn."""
        name = data.draw(st.sampled_from(sorted(set(self.all) & set(self.drawn))))
        one = self.all[name]
        self.ask(name, Ask(one.used))
        assert one.lease.drawn == one.used

    @invariant()
    def never_over_the_limit(self) -> None:
        assert sum(self.drawn.values()) <= self.limit
        assert sum(one.used for one in self.all.values()) <= self.limit

    @invariant()
    def nobody_uses_what_it_has_not_drawn(self) -> None:
        for name, one in self.all.items():
            assert one.used <= self.drawn.get(name, 0)


Schedules.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestSchedules = Schedules.TestCase


@given(limit=st.integers(min_value=100, max_value=10_000), need=st.integers(min_value=1, max_value=100))
def test_near_the_limit_each_coordinator_holds_one_requests_worth(limit: int, need: int) -> None:
    """Two coordinators that take turns use the budget up to less than one request's worth for each of them."""
    drawn: dict[str, int] = {}
    leases = {name: Lease(limit).needs(need) for name in "ab"}
    used = dict.fromkeys("ab", 0)
    refused: set[str] = set()
    turn = 0
    while len(refused) < 2:
        name, turn = "ab"[turn % 2], turn + 1
        for other in "ab":
            ask = leases[other].renewal(used[other], 0.0, 2)
            if ask is not None:
                drawn, answer = lend(drawn, other, limit, ask)
                leases[other] = leases[other].took(answer, 0.0)
        if leases[name].free(used[name], 0.0) < need:
            drawn, answer = lend(drawn, name, limit, leases[name].draw(used[name], need, 0.0, 2))
            leases[name] = leases[name].took(answer, 0.0)
        if leases[name].free(used[name], 0.0) >= need:
            used[name] += need
        else:
            refused.add(name)
    assert limit - 2 * need < sum(used.values()) <= limit


def test_a_lease_ends_by_its_own_clock() -> None:
    """What was drawn may be used until the lease ends, and what is used stays used after it."""
    lease = Lease(1000).took(Answer(100, 0), 5.0)
    assert lease.free(30, 5.0 + LEASE_S - 0.001) == 70
    assert lease.free(30, 5.0 + LEASE_S) == 0
    assert lease.renewal(30, 5.0 + LEASE_S, 2) == Ask(30)


def test_what_others_hold_is_known_for_a_moment_after_the_answer() -> None:
    """Before the first answer nothing is known, and `FRESH_S` after one no longer."""
    lease = Lease(1000)
    assert not lease.is_fresh(100.0)
    lease = lease.took(Answer(10, 20), 100.0)
    assert lease.is_fresh(100.0)
    assert lease.is_fresh(100.0 + 0.9 * FRESH_S)
    assert not lease.is_fresh(100.0 + FRESH_S)


def test_a_lease_is_renewed_once_half_of_its_time_is_over() -> None:
    """Wherever the clock stands; what is there is not asked for again, and a part of a microjoule counts."""
    lease = Lease(100_000).took(Answer(5000, 0), 1000.0).needs(10)
    assert lease.renewal(0, 1000.0 + 0.4 * LEASE_S, 1) is None
    assert lease.renewal(0, 1000.0 + 0.6 * LEASE_S, 1) is not None
    assert lease.draw(0, 10, 1000.0, 1).least == 0
    assert microjoules(4e-7) == 1
    assert [microjoules(1e-6 + part) for part in (4e-10, 6e-10)] == [1, 2]


def test_a_renewal_keeps_what_is_used_and_what_is_free() -> None:
    """All that was drawn stays, and the rest is asked for beside it."""
    lease = Lease(100_000).took(Answer(5000, 0), 1000.0).needs(10)
    ask = lease.renewal(3000, 1000.0, 1)
    assert ask is not None
    assert ask.keep == 5000
    assert ask.want > 0


def test_a_lease_that_is_used_up_at_its_end_asks_for_nothing() -> None:
    """There is nothing to give back of a lease that is used up."""
    assert Lease(1000).took(Answer(100, 0), 5.0).renewal(100, 5.0 + LEASE_S, 2) is None


def test_what_is_used_beyond_the_limit_is_kept_and_nothing_more_is_lent() -> None:
    """An answer that took more than was reserved for it stays charged; the next request gets nothing."""
    drawn, answer = lend({"a": 90}, "a", 100, Ask(keep=120, want=10, least=1))
    assert (drawn, answer) == ({"a": 120}, Answer(120, 0))


@given(st.lists(st.floats(min_value=0.0, max_value=1e6), max_size=50))
def test_rounding_never_charges_too_little(amounts: list[float]) -> None:
    """Amounts that are rounded up one by one are together at least their sum, and a limit is never rounded up."""
    assert sum(map(microjoules, amounts)) >= math.floor(math.fsum(amounts) * 1e6) - len(amounts)
    assert all(limit_uj(amount) <= microjoules(amount) for amount in amounts)
