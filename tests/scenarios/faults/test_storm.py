"""A storm in short, and that its books notice what they are there for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.storm_books import LedgerBooks, LinkRecord, Span, audit
from benchmarks.storm_clients import Ended

JOB = "req-1.0"


def answered(**fields: Any) -> Ended:
    """A request that was answered as it should be, but for `fields`."""
    receipt = {"request_id": "req-1", "energy": {"joules": 2.0}, "tokens": {"prompt": 1, "decoded": 2}}
    whole: dict[str, Any] = {
        "expected": "a a ",
        "text": "a a ",
        "seconds": 1.0,
        "status": 200,
        "request_id": "req-1",
        "marks": 1,
        "receipt": receipt,
        **fields,
    }
    return Ended("plain", 100.0, 20.0, **whole)


def ledger(joules: float | None = 2.0, outcome: str = "completed") -> LedgerBooks:
    request = {"joules": joules, "prompt_tokens": 1, "decoded_tokens": 2, "outcome": outcome}
    return LedgerBooks({"req-1": request}, {("req-1", 0): {"joules": joules, "outcome": "answered"}})


def link(**fields: Any) -> LinkRecord:
    """A link over which the job's joules were told at 101 s."""
    return LinkRecord("one", submitted_s={JOB: 100.0}, ends={JOB: (101.0, 2.0)}, **fields)


def found(ended: Ended, *links: LinkRecord, books: LedgerBooks | None = None, away: tuple[Span, ...] = ()) -> set[str]:
    return set(audit([ended], links, ledger() if books is None else books, away).counts)


def test_books_that_agree() -> None:
    """Client, link and ledger say the same: nothing is found."""
    assert found(answered(), link()) == set()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"text": "a b "}, "wrong"),
        ({"text": "a "}, "wrong"),
        ({"expected": None}, "wrong"),
        ({"text": "a a a a "}, "doubled"),
        ({"marks": 2}, "doubled"),
        ({"seconds": 25.5}, "hung"),
        ({"gave_up": True}, "hung"),
        ({"broken": True}, "hung"),
        ({"marks": 0}, "hung"),
        ({"status": 500}, "internal_errors"),
        ({"receipt": None}, "ledger_mismatches"),
    ],
)
def test_what_a_client_may_not_see(fields: dict[str, Any], kind: str) -> None:
    """Each of these is counted under its own name."""
    assert kind in found(answered(**fields))


def test_an_entry_with_other_figures() -> None:
    """A receipt and its entry must have the same joules; an entry must be there, and say that it was answered."""
    for books in (ledger(3.0), ledger(None), ledger(outcome="failed"), LedgerBooks({}, {})):
        assert found(answered(), books=books) == {"ledger_mismatches"}


def test_joules_that_were_told_and_are_nowhere() -> None:
    """Over a sound link they are missed; a link that was broken or ended at once may have lost them."""
    ended = answered(receipt=None, error={"code": "agent_lost"})
    books = ledger(None, "failed")
    assert found(ended, link(), books=books) == {"joules_missing"}
    for excuse in ({"broken_s": 100.5}, {"closed_s": 101.5}, {"cancelled_s": {JOB: 90.0}}):
        assert found(ended, link(**excuse), books=books) == set()
    assert found(ended, link(), books=books, away=(Span(102.0, 103.0),)) == set()


def test_time_in_which_the_coordinator_was_stopped_is_not_its_own() -> None:
    """Nor is a connection that ended with it a request without an end."""
    assert found(answered(seconds=26.0), away=(Span(101.0, 103.0, deadly=False),)) == set()
    assert found(answered(seconds=26.0), away=(Span(99.0, 100.5, deadly=False),)) == {"hung"}
    assert found(answered(broken=True, marks=0), away=(Span(100.5, 102.0),)) == set()


@pytest.mark.slow
def test_a_short_storm() -> None:
    """After half a minute of it every request has ended, was answered rightly and is accounted; nothing leaks."""
    argv = (sys.executable, "-m", "benchmarks.storm", "--minutes=0.5", "--seed=3")
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=220, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures.pop("requests") >= figures.pop("answered") > 0
    assert figures == dict.fromkeys(figures, 0)
