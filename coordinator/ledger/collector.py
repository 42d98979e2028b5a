"""Prometheus metrics of the keys and of the ledger itself, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from moe2.coordinator.ledger.accounts import Accounts, Statement
from moe2.coordinator.ledger.ledger import Ledger

MOST_KEYS = 100
"""Keys with series of their own, the first by name: each key costs the scraper some."""


class LedgerCollector(Collector):
    """today: the present UTC day."""

    def __init__(self, accounts: Accounts, ledger: Ledger, today: Callable[[], str]) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._today = today

    def collect(self) -> Iterator[Metric]:
        statements = self._accounts.statements(self._today())[:MOST_KEYS]
        yield _gauge(
            "moe2_key_day_energy_joules",
            "Charged to the key today (UTC); requests that nobody could measure count with their reservation, if any.",
            statements,
            lambda statement: statement.spent.known_j,
        )
        yield _gauge(
            "moe2_key_day_energy_left_joules",
            "What the key's daily energy limit leaves; no series without a limit.",
            statements,
            lambda statement: statement.left.energy_j,
        )
        yield _gauge(
            "moe2_key_day_tokens",
            "Charged to the key today (UTC).",
            statements,
            lambda statement: statement.spent.tokens,
        )
        yield _gauge(
            "moe2_key_day_tokens_left",
            "What the key's daily token limit leaves; no series without a limit.",
            statements,
            lambda statement: statement.left.tokens,
        )
        yield _gauge(
            "moe2_key_day_unmeasured_requests",
            "Requests of the key today (UTC) whose joules nobody knows.",
            statements,
            lambda statement: statement.spent.n_unmeasured,
        )
        yield _gauge(
            "moe2_key_day_crash_suspected_requests",
            "Requests of the key today (UTC) that went unanswered after an engine died or hung with them in its batch.",
            statements,
            lambda statement: statement.spent.n_crash_suspected,
        )
        yield GaugeMetricFamily(
            "moe2_ledger_waiting_entries", "Entries that are not written yet.", value=self._ledger.n_waiting
        )
        yield CounterMetricFamily(
            "moe2_ledger_lost_entries", "Entries that could not be kept.", value=self._ledger.n_dropped
        )


def _gauge(
    name: str, documentation: str, statements: tuple[Statement, ...], value: Callable[[Statement], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("key",))
    for statement in statements:
        figure = value(statement)
        if figure is not None:
            family.add_metric((statement.spent.key_name,), figure)
    return family
