"""Where the coordinator's files are by default. Commands that only ask the running one need no more of its settings."""

from __future__ import annotations

from pathlib import Path

DEFAULT_CONFIG_PATH = Path("/etc/moe2/coordinator.toml")
DEFAULT_SOCKET_PATH = Path("/run/moe2-coordinator/coordinator.sock")
