"""Drives clients against a real fleet: a writer whose template has tools, and an embedding model."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moe2.agent.daemon import ENGINE_ARGV
from tests.agent.engine.gguf import with_metadata
from tests.clients.catalog import Client
from tests.clients.environments import UnavailableError, driver_of, prepared
from tests.fakes.fleet import Fleet, fleet
from tests.models import served, smollm2_path, with_tools

AT_ONCE = 2
"""Clients that run at the same time: most of what they do is waiting for the fleet."""
MOST_S = 600
"""Against a driver that hangs, and no more: imports alone take a minute on a host with much else to do."""
QUIET = {"NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""No client needs anything but the fleet: LiteLLM fetches a list of prices, and waits where it cannot."""


@dataclass(frozen=True)
class Trial:
    """What became of a client.

    version: as the driver found it. results: "ok", or the error, by check. unavailable: why the client was not tried.
    """

    version: str | None = None
    results: dict[str, str] = field(default_factory=dict)
    unavailable: str | None = None


@asynccontextmanager
async def clients_fleet(root: Path) -> AsyncIterator[Fleet]:
    """A fleet of one host with the models that the drivers ask for."""
    embedder = with_metadata(smollm2_path(), root / "minilm.gguf", "llama.pooling_type", 1)
    writer = with_tools(smollm2_path(), root / "tools.gguf")
    # Greedy where a client says nothing: an answer that begins with its end is no fault of a client's.
    greedy = {"temperature": 0}
    models = [
        served(writer, context_tokens=4096, sampling=greedy),
        served(embedder, name="minilm", context_tokens=512, slots=1),
    ]
    async with fleet(root, engine_argv=ENGINE_ARGV, models=models) as running:
        yield running


async def tried(running: Fleet, clients: Sequence[Client]) -> dict[Client, Trial]:
    """Runs the clients' drivers against a fleet, a few at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(client: Client) -> Trial:
        async with turn:
            return await _tried(running.coordinator.api_url, client)

    return dict(zip(clients, await asyncio.gather(*map(one, clients)), strict=True))


async def _tried(url: str, client: Client) -> Trial:
    try:
        command = await asyncio.to_thread(prepared, client.environment)
        path = await asyncio.to_thread(driver_of, client.environment, client.driver)
    except UnavailableError as error:
        return Trial(unavailable=str(error))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MOE2_URL": url, "NODE_MODULES": str(path.parent / "node_modules"), **QUIET}
    process = await asyncio.create_subprocess_exec(
        *command, str(path), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(MOST_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Trial(results=dict.fromkeys(client.checks, f"it did not end within {MOST_S} s"))
    lines = out.decode("utf-8", "replace").strip().splitlines()
    if process.returncode or not lines:
        return Trial(
            results=dict.fromkeys(client.checks, f"its driver failed: {err.decode('utf-8', 'replace')[-500:]}")
        )
    said = json.loads(lines[-1])
    return Trial(version=said["version"], results=said["results"])
