"""The books of a storm: what clients, links and the ledger say of the same requests, compared. PURE.

Nothing is excused but for a cause that the storm itself has set: a coordinator that was killed or stopped, a link that
was broken, an agent that was too slow to confirm the end of a job in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from benchmarks.storm_clients import GRACE_S, Ended
from moe2.coordinator.serving.progress import WIND_DOWN_S

SETTLES_S = 2.0
"""A message may take so long from the proxy into the coordinator's books; a link that ends sooner may have lost it."""
WIND_DOWN_MARGIN_S = 3.0
"""How much sooner than the coordinator's `WIND_DOWN_S` the end of a stopped job must come to be counted on."""


@dataclass(frozen=True)
class Span:
    """A stretch of the monotonic clock in which the coordinator was away: dead, or stopped; or the clients were."""

    since_s: float
    until_s: float
    deadly: bool = True


@dataclass
class LinkRecord:
    """What went over one connection of an agent, by the monotonic clock.

    ends: when a job's end was sent on, and its joules. broken_s: when the storm first harmed the connection.
    """

    agent: str
    submitted_s: dict[str, float] = field(default_factory=dict)
    cancelled_s: dict[str, float] = field(default_factory=dict)
    ends: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    broken_s: float | None = None
    closed_s: float | None = None


@dataclass(frozen=True)
class LedgerBooks:
    """The ledger's tables as mappings of columns. requests: by their ids. attempts: by request id and place."""

    requests: Mapping[str, Mapping[str, Any]]
    attempts: Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass
class Findings:
    """How many of each, and a line for each.

    n_told: ends of jobs with known joules that went over a link. n_compared: those that must be in the ledger, or are.
    """

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    n_told: int = 0
    n_compared: int = 0

    def note(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.lines.append(f"{kind}: {what}")


def audit(ended: Sequence[Ended], links: Sequence[LinkRecord], ledger: LedgerBooks, away: Sequence[Span]) -> Findings:
    """Compare the books."""
    found = Findings()
    for one in ended:
        _check_end(one, away, found)
        _check_text(one, found)
        _check_receipt(one, ledger, found)
    _check_strangers(ended, ledger, found)
    _check_sums(ledger, found)
    deaths_s = [span.since_s for span in away if span.deadly]
    for link in links:
        _check_joules(link, ledger, deaths_s, found)
    return found


def _check_end(one: Ended, away: Sequence[Span], found: Findings) -> None:
    until_s = one.began_s + one.seconds
    paused_s = sum(max(0.0, min(until_s, span.until_s) - max(one.began_s, span.since_s)) for span in away)
    if one.gave_up or (not one.left and one.seconds > one.limit_s + GRACE_S + paused_s):
        found.note("hung", f"{one.kind} {one.request_id} ended after {one.seconds:.1f} s, paused {paused_s:.1f} s")
    died = any(span.deadly and span.since_s <= until_s and one.began_s <= span.until_s for span in away)
    is_silent = one.broken or (one.status is not None and not one.marks)
    # A body that nobody wants is not read to its end: the sender may see a reset in place of the refusal.
    if is_silent and not one.left and not died and not one.gave_up and not one.kind.startswith("bomb"):
        found.note("hung", f"{one.kind} {one.request_id} was broken off without an end, though nobody died")
    # What only a liar could answer fails with its lie; a defect of the coordinator's would show in its log.
    if one.kind != "liar" and (one.status == 500 or (one.error or {}).get("code") == "internal"):
        found.note("internal_errors", f"{one.kind} {one.request_id}: {one.status} {one.error}")


def _check_text(one: Ended, found: Findings) -> None:
    if one.marks > 1:
        found.note("doubled", f"{one.kind} {one.request_id} has {one.marks} ends")
    if one.expected is None:
        if one.text:
            found.note("wrong", f"{one.kind} {one.request_id} was answered {one.text!r}")
        return
    if len(one.text) > len(one.expected) and one.text.startswith(one.expected):
        found.note("doubled", f"{one.kind} {one.request_id} says {one.text!r} for {one.expected!r}")
    elif (one.is_answered and one.text != one.expected) or not one.expected.startswith(one.text):
        found.note("wrong", f"{one.kind} {one.request_id} says {one.text!r} for {one.expected!r}")


def _check_receipt(one: Ended, ledger: LedgerBooks, found: Findings) -> None:
    """Whoever has a whole answer, or an error with a receipt, is in the ledger with the same figures."""
    if one.receipt is None:
        if one.is_answered:
            found.note("ledger_mismatches", f"{one.kind} {one.request_id} was answered without a receipt")
        return
    request_id = one.receipt["request_id"]
    row = ledger.requests.get(request_id)
    if row is None:
        found.note("ledger_mismatches", f"{one.kind} {request_id} is not in the ledger")
        return
    if one.is_answered and row["outcome"] != "completed":
        found.note("ledger_mismatches", f"{one.kind} {request_id} was answered, and is {row['outcome']} in the ledger")
    tokens = one.receipt["tokens"]
    said = {
        "joules": one.receipt["energy"]["joules"],
        "prompt_tokens": tokens["prompt"],
        "decoded_tokens": tokens["decoded"],
    }
    for name, value in said.items():
        # What was not known yet when the client was answered may have become known since.
        if value is not None and not _same(value, row[name]):
            found.note("ledger_mismatches", f"{one.kind} {request_id}: {name} is {value}, in the ledger {row[name]}")


def _check_strangers(ended: Sequence[Ended], ledger: LedgerBooks, found: Findings) -> None:
    """No two clients share an entry, and no answer is in the ledger that no client can have had."""
    receipts = Counter(one.receipt["request_id"] for one in ended if one.receipt is not None)
    for request_id, n_receipts in receipts.items():
        if n_receipts > 1:
            found.note("ledger_mismatches", f"{n_receipts} clients have a receipt of {request_id}")
    completed = {request_id for request_id, row in ledger.requests.items() if row["outcome"] == "completed"}
    n_unheard = sum(one.receipt is None and (one.left or one.broken or one.gave_up) for one in ended)
    n_strangers = len(completed - receipts.keys())
    if n_strangers > n_unheard:
        found.note("ledger_mismatches", f"{n_strangers} answers have no client, {n_unheard} clients no answer")


def _check_sums(ledger: LedgerBooks, found: Findings) -> None:
    """A request's joules are those of its attempts, and unknown where one of these is."""
    parts: dict[str, list[float | None]] = {}
    for (request_id, _), attempt in ledger.attempts.items():
        parts.setdefault(request_id, []).append(attempt["joules"])
    for request_id, joules in parts.items():
        row = ledger.requests.get(request_id)
        known = [one for one in joules if one is not None]
        whole = sum(known) if len(known) == len(joules) else None
        if row is None or not _same(whole, row["joules"]):
            said = None if row is None else row["joules"]
            found.note("ledger_mismatches", f"{request_id}: its attempts come to {whole} J, the request to {said}")


def _check_joules(link: LinkRecord, ledger: LedgerBooks, deaths_s: Iterable[float], found: Findings) -> None:
    """Joules that an agent has told over a sound link are in the ledger."""
    deaths_s = tuple(deaths_s)
    for job_id, (at_s, joules) in link.ends.items():
        if joules is None:
            continue
        found.n_told += 1
        if _is_excused(link, job_id, at_s):
            continue
        request_id, _, place = job_id.rpartition(".")
        attempt = ledger.attempts.get((request_id, int(place)))
        if attempt is not None and attempt["joules"] is not None:
            found.n_compared += 1
            if not _same(joules, attempt["joules"]):
                found.note("ledger_mismatches", f"{job_id}: told {joules} J, in the ledger {attempt['joules']} J")
            continue
        # A request that still ran when the coordinator was killed has lost what was known of it.
        if any(at_s - SETTLES_S < died_s < at_s + WIND_DOWN_S + GRACE_S for died_s in deaths_s):
            continue
        found.n_compared += 1
        outcome = None if attempt is None else attempt["outcome"]
        found.note("joules_missing", f"{job_id} of {link.agent}: {joules} J were told, the attempt is {outcome}")


def _is_excused(link: LinkRecord, job_id: str, at_s: float) -> bool:
    if link.broken_s is not None and link.broken_s <= at_s:
        return True
    if link.closed_s is not None and link.closed_s < at_s + SETTLES_S:
        return True
    cancelled_s = link.cancelled_s.get(job_id)
    return cancelled_s is not None and at_s - cancelled_s > WIND_DOWN_S - WIND_DOWN_MARGIN_S


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
