"""The ledger's reports: sums, spans and lengths of what was recorded, read from a real file."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.coordinator.ledger import schema
from moe2.coordinator.ledger import writer as writer_module
from moe2.coordinator.ledger.entry import ATTEMPT_COLUMNS
from moe2.coordinator.ledger.report import By, Span, lengths, requests, sums
from moe2.coordinator.ledger.schema import reading
from tests.coordinator.ledger.entries import attempt_entry, request_entry, running

# --- Sums -------------------------------------------------------------------------------------------------------------


async def test_unknown_joules_are_left_out_and_counted(tmp_path: Path) -> None:
    """A sum tells how many requests it leaves out, and is None where nothing is known."""
    path = tmp_path / "ledger.sqlite"
    unknown = attempt_entry("req-2", joules=None, quality="unmeasured")
    lost = attempt_entry("req-3", joules=None, quality="unmeasured", outcome="lost")
    async with running(path) as ledger:
        ledger.record(request_entry("req-1"))
        ledger.record(request_entry("req-2", unknown, joules=None, quality="unmeasured", charged_j=None))
        nobody = {"joules": None, "quality": "unmeasured", "charged_j": None, "key_name": "other", "key_id": "k2"}
        await ledger.record(request_entry("req-3", lost, **nobody))
    with reading(path) as connection:
        app, other = sums(connection, By.KEY, Span())
    assert (app.group, app.n_requests, app.n_unmeasured, app.joules) == ("app", 2, 1, 5.0)
    assert (other.group, other.joules, other.useful_j, other.quality) == ("other", None, None, "unmeasured")


async def test_refusals_that_cost_nothing_do_not_make_a_sum_of_unmeasured_answers(tmp_path: Path) -> None:
    """The exact 0 J of refusals do not make 0 J of a sum of unmeasured answers."""
    path = tmp_path / "ledger.sqlite"
    unknown = attempt_entry("req-2", joules=None, quality="unmeasured")
    async with running(path) as ledger:
        ledger.record(request_entry("req-1", joules=0.0, quality="exact", outcome="failed"))
        await ledger.record(request_entry("req-2", unknown, joules=None, quality="unmeasured"))
    with reading(path) as connection:
        [row] = sums(connection, By.KEY, Span())
    assert (row.n_requests, row.n_unmeasured, row.joules, row.quality) == (2, 1, None, "unmeasured")


async def test_joules_are_split_by_cause(tmp_path: Path) -> None:
    """Joules of work that the client got are useful, all others wasted under their cause, whatever the grouping."""
    path = tmp_path / "ledger.sqlite"
    attempts = (
        attempt_entry(outcome="failed", joules=1.0, quality="simulated", expert="id-2/big", model="big"),
        attempt_entry(place=1, outcome="outvoted", joules=2.0),
        attempt_entry(place=2, outcome="broken_off", joules=1.5),
        attempt_entry(place=3, joules=2.5),
    )
    async with running(path) as ledger:
        await ledger.record(request_entry("req-1", *attempts, joules=7.0, quality="simulated"))
    with reading(path) as connection:
        [day] = sums(connection, By.DAY, Span())
        tiny, big = sums(connection, By.EXPERT, Span())
        [single] = requests(connection, Span())
    assert (single.useful_j, single.wasted_j) == (4.0, {"failed": 1.0, "outvoted": 2.0})
    assert (day.useful_j, day.wasted_j, day.quality) == (4.0, {"failed": 1.0, "outvoted": 2.0}, "simulated")
    assert (tiny.group, tiny.n_requests, tiny.joules, tiny.wasted_j) == ("id-1/tiny", 1, 6.0, {"outvoted": 2.0})
    assert (big.useful_j, big.wasted_j) == (None, {"failed": 1.0})


async def test_a_model_is_its_file_whatever_its_name(tmp_path: Path) -> None:
    """One file under two names is one model, two files under one name are two, and what is not known is a third."""
    path = tmp_path / "ledger.sqlite"
    made = (("new", "aa"), ("old", "aa"), ("new", "bb"), ("new", None), ("aa", None))
    async with running(path) as ledger:
        for number, (name, sha256) in enumerate(made):
            worked = attempt_entry(f"req-{number}", model=name, file_sha256=sha256, joules=2.0**number)
            recorded = ledger.record(request_entry(f"req-{number}", worked))
        await recorded
    with reading(path) as connection:
        rows = sums(connection, By.MODEL, Span())
    told = [(row.group, row.file_sha256, row.n_requests, row.joules, row.useful_j) for row in rows]
    assert told == [
        ("aa", None, 1, 16.0, 16.0),
        ("new", None, 1, 8.0, 8.0),
        ("new", "bb", 1, 4.0, 4.0),
        ("new, old", "aa", 2, 3.0, 3.0),
    ]


async def test_a_ledger_of_before_files_were_entered_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that know no file stay, and are summed up by the model's name beside those that know one."""
    path = tmp_path / "ledger.sqlite"
    columns = ATTEMPT_COLUMNS[:-1]
    with monkeypatch.context() as before:
        before.setattr(schema, "VERSION", 2)
        before.setattr(writer_module, "ATTEMPT_COLUMNS", columns)
        async with running(path) as ledger:
            await ledger.record(request_entry("req-1"))
    async with running(path) as ledger:
        await ledger.record(request_entry("req-2", attempt_entry("req-2", file_sha256="aa")))
    with reading(path) as connection:
        rows = sums(connection, By.MODEL, Span())
    assert [(row.group, row.file_sha256, row.n_requests) for row in rows] == [("tiny", None, 1), ("tiny", "aa", 1)]


async def test_a_span_takes_its_beginning_and_leaves_its_end(tmp_path: Path) -> None:
    """Two spans side by side hold each request once."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        for number in range(4):
            await ledger.record(request_entry(f"req-{number}", at_unix_s=float(number)))
    with reading(path) as connection:
        assert [row.request_id for row in requests(connection, Span(1.0, 3.0))] == ["req-1", "req-2"]
        assert [row.request_id for row in requests(connection, Span(), most=1)] == ["req-3"]


async def test_the_lengths_of_answered_requests_come_in_their_order(tmp_path: Path) -> None:
    """What was not answered has none, what nobody counted is None, and a span holds its own."""
    path = tmp_path / "ledger.sqlite"
    async with running(path) as ledger:
        await ledger.record(request_entry("late", at_unix_s=20.0, category="code", prompt_tokens=3, decoded_tokens=4))
        await ledger.record(request_entry("early", at_unix_s=10.0, category=None, model="m"))
        await ledger.record(request_entry("uncounted", at_unix_s=15.0, prompt_tokens=None, decoded_tokens=None))
        await ledger.record(request_entry("failed", at_unix_s=12.0, outcome="failed"))
    with reading(path) as connection:
        found = list(lengths(connection, Span()))
        assert list(lengths(connection, Span(since_unix_s=11.0, until_unix_s=20.0))) == [found[1]]
    assert found == [(10.0, "", "m", 7, 10), (15.0, "default", "moe2", None, None), (20.0, "code", "moe2", 3, 4)]
