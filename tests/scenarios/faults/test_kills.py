"""Agents and engines that are killed or stopped, as real processes, in every phase of a request."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.agentprocess import agent_process
from tests.fakes.fleet import POLL_S, TOKEN
from tests.scenarios.faults.bench import (
    ANSWER,
    PHASES,
    Bench,
    Ended,
    InPhase,
    Phase,
    Resources,
    assert_accounted,
    assert_one_end,
    assert_settled,
    assert_survived,
    bench,
    in_phase,
)

IN_EVERY_PHASE = pytest.mark.parametrize(
    "phase", [p if p is Phase.PREFILL else pytest.param(p, marks=pytest.mark.slow) for p in PHASES]
)
ALONE = (Phase.QUEUED, Phase.STREAM)
ALL_SLOW = pytest.mark.parametrize("phase", [pytest.param(p, marks=pytest.mark.slow) for p in PHASES])


async def ends(built: Bench, requests: InPhase) -> Ended:
    """Everybody's end, checked for what must always hold; returns the victim's."""
    requests.let_go(built)
    victim, bystander = await requests.victim, await requests.bystander
    others = [await requests.holder] if requests.holder else []
    await built.fleet.quiet()
    for ended in (victim, bystander, *others):
        assert_one_end(ended)
        assert_accounted(ended)
    assert (bystander.text, bystander.error) == (ANSWER, None)
    assert_settled(built, requests=2 + len(others))
    return victim


async def gone(pid: int) -> None:
    """Wait until a process that is not our child does not exist any more."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            await asyncio.sleep(POLL_S)


@pytest.mark.slow
@IN_EVERY_PHASE
async def test_a_killed_engine(tmp_path: Path, phase: Phase) -> None:
    """SIGKILL of the child: its requests move on or fail explicitly; it is started again."""
    async with bench(tmp_path) as built, asyncio.timeout(100):
        requests = await in_phase(built, phase)
        before = Resources.now()
        os.kill(built.engine_pid(), signal.SIGKILL)
        await built.fleet.until_status(lambda status: any(e.restarts for row in status.agents for e in row.experts))
        victim = await ends(built, requests)
        assert_survived(victim, phase, outcome="failed", code="engine_crashed")
        await built.fleet.until(ready=2)
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER
        await before.back()


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PREFILL, *ALONE])
async def test_a_stuck_engine(tmp_path: Path, phase: Phase) -> None:
    """SIGSTOP of the child: the deadline ends its requests; it is killed, and its slot is free again."""
    # Long enough for `steady` to be started before the deadline, also where the machine has other work.
    async with bench(tmp_path, api={"request_timeout_s": 6.0}, engine={"stuck_s": 0.2}) as built, asyncio.timeout(100):
        requests = await in_phase(built, phase)
        stuck = built.engine_pid()
        os.kill(stuck, signal.SIGSTOP)
        requests.bystander_held.answer()
        built.steady.release()
        assert (await requests.bystander).text == ANSWER
        ended = await requests.victim
        assert ended.error is not None
        # The agent and the coordinator keep the same deadline; either may be first to say so.
        assert ended.error["code"] == "deadline_exceeded"
        victim = await ends(built, requests)
        assert victim.receipt is not None
        await built.fleet.until_status(lambda status: any(e.restarts for row in status.agents for e in row.experts))
        await built.fleet.until(ready=2)
        assert built.engine_pid() != stuck
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER


@pytest.mark.slow
async def test_a_paused_engine_goes_on(tmp_path: Path) -> None:
    """A child that is stopped for less than the deadline loses nothing."""
    async with bench(tmp_path) as built, asyncio.timeout(100):
        requests = await in_phase(built, Phase.STREAM)
        pid = built.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        requests.bystander_held.answer()
        built.steady.release()
        assert (await requests.bystander).text == ANSWER
        os.kill(pid, signal.SIGCONT)
        assert (await ends(built, requests)).text == ANSWER


@ALL_SLOW
async def test_a_killed_agent(tmp_path: Path, phase: Phase) -> None:
    """SIGKILL of the agent: its requests move on or fail explicitly, its engine ends with it, a new one is welcome."""
    async with bench(tmp_path, own_process=True) as built, asyncio.timeout(100):
        assert built.process
        requests = await in_phase(built, phase)
        before = Resources.now()
        engine = built.engine_pid()
        built.process.kill()
        await built.fleet.until_status(lambda _: not built.is_connected("shaky"))
        victim = await ends(built, requests)
        assert_survived(victim, phase, outcome="lost", code="agent_lost")
        await gone(engine)
        await before.back()
        options = ("--control", str(tmp_path / "shaky-control.sock"))
        async with agent_process(tmp_path, "shaky", built.proxy.url, token=TOKEN, expert=options):
            await built.fleet.until(ready=2)
            # The same identity, so the same key.
            assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER


@ALL_SLOW
async def test_a_stopped_agent(tmp_path: Path, phase: Phase) -> None:
    """SIGSTOP of the agent is noticed by its silence; after SIGCONT it drops its orphaned jobs and serves again."""
    async with bench(tmp_path, own_process=True) as built, asyncio.timeout(100):
        assert built.process
        requests = await in_phase(built, phase)
        before = Resources.now()
        built.process.send_signal(signal.SIGSTOP)
        await built.fleet.until_status(lambda _: not built.is_connected("shaky"))
        victim = await ends(built, requests)
        assert_survived(victim, phase, outcome="lost", code="agent_lost")
        built.process.send_signal(signal.SIGCONT)
        await built.fleet.until(ready=2)
        await built.fleet.until_status(
            lambda status: all(expert.active == 0 for row in status.agents for expert in row.experts)
        )
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER
        await before.back()
