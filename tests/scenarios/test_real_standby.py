"""Waiting and its changes with real llama.cpp processes and the real SmolLM2 model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from moe2.common.link.messages import CommandOutcome, LoadModel, UnloadModel
from moe2.common.status import AgentRow, CoordinatorStatus
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.models import served, smollm2_path
from tests.scenarios.test_standby import Commander

pytestmark = pytest.mark.slow

MODELS = [served(smollm2_path())]


def row(status: CoordinatorStatus, name: str) -> AgentRow:
    return next(row for row in status.agents if row.agent_name == name)


def measured(status: CoordinatorStatus) -> list[str]:
    """The agents whose expert's joules are known by its own measurements."""
    return sorted(
        row.agent_name for row in status.agents for expert in row.experts if expert.energy and expert.energy.n_requests
    )


# --- Measuring oneself ------------------------------------------------------------------------------------------------


async def two_simulated_hosts(running: Fleet, **measuring: Any) -> None:
    for name, profile in (("orin", "agx-orin-30w"), ("pc", "rtx-4090")):
        options: dict[str, Any] = {"engine_argv": ENGINE_ARGV, "models": MODELS, "profile": profile}
        await running.start_agent(name, measuring=measuring, **options)
    await running.until(ready=2)


async def test_an_expert_that_nobody_asks_is_measured_and_stays_within_energy_budgets(tmp_path: Path) -> None:
    """Both of two simulated hosts know their joules before the first request, and either may answer within a budget."""
    async with fleet(tmp_path, agents=()) as running:
        await two_simulated_hosts(running, enabled=True)
        await running.until_status(lambda status: measured(status) == ["orin", "pc"])
        for agent in running.coordinator.status().agents:
            key = f"{agent.agent_id}/smollm2"
            async with await running.chat("hi", model=key, max_tokens=4, moe2={"energy_budget_j": 5000}) as answer:
                assert answer.status == 200, await answer.text()
                receipt = (await answer.json())["moe2"]
            assert receipt["energy"]["quality"] == "simulated"
        await running.until_status(
            lambda status: all(
                row.standby and row.standby.energy and 0 < row.standby.energy.other_j < 1000.0 for row in status.agents
            )
        )


async def test_without_measuring_itself_an_expert_that_nobody_asks_is_ruled_out(tmp_path: Path) -> None:
    """The fault that it mends: no joules are known of it, and no budget can be kept."""
    async with fleet(tmp_path, agents=()) as running:
        await two_simulated_hosts(running, enabled=False)
        [first, other] = [f"{agent.agent_id}/smollm2" for agent in running.coordinator.status().agents]
        for _ in range(2):
            async with await running.chat("hi", model=first, max_tokens=4) as answer:
                assert answer.status == 200
        async with await running.chat("hi", model=other, max_tokens=4, moe2={"energy_budget_j": 5000}) as answer:
            assert answer.status != 200
            assert "has not been measured" in await answer.text()


# --- Unloading and loading --------------------------------------------------------------------------------------------


async def test_unloading_ends_the_process_and_a_request_loads_again_with_both_in_the_books(tmp_path: Path) -> None:
    """The memory is given back with the process; seconds and joules of both changes are measured and reported."""
    options: dict[str, Any] = {
        "engine_argv": ENGINE_ARGV,
        "models": MODELS,
        "profile": "rtx-4090",
        "agent": {"allow_unload": True},
    }
    async with fleet(tmp_path, agents=("one",), **options) as running:
        agent, commander = running.agents["one"], Commander(running)
        pid = agent.engine_pids()["smollm2"]
        assert pid is not None
        before = running.coordinator.status().agents[0].standby
        answer = await commander.order(agent, UnloadModel(command_id="u", model="smollm2"))
        assert answer.outcome is CommandOutcome.DONE
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        async with await running.chat("What is 2+2?", max_tokens=4) as said:
            assert said.status == 200
        assert agent.engine_pids()["smollm2"] not in (None, pid)

        def known(status: CoordinatorStatus) -> bool:
            expert = status.agents[0].experts[0]
            costs = (expert.load_cost, expert.unload_cost)
            return (
                all(cost is not None and cost.energy_j for cost in costs) and costs[0] is not None and costs[0].n == 2
            )

        await running.until_status(known)
        expert, after = (
            running.coordinator.status().agents[0].experts[0],
            running.coordinator.status().agents[0].standby,
        )
        assert expert.load_cost is not None
        assert expert.load_cost.duration_s > 0.05
        assert before is not None
        assert after is not None
        assert before.energy is not None
        assert after.energy is not None
        assert after.energy.epoch == before.energy.epoch
        assert after.energy.loading_j > before.energy.loading_j


# --- Kills in the middle ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def real_agent(running: Fleet, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent as a process of its own, as a service runs it, which may be commanded to unload."""
    root, token = running.root, running.root / f"{name}.token"
    token.write_text(TOKEN)
    config = root / f"{name}.toml"
    config.write_text(
        f"""
[agent]
name = "{name}"
state_dir = "{root / name}"
socket = "{root / name}.sock"
allow_unload = true
[coordinator]
url = "{running.coordinator.agents_url}"
token_file = "{token}"
reconnect_first_s = 0.05
[measuring]
enabled = false
[[models]]
name = "smollm2"
path = "{MODELS[0]["path"]}"
context_tokens = 1024
slots = 2
threads = 1
speculation = false
"""
    )
    argv = (sys.executable, "-m", "moe2.agent", "run", "--config", str(config))
    with (root / f"{name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def engines_of(agent_pid: int) -> list[int]:
    """The processes that an agent has started."""
    children = Path(f"/proc/{agent_pid}/task/{agent_pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


STEPS = ("draining", "stopping", "cold", "loading")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["agent", "engine"])
async def test_a_kill_at_any_step_of_a_change_loses_no_request(tmp_path: Path, victim: str) -> None:
    """Requests that were asked before, while and after one of two hosts is killed in the middle are all answered."""
    async with fleet(tmp_path, agents=()) as running, AsyncExitStack() as stack:
        await stack.enter_async_context(real_agent(running, "steady"))
        for step in STEPS:
            async with real_agent(running, "doomed") as doomed:
                await running.until(ready=2)
                answers = await answers_around_a_kill(running, doomed.pid, step, victim)
            assert answers == [200] * len(answers), step
            await running.until(ready=1)


async def answers_around_a_kill(running: Fleet, doomed_pid: int, step: str, victim: str) -> list[int]:
    """The statuses of requests that were asked before, while and after a host was killed in a step of its change."""
    commander = Commander(running)
    agent_id = row(running.coordinator.status(), "doomed").agent_id

    def command(order: LoadModel | UnloadModel) -> None:
        commander.expect(order.command_id)
        assert running.coordinator._hub.send(agent_id, order)

    async def state_is(*states: str) -> None:
        await running.until_status(lambda status: row(status, "doomed").experts[0].state.value in states)

    def ask(n: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(status_of(running, f"Count from {i} to {i + 9}.")) for i in range(n)]

    asked = ask(4) if step == "draining" else []
    if step == "draining":
        await running.until_status(lambda status: bool(row(status, "doomed").experts[0].active))
    unloading = f"unload while {step}"
    command(UnloadModel(command_id=unloading, model="smollm2"))
    if step in ("cold", "loading"):
        await commander._answers[unloading]
        await state_is("cold")
    if step == "loading":
        command(LoadModel(command_id="load", model="smollm2"))
        await state_is("loading", "ready")
    asked += ask(2)
    for pid in [doomed_pid] if victim == "agent" else engines_of(doomed_pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    asked += ask(4)
    return await asyncio.gather(*asked)


async def status_of(running: Fleet, prompt: str) -> int:
    async with await running.chat(prompt, max_tokens=24) as answer:
        await answer.read()
        return answer.status
