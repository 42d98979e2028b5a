"""The table of docs/clients.md: what works with which client, and the version that it was seen with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.clients.catalog import CHECKS, Client
from tests.clients.trial import Trial

WORKS, NO_USE = "yes", "–"
HEAD = ("Client", "Version", *CHECKS)


def expected(client: Client) -> list[str]:
    """Returns the row of a client with which all works that it has a use for."""
    return [client.name, client.version, *(WORKS if check in client.checks else NO_USE for check in CHECKS)]


def found(client: Client, trial: Trial) -> list[str]:
    """Returns the row of a client as it was seen: what did not work has its error."""
    cells = (NO_USE if check not in client.checks else _cell(trial.results.get(check)) for check in CHECKS)
    return [client.name, trial.version or "not known", *cells]


def _cell(result: str | None) -> str:
    return WORKS if result == "ok" else f"no: {result or 'not tried'}"


def written(rows: Iterable[list[str]]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = (HEAD, ("---",) * len(HEAD), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tried_rows(trials: Mapping[Client, Trial]) -> list[list[str]]:
    """Returns the rows of all clients that could be tried."""
    return [found(client, trial) for client, trial in trials.items() if trial.unavailable is None]
