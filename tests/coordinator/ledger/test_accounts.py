"""Accounts of daily limits: reserved, settled, never overdrawn."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.ledger.accounts import (
    MAX_FORMER_DAYS,
    Accounts,
    Amount,
    DaySum,
    Remaining,
    charge,
    day_after,
    day_of,
)

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"
KEY = Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=100.0, tokens=1000))
JOULES = st.floats(0, 60)


def test_a_reservation_counts_until_it_is_settled() -> None:
    """A reservation counts until it is settled; what was not used is free afterwards."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    assert accounts.left(KEY, MONDAY) == Remaining(40.0, 500)
    accounts.settle(KEY, MONDAY, "r1", Amount(10.0, 100))
    assert accounts.left(KEY, MONDAY) == Remaining(90.0, 900)


def test_what_a_key_has_drawn_here_is_spent_and_reserved_together() -> None:
    """Without the reservation of the request that asks; reading opens no account."""
    accounts = Accounts()
    assert accounts.used(KEY, MONDAY) == Amount(0.0, 0)
    accounts.settle(KEY, MONDAY, "r1", Amount(10.0, 100))
    accounts.reserve(KEY, MONDAY, "r2", Amount(20.0, 200))
    accounts.reserve(KEY, MONDAY, "r3", Amount(None, None))
    assert accounts.used(KEY, MONDAY) == Amount(30.0, 300)
    assert accounts.used(KEY, MONDAY, besides="r2") == Amount(10.0, 100)
    for other in ("r1", "r3", "unknown"):
        assert accounts.used(KEY, MONDAY, besides=other) == Amount(30.0, 300)
    assert accounts.used(KEY, TUESDAY) == Amount(0.0, 0)


def test_a_request_does_not_stand_in_its_own_way() -> None:
    """A request's second attempt is measured against what other requests leave."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    accounts.reserve(KEY, MONDAY, "r2", Amount(10.0, 100))
    assert accounts.left(KEY, MONDAY, besides="r1") == Remaining(90.0, 900)


def test_a_second_reservation_takes_the_place_of_the_first() -> None:
    """A second reservation of a request replaces the first."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    accounts.reserve(KEY, MONDAY, "r1", Amount(70.0, 500))
    assert accounts.left(KEY, MONDAY) == Remaining(30.0, 500)


def test_unknown_joules_keep_their_reservation() -> None:
    """The reservation of a request with unknown joules stays charged, as held and not measured."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    assert accounts.settle(KEY, MONDAY, "r1", Amount(None, 20)) == Amount(60.0, 20)
    spent = accounts.statement(KEY, MONDAY).spent
    assert (spent.energy_j, spent.held_j, spent.n_unmeasured) == (60.0, 60.0, 1)


def test_unknown_joules_without_reservation_are_counted_as_unknown() -> None:
    """A day with unknown joules and no reservation says that its sum is a lower bound."""
    accounts = Accounts()
    assert accounts.settle(KEY, MONDAY, "r1", Amount(None, None)) == Amount(None, None)
    spent = accounts.statement(KEY, MONDAY).spent
    assert (spent.known_j, spent.n_requests, spent.n_unmeasured) == (None, 1, 1)


def test_a_refusal_that_cost_nothing_does_not_make_a_day_known() -> None:
    """The 0 J of a refusal do not stand for an answer that nobody measured."""
    accounts = Accounts()
    accounts.settle(KEY, MONDAY, "r1", Amount(None, None))
    accounts.settle(KEY, MONDAY, "r2", Amount(0.0, 0))
    assert accounts.statement(KEY, MONDAY).spent.known_j is None


def test_a_known_part_above_the_reservation_is_charged() -> None:
    """Known joules above the reservation are charged."""
    assert charge(Amount(5.0, 10), Amount(None, 3), known_j=7.0) == Amount(7.0, 3)


def test_a_day_is_utc_wherever_the_host_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fourteen hours ahead of UTC, the epoch's noon is still in the first day."""
    try:
        with monkeypatch.context() as zone:
            zone.setenv("TZ", "XXX-14")
            time.tzset()
            assert day_of(12 * 3600.0) == "1970-01-01"
    finally:
        time.tzset()


def test_nothing_is_charged_where_nothing_is_known() -> None:
    """Without a reservation and a known part, joules stay unknown."""
    assert charge(None, Amount(None, 3)) == Amount(None, 3)
    assert charge(Amount(0.25, 1), Amount(None, 3)) == Amount(0.25, 3)


def test_unknown_joules_are_charged_at_least_their_known_part() -> None:
    """A settled request with unknown joules is charged its known part where that is above the reservation."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    assert accounts.settle(KEY, MONDAY, "r1", Amount(None, 20), known_j=70.0) == Amount(70.0, 20)


def test_a_known_part_below_one_joule_is_charged_as_it_is() -> None:
    """A known part of half a joule without a reservation is charged as half a joule."""
    assert charge(None, Amount(None, 20), known_j=0.5) == Amount(0.5, 20)


def test_a_request_over_midnight_is_charged_its_own_reservation_and_not_to_the_new_day() -> None:
    """A request that was reserved yesterday is charged what was reserved, and takes nothing of today's limit."""
    accounts = Accounts()
    for name in ("r1", "r2"):
        accounts.reserve(KEY, MONDAY, name, Amount(60.0, 500))
    accounts.reserve(KEY, TUESDAY, "r3", Amount(1.0, 1))
    assert accounts.settle(KEY, TUESDAY, "r1", Amount(None, 20)) == Amount(60.0, 20)
    assert accounts.settle(KEY, TUESDAY, "r2", Amount(None, 20), known_j=70.0) == Amount(70.0, 20)
    spent = accounts.statement(KEY, TUESDAY).spent
    assert (spent.key_id, spent.n_requests, spent.energy_j) == ("k1", 0, 0.0)


def test_a_changed_limit_holds_at_once() -> None:
    """The statement tells the limits that the key has now, and what is left of them."""
    accounts = Accounts()
    accounts.settle(KEY, MONDAY, "r1", Amount(10.0, 100))
    changed = Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=50.0, tokens=None))
    statement = accounts.statement(changed, MONDAY)
    assert (statement.limits, statement.left) == (changed.daily, Remaining(40.0, None))


def test_measured_joules_are_not_held() -> None:
    """Measured joules are spent and not held, and tokens that nobody knows are none."""
    accounts = Accounts()
    accounts.settle(KEY, MONDAY, "r1", Amount(10.0, None))
    spent = accounts.statement(KEY, MONDAY).spent
    assert (spent.key_id, spent.energy_j, spent.held_j, spent.tokens) == ("k1", 10.0, 0.0, 0)


def test_an_overdrawn_key_has_nothing_left() -> None:
    """What is left of an overdrawn limit is 0, neither negative nor anything."""
    accounts = Accounts()
    accounts.settle(KEY, MONDAY, "r1", Amount(100.5, 1001))
    assert accounts.left(KEY, MONDAY) == Remaining(0.0, 0)


def test_a_new_day_begins_with_nothing_spent() -> None:
    """Yesterday's reservation is not charged to today, neither while it runs nor when it ends."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    accounts.settle(KEY, MONDAY, "r2", Amount(30.0, 10))
    assert accounts.left(KEY, TUESDAY) == Remaining(100.0, 1000)
    assert accounts.settle(KEY, MONDAY, "r1", Amount(None, None)) == Amount(60.0, 500)
    assert accounts.left(KEY, TUESDAY) == Remaining(100.0, 1000)


def test_reading_opens_no_account() -> None:
    """A key that was only asked about has not been used today, and is on no statement."""
    accounts = Accounts()
    accounts.left(KEY, MONDAY)
    accounts.statement(KEY, MONDAY)
    assert accounts.statements(MONDAY) == ()


def test_reading_ahead_begins_no_day() -> None:
    """A question about tomorrow leaves today's charges and reservations as they are."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    assert accounts.left(KEY, TUESDAY) == Remaining(100.0, 1000)
    assert accounts.statement(KEY, TUESDAY).day == TUESDAY
    assert accounts.left(KEY, MONDAY) == Remaining(40.0, 500)


def test_a_reading_for_another_limit_leaves_the_key_its_own() -> None:
    """What is asked for with other limits does not change those that the key's statement shows."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "r1", Amount(60.0, 500))
    accounts.left(Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=1.0)), MONDAY)
    [statement] = accounts.statements(MONDAY)
    assert statement.limits == KEY.daily


def test_a_clock_that_is_set_back_forgives_nothing() -> None:
    """The day stays when the clock is set back."""
    accounts = Accounts()
    accounts.settle(KEY, TUESDAY, "r1", Amount(30.0, 10))
    accounts.reserve(KEY, MONDAY, "r2", Amount(50.0, 10))
    accounts.settle(KEY, MONDAY, "r2", Amount(50.0, 10))
    assert accounts.left(KEY, MONDAY).energy_j == 20.0


def spend(accounts: Accounts, day: str, request_id: str, amount: Amount) -> None:
    """A request that is reserved for and settled on the same day."""
    accounts.reserve(KEY, day, request_id, amount)
    accounts.settle(KEY, day, request_id, amount)


def test_a_clock_that_was_years_ahead_does_not_hold_a_key_to_that_days_limit() -> None:
    """When it is right again the day goes on, with all that was spent before and meanwhile."""
    accounts = Accounts()
    spend(accounts, MONDAY, "r1", Amount(30.0, 10))
    spend(accounts, "2099-01-01", "r2", Amount(50.0, 10))
    assert accounts.left(KEY, "2099-01-01") == Remaining(50.0, 990)
    assert accounts.left(KEY, MONDAY) == Remaining(20.0, 980)
    [statement] = accounts.statements(MONDAY)
    assert (statement.day, statement.left) == (MONDAY, Remaining(20.0, 980))
    spend(accounts, MONDAY, "r3", Amount(5.0, 1))
    assert accounts.left(KEY, MONDAY) == Remaining(15.0, 979)
    assert accounts.left(KEY, TUESDAY) == Remaining(100.0, 1000)


def test_a_clock_that_was_in_1970_for_a_while_forgives_nothing() -> None:
    """What was spent before counts meanwhile, and again when the clock is right."""
    accounts = Accounts()
    spend(accounts, MONDAY, "r1", Amount(30.0, 10))
    spend(accounts, "1970-01-01", "r2", Amount(50.0, 10))
    assert accounts.left(KEY, "1970-01-01") == Remaining(20.0, 980)
    assert accounts.left(KEY, MONDAY) == Remaining(70.0, 990)
    accounts.reserve(KEY, MONDAY, "r3", Amount(60.0, 10))
    assert accounts.left(KEY, MONDAY) == Remaining(10.0, 980)


def test_a_request_that_ends_days_later_does_not_turn_the_day_back() -> None:
    """It belongs to the day in which it arrived; the account goes on with today."""
    accounts = Accounts()
    accounts.reserve(KEY, MONDAY, "long", Amount(30.0, 10))
    spend(accounts, "2026-11-27", "r1", Amount(50.0, 10))
    accounts.settle(KEY, MONDAY, "long", Amount(30.0, 10))
    accounts.settle(KEY, MONDAY, "unreserved", Amount(30.0, 10))
    assert accounts.left(KEY, "2026-11-27") == Remaining(50.0, 990)


def test_the_books_go_on_where_the_ledger_left_them() -> None:
    """After a restart the accounts go on where the ledger left them."""
    accounts = Accounts()
    accounts.restore(MONDAY, {MONDAY: [DaySum("k1", "app", energy_j=95.0, tokens=10, n_requests=3)]})
    assert accounts.left(KEY, MONDAY) == Remaining(5.0, 990)
    assert [statement.left for statement in accounts.statements(MONDAY)] == [Remaining(None, None)]


@pytest.mark.parametrize("started", ["1970-01-02", "2099-01-01", TUESDAY])
def test_a_start_with_a_wrong_clock_forgives_nothing(started: str) -> None:
    """What the ledger has of another day counts once the clock says that day, and shows on no statement before."""
    accounts = Accounts()
    known = DaySum("k1", "app", energy_j=95.0, tokens=10, n_requests=3)
    accounts.restore(started, {started: [], MONDAY: [known]})
    assert accounts.left(KEY, started) == Remaining(100.0, 1000)
    assert accounts.statements(started) == ()
    assert accounts.left(KEY, MONDAY) == Remaining(5.0, 990)
    spend(accounts, MONDAY, "r1", Amount(1.0, 1))
    assert accounts.statement(KEY, MONDAY).spent.n_requests == 4


def test_days_that_a_wrong_clock_has_written_are_not_charged_to_today() -> None:
    """After a start with the clock right again, today's limit is whole, whatever was spent in 2099."""
    accounts = Accounts()
    accounts.restore(TUESDAY, {MONDAY: [], "2099-01-01": [DaySum("k1", "app", 95.0, 0.0, 10, 3)]})
    assert accounts.left(KEY, TUESDAY) == Remaining(100.0, 1000)
    assert accounts.left(KEY, "2099-01-01") == Remaining(5.0, 990)


def test_the_day_that_a_request_is_charged_to_is_told() -> None:
    """It is the present one, and stays the next one where the clock was set back from there."""
    accounts = Accounts()
    assert accounts.day(KEY, MONDAY) == MONDAY
    spend(accounts, TUESDAY, "r1", Amount(1.0, 1))
    assert accounts.day(KEY, MONDAY) == TUESDAY
    assert accounts.day(KEY, "2026-11-20") == "2026-11-20"


@given(st.lists(st.tuples(st.integers(0, MAX_FORMER_DAYS), st.integers(1, 9)), max_size=12))
def test_no_day_is_forgotten_on_a_walk_of_the_clock(walk: list[tuple[int, int]]) -> None:
    """Wherever a clock jumps between a few days, what was spent while it said a day still counts on that day."""
    accounts, spent = Accounts(), dict.fromkeys(range(MAX_FORMER_DAYS + 1), 0)
    for number, (day, tokens) in enumerate(walk):
        said = day_of(day * 10 * 86_400)
        assert 1000 - (accounts.left(KEY, said).tokens or 0) >= spent[day]
        spend(accounts, said, f"r{number}", Amount(0.0, tokens))
        spent[day] += tokens


def test_a_key_counts_its_requests_that_engines_died_with() -> None:
    """A key's day counts the requests that engines died with, beside all requests."""
    accounts = Accounts()
    accounts.settle(KEY, MONDAY, "r1", Amount(1.0, 1), crash_suspected=True)
    accounts.settle(KEY, MONDAY, "r2", Amount(1.0, 1))
    spent = accounts.statement(KEY, MONDAY).spent
    assert (spent.n_requests, spent.n_crash_suspected) == (2, 1)
    accounts.settle(KEY, TUESDAY, "r3", Amount(1.0, 1))
    assert accounts.statement(KEY, TUESDAY).spent.n_crash_suspected == 0


def test_keys_have_nothing_to_do_with_each_other() -> None:
    """One key's use does not count against another's limit."""
    accounts = Accounts()
    accounts.settle(Principal(key_id="k2", name="other", daily=KEY.daily), MONDAY, "r1", Amount(99.0, 999))
    assert accounts.left(KEY, MONDAY) == Remaining(100.0, 1000)


@pytest.mark.parametrize(
    ("at_unix_s", "day"), [(0.0, "1970-01-01"), (86_399.9, "1970-01-01"), (86_400.0, "1970-01-02")]
)
def test_a_day_is_a_utc_day(at_unix_s: float, day: str) -> None:
    """A day lasts from midnight to midnight in UTC."""
    assert day_of(at_unix_s) == day


def test_a_day_ends_at_the_next_midnight() -> None:
    """A day ends at the next midnight, also at the end of a year."""
    assert day_after("2026-12-31").isoformat() == "2027-01-01T00:00:00+00:00"


class Ledgering(RuleBasedStateMachine):
    """A machine in which requests come, are admitted where there is room, and end in any order, over days."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Accounts()
        self.day = 0
        self.number = 0
        self.reserved: dict[str, tuple[int, float]] = {}
        self.spent = 0.0

    @property
    def today(self) -> str:
        return day_of(self.day * 86_400)

    @rule(target=running, joules=JOULES)
    def admit(self, joules: float) -> str | None:
        left_j = self.accounts.left(KEY, self.today).energy_j
        assert left_j is not None
        if joules > left_j:
            return None
        self.number += 1
        name = f"r{self.number}"
        self.accounts.reserve(KEY, self.today, name, Amount(joules, 0))
        self.reserved[name] = (self.day, joules)
        return name

    @rule(name=consumes(running), share=st.floats(0, 1) | st.none())
    def end(self, name: str | None, share: float | None) -> None:
        """share: of what was reserved that was used; None: nobody knows."""
        if name is None:
            return
        day, joules = self.reserved.pop(name)
        used_j = None if share is None else share * joules
        charged = self.accounts.settle(KEY, day_of(day * 86_400), name, Amount(used_j, 0))
        assert charged.energy_j is not None
        assert charged.energy_j <= joules
        if day == self.day:
            self.spent += charged.energy_j

    @rule()
    def midnight(self) -> None:
        self.day += 1
        self.spent = 0.0

    @invariant()
    def the_limit_is_never_overdrawn(self) -> None:
        statement = self.accounts.statement(KEY, self.today)
        reserved_j = sum(joules for day, joules in self.reserved.values() if day == self.day)
        assert statement.spent.energy_j + statement.reserved_j <= 100.0 + 1e-6
        assert statement.spent.energy_j == pytest.approx(self.spent)
        assert statement.reserved_j == pytest.approx(reserved_j)


TestLedgering = Ledgering.TestCase
TestLedgering.settings = settings(max_examples=30, stateful_step_count=30)
TestLedgering.__doc__ = "Spent and reserved together never exceed the limit; every unused joule is given back."


@given(reserved=st.none() | JOULES, used=st.none() | JOULES, known=JOULES)
def test_nothing_known_is_ever_forgiven(reserved: float | None, used: float | None, known: float) -> None:
    """A request is charged what it used, or at least what is known of that."""
    charged = charge(None if reserved is None else Amount(reserved, 0), Amount(used, 0), known_j=known).energy_j
    if used is not None:
        assert charged == used
    else:
        assert (charged or 0.0) >= known
