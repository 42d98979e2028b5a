"""Prometheus metrics of the fleet, the API keys and the ledger, read from the present state at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.status import AgentRow, AverageRow, CoordinatorStatus, PairStatus, ProvisioningStatus
from moe2.coordinator.ledger.accounts import Accounts, Statement
from moe2.coordinator.ledger.store import Ledger

AGENT = ("agent", "agent_id")
EXPERT = (*AGENT, "model")
MAX_KEYS = 100
"""The number of keys with series of their own, the first by name: each key costs the scraper some."""


class FleetCollector(Collector):
    """The collector of the fleet's gauges, all from one status snapshot. Unknown figures have no sample.

    stale_s: an agent whose last report is older is counted as stale.
    """

    def __init__(self, status: Callable[[], CoordinatorStatus], *, stale_s: float) -> None:
        self._status = status
        self.stale_s = stale_s

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of the coordinator, its agents and their experts."""
        status = self._status()
        yield InfoMetricFamily("moe2_build", "This build.", value={"version": status.version})
        yield GaugeMetricFamily("moe2_requests_active", "Requests in progress.", value=status.requests_active)
        yield GaugeMetricFamily("moe2_draining", "1 while shutting down.", value=status.draining)
        yield from _dispatch(status)
        yield from self._agents(status.agents)
        yield from _experts(status.agents)
        yield _power(status.agents)
        yield from _standing(status.agents)
        yield from _models(status.agents)
        yield from _averages(status.averages)
        if status.provisioning is not None:
            yield from _provisioning(status.provisioning)
        if status.pair is not None:
            yield from _pair(status.pair)
        yield _warnings(status)

    def _agents(self, rows: tuple[AgentRow, ...]) -> Iterator[Metric]:
        states = Counter(self._state(row) for row in rows)
        agents = GaugeMetricFamily("moe2_fleet_agents", "Agents by the state of their link.", labels=["state"])
        for state in ("connected", "stale", "asleep", "disconnected"):
            agents.add_metric([state], states[state])
        connected = GaugeMetricFamily("moe2_fleet_agent_connected", "1 if the agent's link is up.", labels=AGENT)
        rtt = GaugeMetricFamily(
            "moe2_fleet_agent_rtt_seconds", "Round trip of the link's last heartbeat.", labels=AGENT
        )
        age = GaugeMetricFamily("moe2_fleet_agent_report_age_seconds", "Age of the last report.", labels=AGENT)
        for row in rows:
            labels = [row.agent_name, row.agent_id]
            connected.add_metric(labels, row.connected)
            if row.rtt_s is not None:
                rtt.add_metric(labels, row.rtt_s)
            if row.report_age_s is not None:
                age.add_metric(labels, row.report_age_s)
        yield from (agents, connected, rtt, age)

    def _state(self, row: AgentRow) -> str:
        if row.asleep:
            return "asleep"
        if not row.connected:
            return "disconnected"
        return "connected" if row.report_age_s is not None and row.report_age_s <= self.stale_s else "stale"


def _provisioning(told: ProvisioningStatus) -> Iterator[Metric]:
    """Yields what the slow level wants and would save; nothing of what it has not decided yet."""
    figures = {
        "standing_watts": ("Watts of the fleet that waits as the slow level wants it.", told.standing_w),
        "price_per_joule": ("Score that a joule of waiting has to bring.", told.price_per_j),
        "saved_joules_today": ("Joules that mode act would have saved today.", told.saved_j),
        "solve_seconds": ("Seconds that the latest decision took.", told.solve_s),
    }
    for name, (text, figure) in figures.items():
        if figure is not None:
            yield GaugeMetricFamily(f"moe2_provisioning_{name}", text, value=figure)


def _pair(told: PairStatus) -> Iterator[Metric]:
    """Yields how the coordinator stands with the database that it shares with others."""
    figures = {
        "coordinator_preferred": ("1 if a balancer should prefer this coordinator to the others.", told.preferred),
        "coordinators_seen": (
            "Coordinators that share the database and were seen of late, this one too.",
            1 + len(told.others),
        ),
        "database_reached": ("1 if the shared database answers.", told.reached),
        "database_unshipped_entries": ("Entries of the ledger that are not in the shared database.", told.unshipped),
    }
    for name, (text, figure) in figures.items():
        yield GaugeMetricFamily(f"moe2_{name}", text, value=figure)


def _dispatch(status: CoordinatorStatus) -> Iterator[Metric]:
    dispatch, names = status.dispatch, {row.agent_id: row.agent_name for row in status.agents}
    yield GaugeMetricFamily(
        "moe2_requests_waiting", "Requests that wait for an expert with room.", value=dispatch.waiting
    )
    yield CounterMetricFamily(
        "moe2_queue_refusals", "Requests for which the queue had no place.", value=dispatch.queue_refused
    )
    yield CounterMetricFamily(
        "moe2_internal_errors",
        "Requests that ended because the coordinator could not handle what happened to them; its log says why.",
        value=dispatch.internal_errors,
    )
    hedges = CounterMetricFamily(
        "moe2_hedges", "Requests that got a second expert because the first was late.", labels=["result"]
    )
    hedges.add_metric(["won"], dispatch.hedges_won)
    hedges.add_metric(["lost"], dispatch.hedges_lost)
    yield hedges
    yield CounterMetricFamily("moe2_resumes", "Answers that another expert went on with.", value=dispatch.resumed)
    breakers = GaugeMetricFamily(
        "moe2_breaker_state", "1 for the state that the expert's breaker is in.", labels=[*EXPERT, "state"]
    )
    for breaker in dispatch.breakers:
        agent_id, _, model = breaker.expert.partition("/")
        if agent_id in names:
            for state in ("closed", "half_open", "open"):
                breakers.add_metric([names[agent_id], agent_id, model, state], breaker.state == state)
    yield breakers


def _experts(rows: tuple[AgentRow, ...]) -> Iterator[Metric]:
    """Yields the metrics of connected agents' experts; what lost agents last reported is no longer known to be true."""
    experts = [(row, expert) for row in rows if row.connected for expert in row.experts]
    yield _gauge(experts, "ready", "1 if the expert can take requests.", lambda e: e.state is ExpertState.READY)
    yield _gauge(experts, "slots", "Requests that the expert decodes at once at most.", lambda e: e.slots)
    yield _gauge(experts, "slots_active", "Requests that hold a slot.", lambda e: e.active)
    yield _gauge(experts, "queue_depth", "Requests that wait for a slot.", lambda e: e.queued)
    yield _gauge(
        experts,
        "decode_tokens_per_second",
        "Measured decoding speed of one request.",
        lambda e: e.performance.decode_tokens_per_s,
    )
    yield _gauge(
        experts,
        "prefill_tokens_per_second",
        "Measured prefill speed of one request.",
        lambda e: e.performance.prefill_tokens_per_s,
    )
    restarts = CounterMetricFamily("moe2_fleet_expert_restarts", "Times the expert's engine died.", labels=EXPERT)
    for row, expert in experts:
        restarts.add_metric([row.agent_name, row.agent_id, expert.model], expert.restarts)
    yield restarts


def _gauge(
    experts: list[tuple[AgentRow, ExpertReport]],
    name: str,
    documentation: str,
    value_of: Callable[[ExpertReport], float | None],
) -> Metric:
    family = GaugeMetricFamily(f"moe2_fleet_expert_{name}", documentation, labels=EXPERT)
    for row, expert in experts:
        value = value_of(expert)
        if value is not None:
            family.add_metric([row.agent_name, row.agent_id, expert.model], value)
    return family


def _power(rows: tuple[AgentRow, ...]) -> Metric:
    power = GaugeMetricFamily(
        "moe2_fleet_power_watts", "Present power by sensor; sensor `profile:` is simulated.", labels=[*AGENT, "sensor"]
    )
    for row in rows:
        for sensor in row.sensors if row.connected else ():
            if sensor.power_w is not None:
                power.add_metric([row.agent_name, row.agent_id, sensor.name], sensor.power_w)
    return power


def _models(rows: tuple[AgentRow, ...]) -> Iterator[Metric]:
    """Each host's folder of models: what it holds, what is coming, what is free."""
    disk = GaugeMetricFamily("moe2_fleet_models_disk_free_bytes", "Free on the disk of the models.", labels=AGENT)
    memory = GaugeMetricFamily("moe2_fleet_memory_free_bytes", "Memory to be had without swapping.", labels=AGENT)
    held = GaugeMetricFamily("moe2_fleet_models_bytes", "Size of the models in the host's folder.", labels=AGENT)
    files = GaugeMetricFamily("moe2_fleet_models", "Models in the host's folder.", labels=AGENT)
    missing = GaugeMetricFamily(
        "moe2_fleet_models_fetching_bytes", "What is still to come of models, as far as it is known.", labels=AGENT
    )
    for row in rows:
        store, labels = row.models, [row.agent_name, row.agent_id]
        if store is None or not row.connected:
            continue
        if store.free_bytes is not None:
            disk.add_metric(labels, store.free_bytes)
        if store.memory_free_bytes is not None:
            memory.add_metric(labels, store.memory_free_bytes)
        held.add_metric(labels, sum(file.size_bytes for file in store.files))
        files.add_metric(labels, len(store.files))
        sent = sum(one.size_bytes - one.done_bytes for one in store.fetching)
        pulled = sum(one.size_bytes - one.done_bytes for one in store.pulling if one.size_bytes is not None)
        missing.add_metric(labels, sent + pulled)
    yield from (disk, memory, held, files, missing)


def _standing(rows: tuple[AgentRow, ...]) -> Iterator[Metric]:
    """Yields what hosts use while they answer nobody, as their agents have measured it."""
    joules = CounterMetricFamily(
        "moe2_fleet_standing_energy_joules",
        "Energy of a host that belongs to no request, by cause, since its agent's start.",
        labels=[*AGENT, "cause", "quality"],
    )
    idle = GaugeMetricFamily(
        "moe2_fleet_idle_power_watts",
        "Measured power of a host that waits, by models in memory.",
        labels=[*AGENT, "models"],
    )
    for row in rows:
        if row.standby is None:
            continue
        labels = [row.agent_name, row.agent_id]
        if row.standby.energy is not None:
            for cause, spent_j in row.standby.energy.by_cause().items():
                joules.add_metric([*labels, cause.value, row.standby.energy.quality.value], spent_j)
        for state in row.standby.idle:
            idle.add_metric([*labels, "asleep" if state.asleep else ",".join(state.models) or "none"], state.power_w)
    yield joules
    yield idle


def _averages(rows: tuple[AverageRow, ...]) -> Iterator[Metric]:
    """Yields the metrics of average budgets, of the first `MAX_KEYS` scopes."""
    target = GaugeMetricFamily(
        "moe2_average_energy_target_joules", "Joules that an answer may take on average.", labels=["scope"]
    )
    mean = GaugeMetricFamily(
        "moe2_average_energy_joules", "Joules per answer over about the last hundred answers.", labels=["scope"]
    )
    price = GaugeMetricFamily(
        "moe2_joule_price_score_per_joule", "Score, 0 to 1, that one joule has to bring.", labels=["scope"]
    )
    for row in rows[:MAX_KEYS]:
        target.add_metric([row.scope], row.average_energy_j)
        price.add_metric([row.scope], row.price_per_j)
        if row.mean_j is not None:
            mean.add_metric([row.scope], row.mean_j)
    yield from (target, mean, price)


def _warnings(status: CoordinatorStatus) -> Metric:
    warnings = GaugeMetricFamily("moe2_health_warnings", "Warnings that hold now.", labels=["code", "severity"])
    for (code, severity), n in Counter((w.code, str(w.severity)) for w in status.warnings).items():
        warnings.add_metric([code, severity], n)
    return warnings


class LedgerCollector(Collector):
    """The collector of each key's day and of the ledger's state.

    today: returns the present UTC day.
    """

    def __init__(self, accounts: Accounts, ledger: Ledger, today: Callable[[], str]) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._today = today

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of the keys and of the ledger."""
        statements = self._accounts.statements(self._today())[:MAX_KEYS]
        yield _key_gauge(
            "moe2_key_day_energy_joules",
            "Charged to the key today (UTC); requests that nobody could measure count with their reservation, if any.",
            statements,
            lambda statement: statement.spent.known_j,
        )
        yield _key_gauge(
            "moe2_key_day_energy_left_joules",
            "What the key's daily energy limit leaves; no series without a limit.",
            statements,
            lambda statement: statement.left.energy_j,
        )
        yield _key_gauge(
            "moe2_key_day_tokens",
            "Charged to the key today (UTC).",
            statements,
            lambda statement: statement.spent.tokens,
        )
        yield _key_gauge(
            "moe2_key_day_tokens_left",
            "What the key's daily token limit leaves; no series without a limit.",
            statements,
            lambda statement: statement.left.tokens,
        )
        yield _key_gauge(
            "moe2_key_day_unmeasured_requests",
            "Requests of the key today (UTC) whose joules nobody knows.",
            statements,
            lambda statement: statement.spent.n_unmeasured,
        )
        yield _key_gauge(
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


def _key_gauge(
    name: str, documentation: str, statements: tuple[Statement, ...], value: Callable[[Statement], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("key",))
    for statement in statements:
        figure = value(statement)
        if figure is not None:
            family.add_metric((statement.spent.key_name,), figure)
    return family
