"""One request that kills every engine it meets: it must not go through the fleet, and nobody else may pay for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agentprocess import agent_process
from tests.fakes.fleet import POLL_S, TOKEN, Fleet, fleet
from tests.scenarios.faults.bench import Ended, read_end

EXPERT = ("--dies-on", "poison", "--hangs-on", "spell", "--seconds-per-token", "0.15")
SLOTS = 4
N_TOKENS = 12
ANSWER = "a b c d " * 3


@asynccontextmanager
async def poisonable(root: Path, *agents: str, stuck_s: float = 60.0) -> AsyncIterator[Fleet]:
    """A coordinator and these agents as processes of their own. Their engines die of one word, and hang at another.

    stuck_s: after this an engine that does not stop a job is killed.
    """
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(fleet(root, agents=()))
        url = running.coordinator.agents_url
        for name in agents:
            process = agent_process(root, name, url, token=TOKEN, expert=EXPERT, slots=SLOTS, stuck_s=stuck_s)
            await stack.enter_async_context(process)
        await running.until(ready=len(agents))
        yield running


async def ask(running: Fleet, content: str = "a b c d", **fields: Any) -> Ended:
    return await read_end(await running.chat(content, **{"max_tokens": N_TOKENS, **fields}))


async def all_working(running: Fleet, *, n_requests: int) -> None:
    """Wait until so many requests are in the engines' batches."""
    await running.until_status(
        lambda status: sum(expert.active for row in status.agents for expert in row.experts) == n_requests
    )


def restarts(running: Fleet) -> int:
    return sum(expert.restarts for row in running.coordinator.status().agents for expert in row.experts)


def open_breakers(running: Fleet) -> list[str]:
    return [row.expert for row in running.coordinator.status().dispatch.breakers if row.state != "closed"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
POISONS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 2),
    "grammar": ({"grammar": 'root ::= "a"'}, 1),
    "schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}, 1),
    "tools": ({"tools": [TOOL]}, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "agents"),
    [
        ("plain", ("one",)),
        ("plain", ("one", "two", "three")),
        ("grammar", ("one", "two", "three")),
        pytest.param("schema", ("one", "two"), marks=pytest.mark.slow),
        pytest.param("tools", ("one", "two"), marks=pytest.mark.slow),
    ],
)
async def test_a_request_that_kills_engines(tmp_path: Path, kind: str, agents: tuple[str, ...]) -> None:
    """It is refused after two deaths, or after one where it brings its own grammar, schema or tools; everybody else is
    answered, and no breaker opens."""
    fields, n_deaths = POISONS[kind]
    n_bystanders = 2 * len(agents)
    async with poisonable(tmp_path, *agents) as running, asyncio.timeout(60):
        bystanders = [asyncio.create_task(ask(running)) for _ in range(n_bystanders)]
        await all_working(running, n_requests=n_bystanders)
        poison = await ask(running, "a poison b", **fields)
        assert poison.error is not None
        assert (poison.status, poison.error["code"]) == (422, "crash_suspected")
        assert "SIGABRT" in poison.error["message"]
        answers = [await bystander for bystander in bystanders]
        assert [(answer.status, answer.text) for answer in answers] == [(200, ANSWER)] * n_bystanders
        await running.quiet()
        await running.until_status(lambda _: restarts(running) >= n_deaths)
        await running.until(ready=len(agents))
        assert restarts(running) == n_deaths
        assert open_breakers(running) == []


@pytest.mark.slow
async def test_no_breaker_opens_for_those_who_come_while_an_engine_is_down(tmp_path: Path) -> None:
    """Its agent turns them away until the coordinator has heard of the death; they wait until the engine is back."""
    async with poisonable(tmp_path, "one") as running, asyncio.timeout(60):
        poison = asyncio.create_task(ask(running, "a poison b"))
        newcomers: list[asyncio.Task[Ended]] = []
        while not poison.done():
            newcomers.append(asyncio.create_task(ask(running, max_tokens=1)))
            await asyncio.wait([poison], timeout=POLL_S)
        assert (await poison).status == 422
        refusals = {one.error["message"] for one in await asyncio.gather(*newcomers) if one.error}
        assert refusals <= {"No expert is ready. See `moe2-coordinator status`."}
        assert open_breakers(running) == []


@pytest.mark.slow
async def test_an_engine_that_hangs_is_like_one_that_dies(tmp_path: Path) -> None:
    """Who made it hang has left; who was there, too, is answered once the engine has been killed and is back."""
    async with poisonable(tmp_path, "one", stuck_s=0.5) as running, asyncio.timeout(60):
        bystander = asyncio.create_task(ask(running))
        await all_working(running, n_requests=1)
        poison = asyncio.create_task(ask(running, "a spell b"))
        await running.until_status(lambda status: status.requests_active == 2)
        await all_working(running, n_requests=2)
        poison.cancel()
        answer = await bystander
        assert (answer.status, answer.text) == (200, ANSWER)
        assert restarts(running) == 1
        await running.quiet()
        assert open_breakers(running) == []


@pytest.mark.slow
async def test_the_key_of_a_poisonous_request_counts_it(tmp_path: Path) -> None:
    """Where the keys' day is shown, and in the metrics."""
    async with poisonable(tmp_path, "one") as running, asyncio.timeout(60):
        assert (await ask(running, "poison")).status == 422
        assert (await ask(running)).status == 200
        await running.quiet()
        async with running.http.get("/v1/moe2/ledger") as response:
            [today] = (await response.json())["today"]
        assert (today["n_requests"], today["n_crash_suspected"]) == (2, 1)
        async with running.http.get("/metrics") as response:
            metrics = await response.text()
        assert 'moe2_key_day_crash_suspected_requests{key="anybody"} 1.0' in metrics
        assert 'moe2_requests_total{outcome="failed",reason="crash_suspected"} 1.0' in metrics
