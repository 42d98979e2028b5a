"""Joules that belong to no request: from agents' counters into the ledger, and out again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moe2.common.energy import Quality
from moe2.common.standby import StandingEnergy
from moe2.coordinator.ledger.report import Span, StandingReport, booked_counters, standing
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.ledger.standing import BOOK_EVERY_S, MAX_BOOKED_PER_S, MAX_UNSEEN_S, StandingBook
from moe2.coordinator.ledger.store import Ledger
from tests.coordinator.ledger.entries import request_entry

NOON = 1_800_000_000.0
FIRST = StandingEnergy(epoch="a", idle_j=100.0, loading_j=40.0, measured_s=10.0, quality=Quality.MEASURED_COUNTER)


def joules(
    book: StandingBook, energy: StandingEnergy, at_unix_s: float = NOON, agent: str = "agent-1"
) -> dict[str, float]:
    """What is entered for a report, by cause."""
    entry = book.reported(agent, "orin", energy, at_unix_s)
    return dict(entry.by_cause) if entry else {}


def test_what_an_agent_counted_before_its_first_report_is_booked() -> None:
    """Its model was loaded before it was connected."""
    assert joules(StandingBook(NOON), FIRST) == {"idle": 100.0, "loading": 40.0}


def test_only_what_is_new_is_booked() -> None:
    """Counters are differences."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    later = replace(FIRST, idle_j=130.0, waking_j=5.0)
    assert joules(book, later, NOON + BOOK_EVERY_S) == {"idle": 30.0, "waking": 5.0}
    assert joules(book, later, NOON + 2 * BOOK_EVERY_S) == {}


def test_agents_of_a_large_fleet_are_booked_more_seldom_and_lose_nothing() -> None:
    """A thousand agents are booked once a minute each; what they have counted meanwhile comes with the next entry."""
    book = StandingBook(NOON)
    n_agents, later = 1000, replace(FIRST, idle_j=130.0)
    for number in range(n_agents):
        joules(book, FIRST, agent=f"agent-{number}")
    pause_s = n_agents / MAX_BOOKED_PER_S
    assert pause_s > BOOK_EVERY_S
    assert joules(book, later, NOON + pause_s - 1.0) == {}
    assert joules(book, replace(later, idle_j=150.0), NOON + pause_s) == {"idle": 50.0}


def test_a_restarted_agent_counts_from_nothing() -> None:
    """Its new epoch says so, even where its counters have passed the old ones."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    assert joules(book, replace(FIRST, epoch="b", idle_j=150.0), NOON + 1.0) == {"idle": 150.0, "loading": 40.0}


def test_a_restarted_coordinator_goes_on_where_the_ledger_is() -> None:
    """What was booked is not booked again, and what was counted meanwhile is not lost."""
    book = StandingBook(NOON)
    book.restore({"agent-1": FIRST})
    assert joules(book, replace(FIRST, idle_j=180.0)) == {"idle": 80.0}


def test_counters_of_weeks_that_another_coordinator_had_are_not_booked() -> None:
    """An agent that was never seen before, and has long been running, begins to count now."""
    book = StandingBook(NOON)
    old = replace(FIRST, idle_j=1e9, measured_s=MAX_UNSEEN_S + 1)
    assert joules(book, old) == {}
    assert joules(book, replace(old, idle_j=1e9 + 7.0), NOON + BOOK_EVERY_S) == {"idle": 7.0}


def test_reports_that_follow_each_other_closely_make_one_entry() -> None:
    """An agent reports every few seconds and on each change; a clock that was set back delays nothing."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    assert joules(book, replace(FIRST, idle_j=101.0), NOON + 1.0) == {}
    assert joules(book, replace(FIRST, idle_j=102.0), NOON - 3600.0) == {"idle": 2.0}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_counters_that_fall_and_rise_never_book_more_than_their_highest(values: list[float]) -> None:
    """An agent cannot fill the books by letting its counters bounce."""
    book = StandingBook(NOON)
    total = 0.0
    for number, value in enumerate(values):
        total += joules(book, StandingEnergy(epoch="a", idle_j=value), NOON + number * BOOK_EVERY_S).get("idle", 0.0)
    assert total == pytest.approx(max(values))


def test_the_balance_is_of_everything_for_each_answer() -> None:
    """Requests and waiting together; unknown before anything was measured."""
    book = StandingBook(NOON)
    assert book.balance(3, 0).j_per_answer is None
    joules(book, replace(FIRST, requests_j=60.0))
    balance = book.balance(4, 1)
    assert (balance.idle_j, balance.loading_j, balance.requests_j) == (100.0, 40.0, 60.0)
    assert balance.j_per_answer == pytest.approx(50.0)
    assert (balance.answers, balance.unmeasured) == (4, 1)
    assert book.balance(0, 0).j_per_answer is None


def test_two_reports_of_one_moment_make_one_entry() -> None:
    """A report at the very moment of the last booking, or half a second later, is too soon."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    assert book.reported("agent-1", "orin", replace(FIRST, idle_j=101.0), NOON) is None
    assert book.reported("agent-1", "orin", replace(FIRST, idle_j=101.0), NOON + 0.5) is None


def test_a_host_whose_clock_begins_at_zero_is_booked_at_once() -> None:
    """The first report after a restart is booked, whatever the wall clock says."""
    book = StandingBook(0.0)
    book.restore({"agent-1": FIRST})
    assert joules(book, replace(FIRST, idle_j=180.0), 20.0) == {"idle": 80.0}


def test_counters_of_just_the_longest_unseen_time_are_booked() -> None:
    """An agent that was never seen before is booked up to and including MAX_UNSEEN_S of counting."""
    assert joules(StandingBook(NOON), replace(FIRST, measured_s=MAX_UNSEEN_S))["idle"] == 100.0


def test_a_report_without_news_makes_no_entry() -> None:
    """Equal counters at a later time write nothing into the ledger."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    assert book.reported("agent-1", "orin", FIRST, NOON + BOOK_EVERY_S) is None


def test_joules_of_requests_alone_make_an_entry() -> None:
    """Counters that grew by requests' joules alone are kept, so that a restart does not count them twice."""
    book = StandingBook(NOON)
    joules(book, FIRST)
    later = replace(FIRST, requests_j=7.0)
    entry = book.reported("agent-1", "orin", later, NOON + BOOK_EVERY_S)
    assert entry is not None
    assert (entry.by_cause, entry.counters) == ((), later)


def test_an_entry_belongs_to_the_hour_in_which_it_was_reported() -> None:
    """The hour of an entry is the last whole one before the report."""
    entry = StandingBook(NOON).reported("agent-1", "orin", FIRST, NOON + 3599.0)
    assert entry is not None
    assert entry.hour_unix_s == NOON


def test_the_balance_adds_up_every_report() -> None:
    """The balance sums each cause and the requests over all reports."""
    book = StandingBook(NOON)
    first = replace(FIRST, waking_j=3.0, other_j=2.0, requests_j=60.0)
    joules(book, first)
    grown = {"idle_j": 130.0, "loading_j": 41.0, "waking_j": 8.0, "other_j": 9.0, "requests_j": 75.0}
    joules(book, replace(first, **grown), NOON + BOOK_EVERY_S)
    balance = book.balance(4, 0)
    assert {name: getattr(balance, name) for name in grown} == grown
    assert (balance.answers, balance.quality) == (4, Quality.MEASURED_COUNTER)


def test_the_balance_is_unknown_before_the_first_report() -> None:
    """Every figure of a balance without a measuring host is None, never 0."""
    balance = StandingBook(NOON).balance(3, 0)
    assert balance.answers == 3
    assert (balance.requests_j, balance.idle_j, balance.loading_j) == (None, None, None)
    assert (balance.waking_j, balance.other_j) == (None, None)


def test_a_report_before_the_first_sample_leaves_the_balance_as_measured_as_it_is() -> None:
    """An agent that has read no sensor yet has no joules either: those of later are measured."""
    book = StandingBook(NOON)
    joules(book, StandingEnergy(epoch=FIRST.epoch))
    assert book.balance(3, 0).j_per_answer is None
    joules(book, FIRST, NOON + BOOK_EVERY_S)
    assert book.balance(3, 0).quality == Quality.MEASURED_COUNTER


async def read(path: Path, *spent: tuple[str, StandingEnergy, float], answers: int = 0) -> StandingReport:
    """Enters what agents report into a ledger, and reads all of it."""
    ledger, book = Ledger(path, retention_days=30), StandingBook(NOON)
    async with ledger.running():
        book.restore(ledger.booked_counters)
        entries = [book.reported(agent, f"name of {agent}", energy, at) for agent, energy, at in spent]
        waits = [ledger.record(entry) for entry in entries if entry]
        waits += [
            ledger.record(request_entry(f"r{number}", joules=20.0, at_unix_s=NOON, day="2027-01-15"))
            for number in range(answers)
        ]
        assert all(await asyncio.gather(*waits))
    with reading(path) as connection:
        return standing(connection, Span())


async def test_the_ledger_sums_up_hosts_and_causes_and_tells_joules_per_answer(tmp_path: Path) -> None:
    """Over both hosts, with what requests took."""
    report = await read(
        tmp_path / "ledger.db",
        ("agent-1", FIRST, NOON),
        ("agent-2", StandingEnergy(epoch="z", idle_j=20.0, quality=Quality.SIMULATED), NOON),
        ("agent-1", replace(FIRST, idle_j=140.0), NOON + 4000.0),
        answers=2,
    )
    one, two = report.hosts
    assert (one.agent_name, one.idle_j, one.loading_j, one.quality) == (
        "name of agent-1",
        140.0,
        40.0,
        "measured_counter",
    )
    assert (two.idle_j, two.quality) == (20.0, "simulated")
    assert (report.joules, report.answers, report.requests_j) == (200.0, 2, 40.0)
    assert report.j_per_answer == pytest.approx(120.0)


async def test_counters_and_sums_survive_restarts_together(tmp_path: Path) -> None:
    """A coordinator that is started again books the difference alone."""
    path = tmp_path / "ledger.db"
    await read(path, ("agent-1", FIRST, NOON))
    report = await read(path, ("agent-1", replace(FIRST, idle_j=160.0), NOON + 10.0))
    assert report.joules == pytest.approx(200.0)
    with reading(path) as connection:
        assert booked_counters(connection)["agent-1"].idle_j == 160.0


async def test_a_ledger_without_a_measuring_host_knows_no_joules(tmp_path: Path) -> None:
    """Unknown is not 0."""
    report = await read(tmp_path / "ledger.db", answers=1)
    assert (report.joules, report.j_per_answer, report.answers) == (None, None, 1)


async def test_a_span_takes_whole_hours(tmp_path: Path) -> None:
    """Joules are kept by the hour: an hour belongs to the span if it begins within it, and so does the first one."""
    path = tmp_path / "ledger.db"
    await read(path, ("agent-1", FIRST, NOON), ("agent-1", replace(FIRST, idle_j=150.0), NOON + 7200.0))
    with reading(path) as connection:
        assert standing(connection, Span(since_unix_s=NOON + 7200.0 + 60.0)).joules == pytest.approx(50.0)
        assert standing(connection, Span(until_unix_s=NOON + 3600.0)).joules == pytest.approx(140.0)


async def test_every_cause_counts_in_the_sum_of_a_host(tmp_path: Path) -> None:
    """The sum over hosts takes in idling, loading, waking and what is left."""
    energy = replace(FIRST, waking_j=5.0, other_j=3.0)
    report = await read(tmp_path / "ledger.db", ("agent-1", energy, NOON), answers=1)
    assert report.joules == pytest.approx(148.0)
    assert report.j_per_answer == pytest.approx(168.0)
    assert report.n_unmeasured == 0


async def test_a_ledger_without_answers_knows_no_joules_per_answer(tmp_path: Path) -> None:
    """Hosts that only waited have joules, and no joules per answer."""
    report = await read(tmp_path / "ledger.db", ("agent-1", FIRST, NOON))
    assert (report.answers, report.requests_j, report.j_per_answer, report.n_unmeasured) == (0, None, None, 0)


async def test_a_report_counts_its_unmeasured_requests(tmp_path: Path) -> None:
    """Requests without joules are counted beside the sum, which is a lower bound then."""
    path = tmp_path / "ledger.db"
    ledger = Ledger(path, retention_days=36_500)
    async with ledger.running():
        assert await ledger.record(request_entry("r1", joules=None, quality="unmeasured"))
        assert await ledger.record(request_entry("r2", joules=None, quality="unmeasured"))
    with reading(path) as connection:
        report = standing(connection, Span())
    assert (report.n_unmeasured, report.requests_j, report.answers) == (2, None, 2)


async def test_a_span_that_ends_at_the_epoch_holds_nothing(tmp_path: Path) -> None:
    """The moment 0 is a bound like any other."""
    path = tmp_path / "ledger.db"
    await read(path, ("agent-1", FIRST, NOON))
    with reading(path) as connection:
        assert standing(connection, Span(until_unix_s=0.0)).joules is None


async def test_a_span_with_two_ends_holds_what_lies_between(tmp_path: Path) -> None:
    """The hours from the first end on, and before the second."""
    path = tmp_path / "ledger.db"
    later = (("agent-1", replace(FIRST, idle_j=100.0 + 50.0 * hour), NOON + 3600.0 * hour) for hour in (1, 2))
    await read(path, ("agent-1", FIRST, NOON), *later)
    with reading(path) as connection:
        between = standing(connection, Span(since_unix_s=NOON + 3600.0, until_unix_s=NOON + 7200.0))
        assert between.joules == pytest.approx(50.0)


async def test_joules_of_requests_without_an_answer_make_no_joules_per_answer(tmp_path: Path) -> None:
    """What failed has cost something, and there is nothing to divide it by; a measured 0 is a figure."""
    path = tmp_path / "ledger.db"
    await read(path, ("agent-1", FIRST, NOON))
    ledger = Ledger(path, retention_days=36_500)
    async with ledger.running():
        assert await ledger.record(request_entry("r1", joules=3.0, outcome="failed"))
    with reading(path) as connection:
        report = standing(connection, Span())
    assert (report.answers, report.requests_j, report.j_per_answer) == (0, 3.0, None)


async def test_an_answer_that_took_nothing_costs_what_waiting_did(tmp_path: Path) -> None:
    """A measured 0 of requests is added like any figure."""
    path = tmp_path / "ledger.db"
    await read(path, ("agent-1", FIRST, NOON))
    ledger = Ledger(path, retention_days=36_500)
    async with ledger.running():
        assert await ledger.record(request_entry("r1", joules=0.0))
    with reading(path) as connection:
        report = standing(connection, Span())
    assert (report.requests_j, report.j_per_answer) == (0.0, report.joules)
