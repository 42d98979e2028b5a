"""Which of the coordinator's settings SIGHUP applies. PURE. Every key stands in one of the two sets."""

from __future__ import annotations

LIVE = frozenset(
    {
        "agents.evict_s",
        "agents.handshake_s",  # as the two below: for agents that connect from now on
        "agents.heartbeat_s",
        "agents.report_s",
        "agents.stale_s",
        "agents.tls.certificate",
        "agents.tls.client_ca",  # for new connections, as certificates
        "agents.tls.key",
        "agents.token_file",
        "api.max_active_requests",
        "api.request_timeout_s",
        "api.tls.certificate",
        "api.tls.client_ca",
        "api.tls.key",
        "coordinator.drain_s",
        "log.level",
        "selection.categories",
        "selection.fleet_watts_cap_w",
        "selection.gate",
        "selection.keep_prompts",
    }
)
NEEDS_RESTART = frozenset(
    {
        "dispatch.affinity",
        "dispatch.breakers",
        "dispatch.hedge_share",
        "dispatch.hedging",
        "dispatch.max_queued",
        "dispatch.queue_s",
        "agents.allow_plaintext",
        "api.allow_public_without_keys",
        "api.body_timeout_s",
        "api.header_timeout_s",
        "api.keys",
        "api.send_timeout_s",
        "traces.endpoint",
        "agents.host",
        "agents.max_frame_bytes",
        "agents.port",
        "agents.tls",
        "api.host",
        "api.max_body_bytes",
        "api.port",
        "api.tls",
        "coordinator.socket",
        "coordinator.state_dir",
        "ledger.path",
        "ledger.retention_days",
    }
)
