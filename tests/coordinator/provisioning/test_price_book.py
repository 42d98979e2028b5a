"""The prices of average budgets, and those that coordinators learn together."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.request import Demand, ScopePrice, SelectionRequest
from moe2.coordinator.keys.keys import ANYBODY, DailyLimits, Principal
from moe2.coordinator.provisioning import price_book
from moe2.coordinator.provisioning.price_book import Averages, PriceBook, SavedPrice, SavedPrices, Spending, merged
from moe2.coordinator.provisioning.rhythm import DAY_S, HOUR_S
from moe2.coordinator.provisioning.state_files import PriceFile

NOON_S = 20_000 * DAY_S + 12 * HOUR_S
ASKED = SelectionRequest(model="moe2", demand=Demand(10, 10))
APP = Principal(key_id="a1", name="app", average_energy_j=100.0)
steps = st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 0.5), st.booleans()), max_size=60)


def spending(joules: float | None, **about: Any) -> Spending:
    settled: dict[str, Any] = {
        "category": None,
        "known_j": joules or 0.0,
        "charged_j": joules,
        "arrived_unix_s": NOON_S,
        "is_answer": True,
        **about,
    }
    return Spending(joules=joules, **settled)


def settle(book: PriceBook, *spent: Spending, principal: Principal = ANYBODY, left_j: float | None = None) -> None:
    for one in spent:
        book.settle(principal, one, left_j=left_j, now_unix_s=NOON_S)


def prices(
    book: PriceBook, category: str = "default", principal: Principal = ANYBODY, left_j: float | None = None
) -> dict[str, float]:
    """The prices that a request stands under, by scope."""
    asked = book.priced(ASKED, principal, left_j=left_j, now_unix_s=NOON_S)
    return {found.scope: found.price_per_j for found in asked.prices_in(category)}


def test_without_averages_a_request_stays_as_it_is() -> None:
    """Nobody pays for a joule where nobody has set an average."""
    assert PriceBook(Averages()).priced(ASKED, ANYBODY, left_j=None, now_unix_s=NOON_S) is ASKED


def test_a_request_stands_under_all_of_its_averages() -> None:
    """The fleet's, its key's and its category's; another category's and another key's are none of its business."""
    book = PriceBook(Averages(50.0, {"coding": 200.0}))
    assert set(prices(book, "coding", APP)) == {"fleet", "key app", "category coding"}
    assert set(prices(book, "poems")) == {"fleet"}


def test_the_default_category_is_everybody_elses() -> None:
    """Categories without an average share that of the default category, as they share its limits."""
    book = PriceBook(Averages(None, {"default": 50.0, "coding": 200.0}))
    assert set(prices(book, "poems")) == {"category default"}
    settle(book, spending(150.0, category="poems"))
    assert prices(book, "songs")["category default"] > 0.0
    assert prices(book, "coding") == {"category coding": 0.0}


def test_what_is_spent_counts_for_every_scope() -> None:
    """An answer of 150 J is too dear for the key and the fleet, and not for its category; the prices differ so."""
    book = PriceBook(Averages(50.0, {"coding": 200.0}))
    settle(book, spending(150.0, category="coding"), principal=APP)
    found = prices(book, "coding", APP)
    assert found["fleet"] > found["key app"] > found["category coding"] == 0.0


def test_joules_of_a_request_without_an_answer_count() -> None:
    """What a cancelled or failed request has burnt is charged to its scopes, and it is no answer."""
    book = PriceBook(Averages(50.0))
    settle(book, spending(40.0, is_answer=False))
    (row,) = book.rows(NOON_S)
    assert row.price_per_j > 0.0
    assert row.n_answers == 0


def test_unknown_joules_do_not_fool_the_price() -> None:
    """A request whose joules nobody knows moves nothing and is counted apart; a part that is too much already moves."""
    book = PriceBook(Averages(50.0))
    settle(book, *[spending(None)] * 20, *[spending(None, known_j=30.0)] * 20)
    (row,) = book.rows(NOON_S)
    assert (row.price_per_j, row.mean_j, row.n_answers, row.n_unmeasured) == (0.0, None, 0, 40)
    settle(book, spending(None, known_j=90.0))
    assert book.rows(NOON_S)[0].price_per_j > 0.0


def test_a_reload_keeps_prices_and_forgets_debts() -> None:
    """Under another target the price goes on from where it was; an average that is left out is gone at once."""
    book = PriceBook(Averages(50.0, {"coding": 50.0}))
    settle(book, *[spending(80.0, category="coding")] * 30)
    before = prices(book, "coding")
    book.reconfigure(Averages(60.0))
    assert prices(book, "coding") == {"fleet": before["fleet"]}
    assert [row.scope for row in book.rows(NOON_S)] == ["fleet"]
    assert book.rows(NOON_S)[0].average_energy_j == 60.0
    assert book.saved().prices["fleet"].owed_j == 0.0


def test_prices_outlive_a_restart(tmp_path: Path) -> None:
    """What was learned is in the file, bit for bit, with the keys' rhythms."""
    daily = Principal(key_id="b2", name="batch", daily=DailyLimits(energy_j=1e4))
    book, file = PriceBook(Averages(50.0, {"coding": 40.0})), PriceFile(tmp_path / "new")
    settle(book, *[spending(80.0, category="coding")] * 30, principal=APP)
    settle(book, *[spending(80.0)] * 30, principal=daily, left_j=5e3)
    file.write(book.saved())
    again = PriceBook(Averages(50.0, {"coding": 40.0}), PriceFile(tmp_path / "new").read())
    assert again.saved() == book.saved()
    for principal, left_j in ((APP, None), (daily, 5e3)):
        assert prices(again, "coding", principal, left_j) == prices(book, "coding", principal, left_j)
    assert file.warnings() == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[]", b'{"version": 2}', b'{"prices": {"fleet": {"price_per_j": "x"}}}', b"{" * 10_000],
)
def test_a_damaged_file_costs_what_was_learned_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    """Prices begin anew, with a notice until the file is written again."""
    (tmp_path / "prices.json").write_bytes(content)
    file = PriceFile(tmp_path)
    assert file.read() == SavedPrices()
    assert [warning.code for warning in file.warnings()] == ["prices_unreadable"]
    file.write(SavedPrices())
    assert file.warnings() == ()


@pytest.mark.parametrize(
    "content",
    [
        b'{"prices": {"fleet": {"price_per_j": -1, "target_j": 50}}}',
        b'{"prices": {"fleet": {"price_per_j": 1e999, "target_j": 50}}}',
        b'{"prices": {"fleet": {"price_per_j": 1, "n_answers": -5, "target_j": 50}}}',
        b'{"rhythms": {"a1": {"today": [1, 2]}}}',
    ],
)
def test_figures_that_cannot_be_are_left_out(tmp_path: Path, content: bytes) -> None:
    """A file that can be read and says what was never learned sets no price."""
    (tmp_path / "prices.json").write_bytes(content)
    book = PriceBook(Averages(50.0), PriceFile(tmp_path).read())
    limited = Principal(key_id="a1", name="app", daily=DailyLimits(energy_j=1e4))
    assert set(prices(book, principal=limited, left_j=1e4).values()) == {0.0}
    settle(book, spending(100.0), principal=limited, left_j=1e4)
    assert book.rows(NOON_S)[0].n_answers == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where the folder is no folder, the prices go on in memory, with a warning."""
    (tmp_path / "state").write_text("a file")
    file = PriceFile(tmp_path / "state")
    file.write(SavedPrices())
    assert [warning.code for warning in file.warnings()] == ["prices_not_kept"]


def test_many_keys_are_forgotten_from_the_oldest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is bounded, however many keys have come and gone."""
    monkeypatch.setattr(price_book, "MAX_SCOPES", 10)
    book = PriceBook(Averages())
    for number in range(50):
        settle(book, spending(80.0), principal=Principal(key_id=str(number), name=f"n{number}", average_energy_j=50.0))
    assert sorted(book.saved().prices) == sorted(f"key:{number}" for number in range(40, 50))
    assert len(book.rows(NOON_S)) == 10


# --- A key's day ------------------------------------------------------------------------------------------------------

DEAR, CHEAP = (0.7, 300.0), (0.5, 100.0)


def day(book: PriceBook, number: int, limit_j: float, random_: random.Random) -> tuple[list[float], int]:
    """The scores of a day of 200 requests between eight and six, and how many of them the limit had to refuse."""
    principal = Principal(key_id="k", name="k", daily=DailyLimits(energy_j=limit_j))
    left_j, scores, refused = limit_j, [], 0
    for at_s in sorted(random_.uniform(8, 18) * HOUR_S for _ in range(200)):
        now_unix_s = (20_000 + number) * DAY_S + at_s
        asked = book.priced(ASKED, principal, left_j=left_j, now_unix_s=now_unix_s)
        price_per_j = sum(found.price_per_j for found in asked.prices_in("default"))
        need = random_.gauss(0.0, 0.2)
        offers = [offer for offer in ((DEAR[0] + need, DEAR[1]), CHEAP) if offer[1] <= left_j]
        if not offers:
            refused += 1
            continue
        score, joules = max(offers, key=lambda offer: offer[0] - price_per_j * offer[1])
        left_j -= joules
        scores.append(score)
        book.settle(
            principal,
            spending(joules, arrived_unix_s=now_unix_s, is_cheapest=joules == CHEAP[1]),
            left_j=left_j,
            now_unix_s=now_unix_s,
        )
    return scores, refused


def test_a_daily_limit_is_paced_over_the_day() -> None:
    """From its second day on a key spends its day evenly: next to nobody is refused, and answers are better for it."""
    book, drawn, limit_j = PriceBook(Averages()), random.Random(2), 200 * 200.0
    days = [day(book, number, limit_j, drawn) for number in range(5)]
    unpaced = sum(DEAR[0] for _ in range(133)) / 200
    for scores, refused in days[1:]:
        assert refused <= 10
        assert sum(scores) / 200 > unpaced + 0.1


def test_a_loose_daily_limit_costs_nothing() -> None:
    """Where the day has room for everything, joules stay free; a day that is over is shown no more."""
    book, drawn = PriceBook(Averages()), random.Random(2)
    for number in range(3):
        day(book, number, 200 * 400.0, drawn)
    (row,) = book.rows(NOON_S + 2 * DAY_S)
    assert (row.price_per_j, row.of_day) == (0.0, True)
    assert book.rows(NOON_S + 3 * DAY_S) == ()


def test_a_day_shows_what_is_left_for_each_answer() -> None:
    """The target of a day is what is left of the limit for each request that is still expected."""
    limited = Principal(key_id="k", name="k", daily=DailyLimits(energy_j=1000.0))
    book = PriceBook(Averages())
    asked = book.priced(ASKED, limited, left_j=400.0, now_unix_s=NOON_S)
    assert asked.scope_prices == (ScopePrice("day of key k", 400.0, 0.0),)


@given(steps)
def test_every_step_counts_once_in_whatever_order_it_is_shared(steps: list[tuple[int, float, bool]]) -> None:
    """Two coordinators raise a price and share it now and then; in the end both have the sum of all steps."""
    shared: SavedPrice | None = None
    begun = SavedPrice(target_j=10.0)
    own, before = [begun, begun], [begun, begun]

    def share(who: int) -> None:
        nonlocal shared
        own[who] = before[who] = shared = merged(before[who], own[who], shared)

    for who, step, is_shared in steps:
        price = own[who]
        own[who] = SavedPrice(target_j=10.0, price_per_j=price.price_per_j + step, n_answers=price.n_answers + 1)
        if is_shared:
            share(who)
    for who in (0, 1, 0):
        share(who)
    assert own[0] == own[1]
    assert own[0].n_answers == len(steps)
    assert math.isclose(own[0].price_per_j, math.fsum(step for _, step, _ in steps), abs_tol=1e-9)


def test_a_price_of_another_target_is_not_added_to() -> None:
    """Where the configurations differ each coordinator keeps its own price."""
    own, other = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=20.0, price_per_j=0.1)
    assert merged(own, own, other) == own


def test_a_coordinator_that_starts_takes_over_what_all_have() -> None:
    """The price in a restarted coordinator's file is in the shared one already, and is not added again."""
    own, shared = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=10.0, price_per_j=0.6)
    assert merged(None, own, shared) == shared


def test_a_damaged_price_is_replaced() -> None:
    """A shared price that nobody can have learned is replaced by one's own."""
    own, shared = SavedPrice(target_j=10.0, price_per_j=0.5), SavedPrice(target_j=10.0, price_per_j=math.inf)
    assert merged(own, own, shared) == own
