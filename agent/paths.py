"""Where the agent's files are by default. Commands that only ask the running agent need no more of its settings."""

from __future__ import annotations

from pathlib import Path

DEFAULT_CONFIG_PATH = Path("/etc/moe2/agent.toml")
DEFAULT_SOCKET_PATH = Path("/run/moe2-agent/agent.sock")
