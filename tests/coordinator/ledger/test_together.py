"""Sums and statements of several coordinators, added up. Pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.ledger.accounts import Accounts, Amount, DaySum, with_others
from moe2.coordinator.ledger.report import Answered, StandingRow, SumRow, standing_report, together

DAY = "2026-11-28"


def row(group: str, **fields: object) -> SumRow:
    known: dict[str, object] = {
        "n_requests": 1,
        "n_unmeasured": 0,
        "prompt_tokens": 7,
        "cached_tokens": None,
        "decoded_tokens": 3,
        "seconds": 1.0,
        "joules": 5.0,
        "useful_j": 4.0,
        "wasted_j": {"failed": 1.0},
        "quality": "measured_counter",
        "charged_j": 5.0,
    }
    return SumRow(group=group, **{**known, **fields})  # type: ignore[arg-type]


def test_groups_of_both_are_added_and_others_stay() -> None:
    """Groups that two ledgers have are added up, each figure by itself; a group of one stays as it is."""
    [app, other] = together((row("app"), row("other")), (row("app", wasted_j={"lost": 2.0}),))
    assert (app.n_requests, app.prompt_tokens, app.joules, app.wasted_j) == (2, 14, 10.0, {"failed": 1.0, "lost": 2.0})
    assert app.cached_tokens is None
    assert other == row("other")


def test_what_one_ledger_does_not_know_makes_a_lower_bound() -> None:
    """Unknown joules of one ledger leave those of the other, and the count of the unmeasured says so."""
    unknown = row("app", joules=None, useful_j=None, wasted_j={}, n_unmeasured=1, quality="unmeasured", charged_j=None)
    [both] = together((row("app"),), (unknown,))
    assert (both.joules, both.n_unmeasured, both.quality, both.charged_j) == (5.0, 1, "measured_counter", 5.0)
    [neither] = together((unknown,), (unknown,))
    assert (neither.joules, neither.quality) == (None, "unmeasured")


def test_a_file_that_two_ledgers_know_by_other_names_is_one_model() -> None:
    """Rows of one file are added up and named with all names; a name of which no file is known stays apart."""
    ours, theirs = row("new, old", file_sha256="aa"), row("late, new", file_sha256="aa")
    found = together((ours, row("new")), (theirs, row("new", file_sha256="bb")))
    assert [(one.group, one.file_sha256, one.n_requests) for one in found] == [
        ("late, new, old", "aa", 2),
        ("new", None, 1),
        ("new", "bb", 1),
    ]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=4))
def test_no_request_is_lost_or_counted_twice(ledgers: list[list[str]]) -> None:
    """However requests are spread over ledgers, their number is that of all, in groups sorted by name."""
    whole = together(*([row(group) for group in ledger] for ledger in ledgers))
    assert sum(one.n_requests for one in whole) == sum(map(len, ledgers))
    assert [one.group for one in whole] == sorted({group for ledger in ledgers for group in ledger})


def test_answers_of_all_ledgers_share_the_joules_of_no_request() -> None:
    """Joules for each answer are those of the hosts, once, and of all ledgers' requests, over all answers."""
    hosts = (StandingRow(agent="id-1", agent_name="orin", idle_j=30.0),)
    found = standing_report(hosts, (Answered(2, 10.0, 0), Answered(3, None, 1), Answered()))
    assert (found.answers, found.requests_j, found.n_unmeasured, found.j_per_answer) == (5, 10.0, 1, 8.0)


def test_a_keys_day_counts_what_others_charged() -> None:
    """A key's statement has both coordinators' requests, and its limit less all of them; none of it is negative."""
    accounts, app = Accounts(), Principal(key_id="k1", name="app", daily=DailyLimits(energy_j=10.0, tokens=100))
    accounts.reserve(app, DAY, "req-1", Amount(2.0, 20))
    accounts.settle(app, DAY, "req-1", Amount(1.0, 10))
    theirs = DaySum("k1", "app", energy_j=6.0, tokens=95, n_requests=4)
    [whole] = with_others(accounts.statements(DAY), [theirs], DAY, lambda _: DailyLimits())
    assert (whole.spent.energy_j, whole.spent.tokens, whole.spent.n_requests) == (7.0, 105, 5)
    assert (whole.left.energy_j, whole.left.tokens) == (3.0, 0)


def test_a_key_that_only_others_have_seen_has_its_limits() -> None:
    """A key that has asked only the other coordinator stands there with its limit."""
    theirs = DaySum("k2", "other", tokens=30, n_requests=1)
    [whole] = with_others((), [theirs], DAY, lambda key_id: DailyLimits(tokens=100 if key_id == "k2" else None))
    assert (whole.spent.key_name, whole.limits.tokens, whole.left.tokens, whole.day) == ("other", 100, 70, DAY)
