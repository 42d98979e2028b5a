"""A fleet on loopback: a real coordinator and real agents in this process, their experts fake processes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.energy.profiles import find_profile
from moe2.agent.energy.wall import Plug
from moe2.agent.settings import AgentSettings
from moe2.agent.standby.sleeping import HostControl
from moe2.common.localclient import fetch
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.cli.models import HASHING_S
from moe2.coordinator.daemon import CoordinatorDaemon
from moe2.coordinator.settings import CoordinatorSettings

TOKEN = "a-test-token"
# A status is asked for; it does not call. This is how often, not how long a test waits. Asked five times as often, by
# dozens of tests over a socket, it took a core that the fleet wants.
POLL_S = 0.01
FAKE_EXPERT = (sys.executable, "-m", "tests.fakes.expert")


def model_file(root: Path, name: str = "fake") -> Path:
    """The file of a fake model, made where it is missing; models of two names are two files, as learning asks."""
    path = root / f"{name}.gguf"
    if not path.exists():
        path.write_text(name if name != "fake" else "")
    return path


@dataclass
class Fleet:
    """What a test holds in hand."""

    root: Path
    coordinator: CoordinatorDaemon
    http: aiohttp.ClientSession
    tasks: asyncio.TaskGroup
    configuration: dict[str, dict[str, Any]]
    """The coordinator's, read again by its `reload`."""
    agents: dict[str, AgentDaemon] = field(default_factory=dict)
    agent_configurations: dict[str, dict[str, Any]] = field(default_factory=dict)
    agent_tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def start_agent(
        self,
        name: str,
        *,
        engine_argv: Sequence[str] = FAKE_EXPERT,
        models: Sequence[dict[str, Any]] | None = None,
        token: str = TOKEN,
        profile: str | None = None,
        sensors_root: Path | None = None,
        link: dict[str, Any] | None = None,
        interval_s: float = 0.1,
        engine: dict[str, Any] | None = None,
        agent: dict[str, Any] | None = None,
        measuring: dict[str, Any] | None = None,
        control: HostControl | None = None,
        models_from: dict[str, Any] | None = None,
        plugs: tuple[Plug, ...] = (),
        by_wall: bool = False,
    ) -> AgentDaemon:
        """Start an agent; returns at once.

        models: [[models]] tables; one fake model `fake` if not given. sensors_root: where its /sys is; an empty place
        if not given, so that a test sees the same host everywhere. link, engine, agent: more keys of [coordinator],
        [engine] and [agent]. measuring: keys of [measuring]; the agent does not measure itself if not given.
        interval_s: between two readings of a sensor. control: suspends the host. models_from: keys of [models_from].
        plugs: in front of the host; by_wall: they are what counts.
        """
        token_file = self.root / f"{name}.token"
        token_file.write_text(token)
        gguf = model_file(self.root)
        configuration: dict[str, Any] = {
            "agent": {
                "name": name,
                "state_dir": self.root / name,
                "socket": self.root / f"{name}.sock",
                "drain_s": 5.0,
                **(agent or {}),
            },
            "measuring": measuring or {"enabled": False},
            "models_from": models_from or {},
            "coordinator": {
                "url": self.coordinator.agents_url,
                "token_file": token_file,
                "reconnect_first_s": 0.02,
                "reconnect_most_s": 0.1,
                **(link or {}),
            },
            "engine": {"restart_first_s": 0.02, "restart_most_s": 0.1, **(engine or {})},
            "sensors": {"profile": profile, "interval_s": interval_s},
            "models": models if models is not None else [{"name": "fake", "path": gguf, "slots": 4}],
        }
        self.agent_configurations[name] = configuration

        def load() -> AgentSettings:
            return AgentSettings.model_validate(configuration)

        sensors = SensorSettings(
            root=sensors_root or self.root / "no-sensors",
            simulated=find_profile(profile) if profile else None,
            families=("ina3221", "rapl"),
            plugs=plugs,
            by_wall=by_wall,
        )
        started = AgentDaemon(
            load(), environment={}, engine_argv=engine_argv, sensors=sensors, load=load, control=control
        )
        self.agents[name] = started
        self.agent_tasks[name] = self.tasks.create_task(started.run())
        return started

    async def quiet(self) -> None:
        """Wait until every request has ended and is accounted."""
        await self.until_status(lambda status: status.requests_active == 0)

    async def until_status(self, holds: Callable[[CoordinatorStatus], bool]) -> None:
        """Wait until the coordinator's status satisfies `holds`, asking again and again as an operator would."""
        async with asyncio.timeout(60):
            while not holds(self.coordinator.status()):
                await asyncio.sleep(POLL_S)

    async def until(self, *, ready: int) -> None:
        """Wait until exactly so many experts are ready."""

        def ready_now(status: CoordinatorStatus) -> bool:
            experts = [expert for row in status.agents if row.connected for expert in row.experts]
            return sum(expert.state == "ready" for expert in experts) == ready

        await self.until_status(ready_now)

    async def tell(self, route: str, /, **word: Any) -> Any:
        """An operator's word over the local socket; returns the answer to it, for which the commands wait as long."""
        body = json.dumps(word).encode()
        return json.loads(
            await asyncio.to_thread(fetch, self.root / "coordinator.sock", route, body=body, timeout_s=HASHING_S)
        )

    async def chat(self, content: str, **fields: Any) -> aiohttp.ClientResponse:
        """POST one user message."""
        body = {"model": "moe2", "messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def fleet(
    root: Path,
    *,
    agents: Sequence[str] = ("one",),
    api: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
    dispatch: dict[str, Any] | None = None,
    listener: dict[str, Any] | None = None,
    traces: dict[str, Any] | None = None,
    provisioning: dict[str, Any] | None = None,
    push: dict[str, Any] | None = None,
    database: dict[str, Any] | None = None,
    **agent_options: Any,
) -> AsyncIterator[Fleet]:
    """A running coordinator with `agents` connected and their experts ready; everything ended afterwards.

    api, selection, listener: more keys of [api], [selection] and [agents]. database: the keys of [database].
    """
    token_file = root / "token"
    token_file.write_text(TOKEN)
    configuration: dict[str, dict[str, Any]] = {
        "coordinator": {"state_dir": root, "socket": root / "coordinator.sock", "drain_s": 1.0},
        "api": {"port": 0, **(api or {})},
        "selection": selection or {},
        "dispatch": dispatch or {},
        "traces": traces or {},
        "provisioning": provisioning or {},
        "push": push or {},
        "database": database or {},
        "agents": {
            "port": 0,
            "token_file": token_file,
            "report_s": 0.5,
            "stale_s": 30.0,
            "heartbeat_s": 20.0,
            **(listener or {}),
        },
    }

    def load() -> CoordinatorSettings:
        return CoordinatorSettings.model_validate(configuration)

    coordinator = CoordinatorDaemon(load(), environment={}, load=load)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(coordinator.run())
        await coordinator.listening.wait()
        async with aiohttp.ClientSession(coordinator.api_url) as http:
            built = Fleet(root, coordinator, http, tasks, configuration)
            try:
                for name in agents:
                    await built.start_agent(name, **agent_options)
                await built.until(ready=sum(len(built.agent_configurations[name]["models"]) for name in agents))
                yield built
            finally:
                for agent in built.agents.values():
                    agent.stop()
                await asyncio.wait(built.agent_tasks.values()) if built.agent_tasks else None
                coordinator.stop()
                await running
