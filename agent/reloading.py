"""Which of the agent's settings SIGHUP applies. PURE. Every key stands in one of the two sets."""

from __future__ import annotations

LIVE = frozenset(
    {
        "agent.drain_s",
        "coordinator.ca_file",  # as all of [coordinator] here: for the next connection
        "coordinator.certificate",
        "coordinator.connect_timeout_s",
        "coordinator.key",
        "coordinator.reconnect_first_s",
        "coordinator.reconnect_most_s",
        "coordinator.refused_retry_s",
        "coordinator.token_file",
        "log.level",
    }
)
NEEDS_RESTART = frozenset(
    {
        "agent.name",
        "agent.socket",
        "agent.state_dir",
        "coordinator.url",
        "engine.load_timeout_s",
        "engine.stuck_s",
        "engine.restart_first_s",
        "engine.restart_most_s",
        "metrics.host",
        "metrics.port",
        "models",
        "sensors.families",
        "sensors.interval_s",
        "sensors.paced",
        "sensors.profile",
    }
)
