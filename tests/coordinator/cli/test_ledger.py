"""The command `moe2-coordinator ledger`: its output and its exports."""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from moe2.common.energy import Quality
from moe2.common.errors import Moe2Error
from moe2.common.standby import StandingEnergy
from moe2.coordinator.cli import ledger as cli_ledger
from moe2.coordinator.ledger.report import By, Span, requests, standing, sums
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.ledger.standing import StandingBook
from moe2.coordinator.ledger.store import Ledger
from tests.coordinator.ledger.entries import attempt_entry, request_entry

NOON_S = 1_795_521_600.0  # 2026-11-24T12:00:00Z


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A ledger with two keys: a measured request with a failed attempt, and a day later one that nobody measured."""
    path = tmp_path / "ledger.sqlite"
    failed = attempt_entry("req-1", outcome="failed", joules=1.5, expert="id-2/big", model="big")
    answered = attempt_entry("req-1", place=1, joules=3.5)
    unknown = attempt_entry("req-2", joules=None, quality="unmeasured", outcome="lost")

    async def fill() -> None:
        ledger = Ledger(path, retention_days=36_500)
        async with ledger.running():
            ledger.record(request_entry("req-1", failed, answered, at_unix_s=NOON_S))
            fields = {"joules": None, "quality": "unmeasured", "charged_j": None, "outcome": "failed"}
            later = {"at_unix_s": NOON_S + 86_400, "key_name": "=other", "key_id": "k2", "code": "agent_lost"}
            await ledger.record(request_entry("req-2", unknown, **fields, **later))

    asyncio.run(fill())
    return path


def command(database: Path, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli_ledger.add_arguments(parser)
    return cli_ledger.run(parser.parse_args([*argv, "--database", str(database)]))


def test_sums_in_a_pipe_are_plain_lines(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe each key has one line, and unknown joules are unmeasured, not 0."""
    assert command(database) == 0
    other, app = capsys.readouterr().out.splitlines()
    assert other.startswith('sum group="=other" n_requests=1 n_unmeasured=1')
    assert "joules=unmeasured" in other
    assert app.startswith("sum group=app n_requests=1 n_unmeasured=0")
    assert "joules=5.00 useful_j=3.50 wasted_failed_j=1.50" in app


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("key", ["=other", "app"]),
        ("expert", ["id-1/tiny", "id-2/big"]),
        ("model", ["big", "tiny"]),
        ("day", ["1970-01-01"]),
        ("outcome", ["completed", "failed"]),
    ],
)
def test_sums_by(database: Path, capsys: pytest.CaptureFixture[str], by: str, groups: list[str]) -> None:
    """Requests can be summed by key, expert, model, day and outcome."""
    command(database, "--by", by, "--json")
    assert [row["group"] for row in json.loads(capsys.readouterr().out)] == groups


def test_a_day_is_a_span(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--day takes the requests from midnight to midnight in UTC."""
    command(database, "--requests", "--json", "--day", "2026-11-24")
    assert [row["request_id"] for row in json.loads(capsys.readouterr().out)] == ["req-1"]


def test_since_and_until_are_a_span(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--since and --until take days or moments."""
    command(database, "--requests", "--json", "--since", "2026-11-24T12:00:01", "--until", "2026-11-26")
    assert [row["request_id"] for row in json.loads(capsys.readouterr().out)] == ["req-2"]


def test_a_day_and_a_span_contradict_each_other(database: Path) -> None:
    """--day together with --since is refused with a sentence."""
    with pytest.raises(Moe2Error, match="Leave out --since"):
        command(database, "--day", "today", "--since", "2026-11-24")


def test_a_csv_has_a_column_for_each_cause(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The CSV has a column for each cause, unknown figures are empty, and no cell is a formula to a spreadsheet."""
    command(database, "--requests", "--csv", "-")
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["joules"], first["wasted_failed_j"], first["experts"]) == ("5.0", "1.5", "id-2/big id-1/tiny")
    assert (second["joules"], second["wasted_failed_j"], second["key_name"]) == ("", "", "'=other")


def test_a_csv_goes_into_a_file(database: Path, tmp_path: Path) -> None:
    """A CSV file begins with its header."""
    command(database, "--csv", str(tmp_path / "sums.csv"))
    header, *rows = (tmp_path / "sums.csv").read_text().splitlines()
    assert header.startswith("group,n_requests,n_unmeasured")
    assert len(rows) == 2


def test_a_missing_ledger_is_told(tmp_path: Path) -> None:
    """A missing ledger is an error with a remedy."""
    with pytest.raises(Moe2Error, match=r"There is no ledger at .* --database"):
        command(tmp_path / "nothing.sqlite")


def test_the_picture_tells_what_is_left_out(database: Path) -> None:
    """Tables of sums and of requests say how many requests have unknown joules."""
    console = Console(width=140, record=True, file=io.StringIO())
    with reading(database) as connection:
        console.print(cli_ledger.picture(sums(connection, By.OUTCOME, Span()), "outcome"))
        console.print(cli_ledger.picture(tuple(requests(connection, Span())), ""))
    text = console.export_text()
    assert "1.50 failed" in text
    assert "1 unmeasured" in text
    assert "2026-11-24 12:00:00" in text
    assert "agent_lost" in text


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", ""])
def test_a_senseless_day_is_refused(text: str) -> None:
    """A day that makes no sense is refused by name."""
    with pytest.raises(argparse.ArgumentTypeError, match="neither 'today' nor"):
        cli_ledger.moment(text)


# --- Joules of no request ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_standing(database: Path) -> Path:
    """The same ledger with a host that waited and loaded a model."""

    async def fill() -> None:
        ledger, book = Ledger(database, retention_days=36_500), StandingBook(NOON_S)
        counted = StandingEnergy(epoch="e", idle_j=80.0, loading_j=15.0, quality=Quality.SIMULATED)
        async with ledger.running():
            entry = book.reported("id-1", "=orin", counted, NOON_S)
            assert entry is not None
            await ledger.record(entry)

    asyncio.run(fill())
    return database


def test_joules_of_no_request_are_a_line_for_each_host_and_one_for_all(
    with_standing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By cause, and with what each answer costs with them."""
    assert command(with_standing, "--standing") == 0
    host, everything = capsys.readouterr().out.splitlines()
    assert host.startswith('standing host="=orin" agent=id-1 idle_j=80.0 loading_j=15.0 waking_j=0')
    assert host.endswith("quality=simulated")
    assert everything == "all standing_j=95.0 requests_j=5.00 answers=1 unmeasured=1 j_per_answer=100"


def test_joules_of_no_request_as_json_have_null_where_nothing_is_known(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No host has measured any."""
    assert command(database, "--standing", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["joules"], found["j_per_answer"], found["hosts"]) == (None, None, [])


def test_the_picture_of_joules_of_no_request_says_that_they_are_simulated(with_standing: Path) -> None:
    """And that the figure for an answer is a lower bound, where requests are unmeasured."""
    with reading(with_standing) as connection:
        drawn = cli_ledger.standing_picture(standing(connection, Span()))
    console = Console(width=160, file=io.StringIO())
    console.print(drawn)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "(simulated)" in text
    assert "1 answers: 5.00 J of requests and 95.0 J of no request are at least 100 J each." in text


def test_joules_of_no_request_are_no_csv(database: Path) -> None:
    """What cannot be is said with what can."""
    with pytest.raises(Moe2Error, match="--json"):
        command(database, "--standing", "--csv", "-")
