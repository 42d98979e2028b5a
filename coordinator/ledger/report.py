"""Reports from the ledger: sums over groups, and single requests. Unknown figures are left out of sums and counted.

Their statements are understood by SQLite and by PostgreSQL, so that the tables that coordinators share are summed up by
the same ones as a coordinator's own (`moe2.coordinator.database.books`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import msgspec

from moe2.common.energy import Quality, worst_quality
from moe2.common.errors import JobErrorCode
from moe2.common.standby import Cause, StandingEnergy
from moe2.coordinator.ledger.accounts import DaySum
from moe2.coordinator.ledger.entry import AttemptState

N = TypeVar("N", int, float)
USEFUL = frozenset({AttemptState.ANSWERED.value, AttemptState.BROKEN_OFF.value})
"""The states of attempts whose work reached the client; joules of all others are wasted."""


class By(StrEnum):
    """The properties by which sums can be grouped."""

    KEY = "key"
    EXPERT = "expert"
    MODEL = "model"
    DAY = "day"
    OUTCOME = "outcome"


HOUR_S = 3600
# Columns of the tables, no input.
_COLUMNS = {
    By.KEY: "requests.key_name",
    By.EXPERT: "attempts.expert",
    # One file is one model, whatever its names are; the name stands in where the checksum was not known.
    By.MODEL: "coalesce('file ' || attempts.file_sha256, 'name ' || attempts.model)",
    By.DAY: "requests.day",
    By.OUTCOME: "requests.outcome",
}
_OF_ATTEMPTS = (By.EXPERT, By.MODEL)


class Rows(Protocol):
    """Rows of a statement, and the names of their columns, the first of each description."""

    @property
    def description(self) -> Any: ...

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...


class Source(Protocol):
    """A database with the ledger's tables. Values are marked by question marks."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Rows: ...


@dataclass(frozen=True)
class Span:
    """A span of time: requests that arrived at `since_unix_s` or later and before `until_unix_s`. None: open."""

    since_unix_s: float | None = None
    until_unix_s: float | None = None

    def where(self) -> tuple[str, list[float]]:
        """Returns a condition on the table `requests` in SQL, and the values for it."""
        terms, values = [], []
        if self.since_unix_s is not None:
            terms.append("requests.at_unix_s >= ?")
            values.append(self.since_unix_s)
        if self.until_unix_s is not None:
            terms.append("requests.at_unix_s < ?")
            values.append(self.until_unix_s)
        return " AND ".join(terms) or "TRUE", values


class SumRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The costs of one group of requests.

    Tokens and joules are sums of what is known, None where nothing is. n_unmeasured: requests whose joules are not
    known and left out of `joules`, which is a lower bound then. useful_j: joules of work whose words the client got.
    wasted_j: joules of other work, by its cause. quality: the worst of the figures in `joules`. charged_j: joules
    charged to the keys' days; None where the rows are experts or models. seconds: of the requests in all, or of the
    experts' own work. group: of models, all names that the file had.
    """

    group: str
    n_requests: int
    n_unmeasured: int
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    seconds: float | None
    joules: float | None
    useful_j: float | None
    wasted_j: dict[str, float]
    quality: str
    charged_j: float | None
    file_sha256: str | None = None
    """The model's file, where the rows are models and it is known; two of the same name are two rows."""


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one request, with its experts and its joules by cause."""

    request_id: str
    at_unix_s: float
    key_name: str
    mode: str
    category: str | None
    model: str
    outcome: str
    code: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    ttft_s: float | None
    total_s: float | None
    joules: float | None
    quality: str
    useful_j: float | None
    wasted_j: dict[str, float]
    charged_j: float | None
    experts: tuple[str, ...]
    coordinator: str | None = None
    """Who answered it, of several coordinators that share a database; None where there is one."""


def day_sums(source: Source, day: str) -> tuple[DaySum, ...]:
    """Returns what each key has been charged on a day."""
    rows = source.execute(
        """
        SELECT key_id, max(key_name), coalesce(sum(charged_j), 0.0),
               coalesce(sum(charged_j) FILTER (WHERE joules IS NULL), 0.0), coalesce(sum(charged_tokens), 0), count(*),
               count(*) FILTER (WHERE joules IS NULL), count(*) FILTER (WHERE code = ?)
        FROM requests WHERE day = ? GROUP BY key_id
        """,
        # Of those that ended in another way the ledger does not keep whether they were suspects.
        (JobErrorCode.CRASH_SUSPECTED.value, day),
    )
    return tuple(DaySum(*row) for row in rows)


def sums(connection: sqlite3.Connection, by: By, span: Span) -> tuple[SumRow, ...]:
    """Returns the sums of each group, sorted by its name and read in one transaction, so that they fit each other."""
    connection.execute("BEGIN")
    try:
        return sums_of(connection, by, span)
    finally:
        connection.execute("ROLLBACK")


def sums_of(source: Source, by: By, span: Span) -> tuple[SumRow, ...]:
    """Returns the sums of each group, sorted by its name, within a transaction that the caller has begun."""
    where, values = span.where()
    totals = _dicts(source, (_attempt_sums if by in _OF_ATTEMPTS else _request_sums)(by, where), values)
    causes = _Causes(_dicts(source, _cause_sums(_COLUMNS[by], where), values))
    return tuple(sorted((_sum_row(row, causes) for row in totals), key=_by_name))


def _by_name(row: SumRow) -> tuple[str, str]:
    return row.group, row.file_sha256 or ""


def together(*several: Iterable[SumRow]) -> tuple[SumRow, ...]:
    """Returns the sums of several ledgers as those of one, sorted by group."""
    groups: dict[tuple[str, str], list[SumRow]] = {}
    for rows in several:
        for row in rows:
            # A file may have had other names where the other coordinator saw it.
            groups.setdefault(("", row.file_sha256) if row.file_sha256 else (row.group, ""), []).append(row)
    return tuple(sorted((rows[0] if len(rows) == 1 else _added(rows) for rows in groups.values()), key=_by_name))


def _added(rows: Sequence[SumRow]) -> SumRow:
    causes = {cause for row in rows for cause in row.wasted_j}
    return SumRow(
        group=_names(",".join(row.group for row in rows)) if rows[0].file_sha256 else rows[0].group,
        file_sha256=rows[0].file_sha256,
        n_requests=sum(row.n_requests for row in rows),
        n_unmeasured=sum(row.n_unmeasured for row in rows),
        prompt_tokens=_known_sum(row.prompt_tokens for row in rows),
        cached_tokens=_known_sum(row.cached_tokens for row in rows),
        decoded_tokens=_known_sum(row.decoded_tokens for row in rows),
        seconds=_known_sum(row.seconds for row in rows),
        joules=_known_sum(row.joules for row in rows),
        useful_j=_known_sum(row.useful_j for row in rows),
        wasted_j={cause: sum(row.wasted_j.get(cause, 0.0) for row in rows) for cause in sorted(causes)},
        quality=_worst(",".join(row.quality for row in rows)),
        charged_j=_known_sum(row.charged_j for row in rows),
    )


def _known_sum(figures: Iterable[N | None]) -> N | None:
    """Returns the sum of what is known; None where nothing is."""
    known = [figure for figure in figures if figure is not None]
    return sum(known[1:], known[0]) if known else None


def _names(text: str) -> str:
    """Returns the names in a list with commas, each once and sorted."""
    return ", ".join(sorted({name.strip() for name in text.split(",")}))


def _sum_row(row: dict[str, Any], causes: _Causes) -> SumRow:
    known_j, qualities, key = row.pop("joules"), row.pop("qualities"), row["group"]
    if (names := row.pop("names", None)) is not None:
        row["group"] = _names(names)
    if row["n_unmeasured"] and not known_j:
        # What is known to be 0 never ran, and says nothing of those that ran and were not measured.
        known_j, qualities = None, None
    return SumRow(
        **row,
        joules=known_j,
        useful_j=causes.useful_j(key),
        wasted_j=causes.wasted_j(key),
        quality=_worst(qualities),
    )


def requests(connection: sqlite3.Connection, span: Span, *, most: int | None = None) -> Iterator[RequestRow]:
    """Yields single requests, the oldest first, and of them the newest `most`."""
    where, values = span.where()
    limit = -1 if most is None else most
    # Our own condition and columns, no input.
    newest = f"SELECT rowid FROM requests WHERE {where} ORDER BY at_unix_s DESC LIMIT ?"  # noqa: S608
    chosen = f"SELECT * FROM requests WHERE rowid IN ({newest}) ORDER BY at_unix_s"  # noqa: S608
    of_request = "SELECT outcome AS cause, joules, expert FROM attempts WHERE request_id = ? ORDER BY place"
    for row in _rows(connection, chosen, [*values, limit]):
        yield request_row(row, _dicts(connection, of_request, [row["request_id"]]))


def request_row(row: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> RequestRow:
    """Returns one request. row: of the table `requests`; attempts: in order, with expert, joules, and cause."""
    causes = _Causes([{**attempt, "group": ""} for attempt in attempts])
    return RequestRow(
        **{name: value for name, value in row.items() if name in RequestRow.__struct_fields__},
        useful_j=causes.useful_j(""),
        wasted_j=causes.wasted_j(""),
        experts=tuple(attempt["expert"] for attempt in attempts),
    )


Lengths = tuple[float, str, str, int | None, int | None]
"""When a request came, its category, the model asked for, and tokens of prompt and answer; None where unknown."""


def lengths(source: Source, span: Span) -> Iterator[Lengths]:
    """Yields the lengths of every answered request, the oldest first."""
    where, values = span.where()
    statement = f"""
        SELECT at_unix_s, coalesce(category, ''), model, prompt_tokens, decoded_tokens
        FROM requests WHERE {where} AND outcome = 'completed' ORDER BY at_unix_s
    """  # noqa: S608
    for at_unix_s, category, model, prompt_tokens, answer_tokens in source.execute(statement, values):
        yield float(at_unix_s), str(category), str(model), _known_int(prompt_tokens), _known_int(answer_tokens)


def _known_int(figure: object) -> int | None:
    return None if figure is None else int(str(figure))


class StandingRow(msgspec.Struct, frozen=True, kw_only=True):
    """Joules of one agent's host that belong to no request, by cause; 0 where nothing was booked to a cause."""

    agent: str
    agent_name: str
    idle_j: float = 0.0
    loading_j: float = 0.0
    waking_j: float = 0.0
    other_j: float = 0.0
    quality: str = Quality.UNMEASURED.value


class StandingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Joules of all hosts that belong to no request, and what an answer costs with them.

    joules: of all hosts and causes; None where no host has measured any. answers: completed requests. requests_j: of
    all requests, completed or not, as far as they are known; n_unmeasured: the others. j_per_answer: both together, for
    each answer; None where either is unknown or nothing was answered, a lower bound where requests are unmeasured.
    """

    joules: float | None
    answers: int
    requests_j: float | None
    n_unmeasured: int
    j_per_answer: float | None
    hosts: tuple[StandingRow, ...]


@dataclass(frozen=True)
class Answered:
    """The requests of a span: how many were completed, their known joules, and of how many nobody knows them."""

    answers: int = 0
    joules: float | None = None
    n_unmeasured: int = 0


def standing(source: Source, span: Span) -> StandingReport:
    """Sums up what hosts have used for no request, in whole hours that begin within the span."""
    return standing_report(standing_hosts(source, span), (answered_in(source, span),))


def standing_hosts(source: Source, span: Span) -> tuple[StandingRow, ...]:
    """Returns what each host has used for no request, in whole hours that begin within the span."""
    # Whoever asks for a part of an hour gets all of it: joules are kept by the hour.
    since = None if span.since_unix_s is None else span.since_unix_s - span.since_unix_s % HOUR_S
    bounds = [("hour_unix_s >= ?", since), ("hour_unix_s < ?", span.until_unix_s)]
    terms = [term for term, value in bounds if value is not None]
    values = [value for _, value in bounds if value is not None]
    query = f"""
        SELECT agent, max(agent_name) AS agent_name, cause, sum(joules) AS joules,
               group_concat(DISTINCT quality) AS qualities
        FROM standing WHERE {" AND ".join(terms) or "TRUE"} GROUP BY agent, cause ORDER BY 2, 1
    """  # noqa: S608
    hosts: dict[str, dict[str, Any]] = {}
    qualities: dict[str, list[str]] = {}
    for row in _rows(source, query, values):
        host = hosts.setdefault(row["agent"], {"agent": row["agent"], "agent_name": row["agent_name"]})
        if row["cause"] in set(Cause):
            host[f"{row['cause']}_j"] = row["joules"]
        qualities.setdefault(row["agent"], []).append(row["qualities"])
    return tuple(StandingRow(**host, quality=_worst(",".join(qualities[agent]))) for agent, host in hosts.items())


def answered_in(source: Source, span: Span) -> Answered:
    """Returns what the requests of a span come to."""
    where, values = span.where()
    [row] = _dicts(
        source,
        f"""SELECT count(*) FILTER (WHERE outcome = 'completed') AS answers, sum(joules) AS joules,
                   count(*) FILTER (WHERE joules IS NULL) AS n_unmeasured
            FROM requests WHERE {where}""",  # noqa: S608
        values,
    )
    return Answered(**row)


def standing_report(hosts: tuple[StandingRow, ...], ledgers: Sequence[Answered]) -> StandingReport:
    """Returns what hosts have used for no request, together with the requests of one or several ledgers."""
    joules = sum(row.idle_j + row.loading_j + row.waking_j + row.other_j for row in hosts) if hosts else None
    answers = sum(one.answers for one in ledgers)
    requests_j = _known_sum(one.joules for one in ledgers)
    known = joules is not None and requests_j is not None and answers > 0
    return StandingReport(
        joules=joules,
        answers=answers,
        requests_j=requests_j,
        n_unmeasured=sum(one.n_unmeasured for one in ledgers),
        j_per_answer=((joules or 0.0) + (requests_j or 0.0)) / answers if known else None,
        hosts=hosts,
    )


def last_days(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the day that was written last and the newest one: others, where a clock has jumped."""
    written = connection.execute("SELECT day FROM requests ORDER BY rowid DESC LIMIT 1").fetchall()
    newest = connection.execute("SELECT day FROM requests ORDER BY day DESC LIMIT 1").fetchall()
    return frozenset(day for (day,) in written + newest)


def first_written_unix_s(connection: sqlite3.Connection, first_day: str, last_day: str) -> float | None:
    """Returns the moment of a request of the first of these days that has any; None where none has."""
    statement = "SELECT at_unix_s FROM requests WHERE day BETWEEN ? AND ? ORDER BY day LIMIT 1"
    row = connection.execute(statement, (first_day, last_day)).fetchone()
    return None if row is None else float(row[0])


def booked_counters(connection: sqlite3.Connection) -> dict[str, StandingEnergy]:
    """Returns the agents' counters of joules whose values are in the ledger, by agent."""
    rows = _dicts(connection, "SELECT * FROM standing_counters", [])
    return {row.pop("agent"): StandingEnergy(**row) for row in rows}


class _Causes:
    """The known joules of each group, by their cause."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._known: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["joules"] is not None:
                causes = self._known.setdefault(row["group"], {})
                causes[row["cause"]] = causes.get(row["cause"], 0.0) + row["joules"]

    def useful_j(self, group: str) -> float | None:
        """Joules of work whose words the client got; None where nothing is known."""
        useful = [joules for cause, joules in self._known.get(group, {}).items() if cause in USEFUL]
        return sum(useful) if useful else None

    def wasted_j(self, group: str) -> dict[str, float]:
        """Joules of all other work, by its cause."""
        return {cause: joules for cause, joules in sorted(self._known.get(group, {}).items()) if cause not in USEFUL}


def _request_sums(by: By, where: str) -> str:
    return f"""
        SELECT {_COLUMNS[by]} AS "group", count(*) AS n_requests,
               count(*) FILTER (WHERE joules IS NULL) AS n_unmeasured,
               sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,
               sum(decoded_tokens) AS decoded_tokens, sum(total_s) AS seconds, sum(joules) AS joules,
               group_concat(DISTINCT quality) AS qualities, sum(charged_j) AS charged_j
        FROM requests WHERE {where} GROUP BY 1 ORDER BY 1
    """  # noqa: S608


def _attempt_sums(by: By, where: str) -> str:
    of_models = "group_concat(DISTINCT attempts.model) AS names, max(attempts.file_sha256) AS file_sha256,"
    return f"""
        SELECT {_COLUMNS[by]} AS "group", {of_models if by is By.MODEL else ""}
               count(DISTINCT request_id) AS n_requests,
               count(DISTINCT CASE WHEN attempts.joules IS NULL THEN request_id END) AS n_unmeasured,
               sum(attempts.prompt_tokens) AS prompt_tokens, sum(attempts.cached_tokens) AS cached_tokens,
               sum(attempts.decoded_tokens) AS decoded_tokens, sum(attempts.seconds) AS seconds,
               sum(attempts.joules) AS joules, group_concat(DISTINCT attempts.quality) AS qualities, NULL AS charged_j
        FROM attempts JOIN requests USING (request_id) WHERE {where} GROUP BY 1 ORDER BY 1
    """  # noqa: S608


def _cause_sums(column: str, where: str) -> str:
    return f"""
        SELECT {column} AS "group", attempts.outcome AS cause, sum(attempts.joules) AS joules
        FROM attempts JOIN requests USING (request_id) WHERE {where} GROUP BY 1, 2
    """  # noqa: S608


def _worst(qualities: str | None) -> str:
    known = [Quality(word) for word in (qualities or "").split(",") if word in set(Quality)]
    return worst_quality(quality for quality in known if quality is not Quality.UNMEASURED).value


def _dicts(source: Source, statement: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    return list(_rows(source, statement, values))


def _rows(source: Source, statement: str, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    found = source.execute(statement, values)
    names = [column[0] for column in found.description]
    for row in found:
        yield dict(zip(names, row, strict=True))
