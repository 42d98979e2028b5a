"""TLS in the coordinator as it is run: a process of its own, on the event loop that it has there."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.settings import AgentSettings
from moe2.common.localclient import STATUS_ROUTE, NotRunningError, fetch
from moe2.common.status import CoordinatorStatus
from tests.fakes.certificates import Authority
from tests.fakes.fleet import FAKE_EXPERT
from tests.fakes.waiting import until


@pytest.mark.slow
async def test_a_coordinators_process_serves_over_tls_and_takes_new_certificates(tmp_path: Path) -> None:
    """Enrolled with a token from the command line; an answer over https; another certificate without a signal."""
    authority = Authority(tmp_path)
    pair, config, socket = authority.issue("hub"), tmp_path / "coordinator.toml", tmp_path / "coordinator.sock"
    tls = f'certificate = "{pair["certificate"]}"\nkey = "{pair["key"]}"\n'
    config.write_text(
        f'[coordinator]\nstate_dir = "{tmp_path}"\nsocket = "{socket}"\n[api]\nport = 0\n[agents]\nport = 0\n'
        f"[api.tls]\n{tls}[agents.tls]\n{tls}"
    )
    command = (sys.executable, "-m", "moe2.coordinator")
    made = await asyncio.create_subprocess_exec(
        *command, "agents", "enrol-token", "create", "t", "--config", str(config), stdout=subprocess.PIPE
    )
    (tmp_path / "token").write_bytes((await made.communicate())[0])
    process = await asyncio.create_subprocess_exec(*command, "run", "--config", str(config))

    async def ask() -> CoordinatorStatus | None:
        try:
            return msgspec.json.decode(await asyncio.to_thread(fetch, socket, STATUS_ROUTE), type=CoordinatorStatus)
        except NotRunningError:
            return None

    running: asyncio.Task[None] | None = None
    try:
        status = await until(ask, lambda status: status is not None and bool(status.api_url))
        assert status is not None
        agent = _agent(tmp_path, status.agents_url, authority.ca_file)
        running = asyncio.create_task(agent.run())
        await until(ask, lambda status: status is not None and _ready(status))
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        async with aiohttp.ClientSession(status.api_url) as http:
            body = {"model": "moe2", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
            async with http.post("/v1/chat/completions", json=body, ssl=context) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == "a b "
            before = await _serial(status.api_url, context)
            authority.issue("hub")

            async def serial() -> str:
                return await _serial(status.api_url, context)

            await until(serial, lambda serial: serial != before)
            async with http.post("/v1/chat/completions", json=body, ssl=context) as answer:
                assert answer.status == 200
        assert agent.status().link.attempts == 1
        agent.stop()
        await running
    finally:
        if running is not None:
            running.cancel()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def _ready(status: CoordinatorStatus) -> bool:
    return any(expert.state == "ready" for row in status.agents for expert in row.experts)


def _agent(root: Path, url: str, ca_file: Path) -> AgentDaemon:
    (root / "fake.gguf").touch()
    settings = AgentSettings.model_validate(
        {
            "agent": {"name": "one", "state_dir": root / "one", "socket": root / "one.sock", "drain_s": 1.0},
            "coordinator": {"url": url, "token_file": root / "token", "ca_file": ca_file},
            "models": [{"name": "fake", "path": root / "fake.gguf"}],
        }
    )
    sensors = SensorSettings(root=root / "none", families=())
    return AgentDaemon(settings, environment={}, engine_argv=FAKE_EXPERT, sensors=sensors)


async def _serial(url: str, context: ssl.SSLContext) -> str:
    """Which certificate a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), ssl=context)
    serial: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return serial
