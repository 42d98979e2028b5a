"""What the demo writes before it starts anything: free ports, a token, three configurations."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from examples.demo.models import Model
from moe2.agent.energy.profiles import find_profile
from moe2.agent.standby.store import StoredIdle, StoredStandby, store_standby
from moe2.common.energy import Quality
from moe2.common.localsocket import MAX_PATH_BYTES
from moe2.common.standby import IdlePower

HOST = "127.0.0.1"
FIRST_PORT = 8080
_MAX_SOCKET_NAME = "agent-agx-orin-30w.sock"


@dataclass(frozen=True)
class Daemon:
    """One process to run: `moe2-<program> run --config <config>`."""

    name: str
    program: str
    config: Path
    socket: Path
    log: Path


@dataclass(frozen=True)
class Setup:
    """What was written: where the API will be, the daemons to start, and what the coordinator was configured with."""

    api_url: str
    coordinator: Daemon
    agents: tuple[Daemon, ...]
    configuration: dict[str, Any]

    def set_average(self, category: str, average_energy_j: float) -> None:
        """Write an average budget for a category; the coordinator takes it in when it is told to reload."""
        section = {f"selection.categories.{category}": {"average_energy_j": average_energy_j}}
        _write(self.coordinator.config, {**self.configuration, **section})


def prepare(folder: Path, models: Sequence[Model]) -> Setup:
    """Write everything into `folder`, forgetting what an earlier demo learned; the daemons can then be started."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    for part in ("logs", "state"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    sockets = _socket_folder(folder)
    token = folder / "token"
    write_secret(token, secrets.token_urlsafe(32))
    api_port = free_port(FIRST_PORT)
    agents_port = free_port(api_port + 1)

    coordinator = _daemon("coordinator", "coordinator", folder, sockets)
    configuration: dict[str, Any] = {
        "coordinator": {
            "state_dir": folder / "state" / "coordinator",
            "socket": coordinator.socket,
            "drain_s": 5.0,
        },
        "api": {"host": HOST, "port": api_port},
        "agents": {"host": HOST, "port": agents_port, "token_file": token},
    }
    _write(coordinator.config, configuration)
    agents = []
    for model in models:
        agent = _daemon(f"agent-{model.profile}", "agent", folder, sockets)
        state_dir = folder / "state" / agent.name
        state_dir.mkdir(parents=True)
        store_standby(state_dir, _idle_powers(model))
        _write(
            agent.config,
            {
                "agent": {
                    "name": f"demo-{model.profile}",
                    "state_dir": state_dir,
                    "socket": agent.socket,
                    "drain_s": 5.0,
                    "allow_unload": True,
                },
                "coordinator": {"url": f"ws://{HOST}:{agents_port}", "token_file": token},
                "sensors": {"profile": model.profile, "paced": True},
                "models": [
                    {
                        "name": model.name,
                        "path": model.path,
                        "context_tokens": 2048,
                        "slots": 2,
                        # The agents share this machine; on a host of its own each would take all cores.
                        "threads": max(1, (os.cpu_count() or 1) // len(models)),
                    }
                ],
            },
        )
        agents.append(agent)
    return Setup(f"http://{HOST}:{api_port}", coordinator, tuple(agents), configuration)


def _idle_powers(model: Model) -> StoredStandby:
    """Return what a host draws while it waits with its model and without: its profile's figures, marked simulated.

    A real host measures the first within seconds, and the second only once it has been without a model.
    """
    profile = find_profile(model.profile, paced=True)
    states = (((model.name,), profile.idle_w), ((), profile.cold_w))
    return StoredStandby(
        idle=tuple(
            StoredIdle(
                power_mode=profile.marked_power_mode,
                idle=IdlePower(power_w=figure.value, models=models, quality=Quality.SIMULATED, scope=profile.scope),
                at_unix_s=time.time(),
            )
            for models, figure in states
        )
    )


def free_port(first: int) -> int:
    """The first free loopback port from `first` on."""
    for port in range(first, 65_536):
        with socket.socket() as probe:
            # As the daemons' listeners do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} on")


def write_secret(path: Path, secret: str) -> None:
    """Write a file that only its owner can read, also where it existed with other rights."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")


def _daemon(name: str, program: str, folder: Path, sockets: Path) -> Daemon:
    return Daemon(
        name=name,
        program=program,
        config=folder / f"{name}.toml",
        socket=sockets / f"{name}.sock",
        log=folder / "logs" / f"{name}.log",
    )


def _socket_folder(folder: Path) -> Path:
    """`folder`, or a temporary one where its path is too long for a Unix socket."""
    if len(os.fsencode(folder / _MAX_SOCKET_NAME)) <= MAX_PATH_BYTES:
        return folder
    return Path(tempfile.mkdtemp(prefix="moe2-demo-"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(_toml(msgspec.to_builtins(content, enc_hook=str)), encoding="utf-8")


def _toml(content: dict[str, Any]) -> str:
    """Tables and lists of tables of plain values, one level deep: all that the configurations have."""
    lines = ["# Written by the demo at every start."]
    for name, part in content.items():
        header = f"[[{name}]]" if isinstance(part, list) else f"[{name}]"
        for table in part if isinstance(part, list) else [part]:
            lines += ["", header]
            # A JSON string, number or boolean is one in TOML as well.
            lines += [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
