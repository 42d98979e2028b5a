"""Faults as users meet them: with hedging and breakers on, as they are if nobody says otherwise."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moe2.common.status import CoordinatorStatus
from moe2.coordinator.fleet import breaker
from tests.scenarios.faults.bench import (
    ANSWER,
    Bench,
    Resources,
    assert_accounted,
    assert_one_end,
    bench,
    start_steady,
)

DEFAULTS: dict[str, Any] = {}


def outcomes(receipt: dict[str, Any] | None) -> list[tuple[str, str]]:
    assert receipt is not None
    return [(line["agent"], line["outcome"]) for line in receipt["experts"]]


def breakers(built: Bench) -> dict[str, str]:
    """The state of each, by its agent's name."""
    names = {key: name for name, key in built.keys.items()}
    rows = built.fleet.coordinator.status().dispatch.breakers
    return {names[row.expert]: row.state for row in rows if row.state != "closed"}


def restarted(status: CoordinatorStatus, *, times: int) -> bool:
    """So often, and ready again."""
    [expert] = status.agents[0].experts
    return (expert.restarts, expert.state) == (times, "ready")


@pytest.mark.slow
async def test_an_engine_is_killed_beside_its_hedge(tmp_path: Path) -> None:
    """Both were at work on the request: the one that is left answers it, and nobody is asked a third time."""
    async with bench(tmp_path, dispatch=DEFAULTS) as built, asyncio.timeout(100):
        victim = asyncio.create_task(built.ask())
        held = await built.shaky.next_phase()
        await start_steady(built)
        # It waits for its first token for longer than was predicted, so the other one is asked, too.
        hedge = await built.steady.next_phase()
        before = Resources.now()
        os.kill(built.engine_pid(), signal.SIGKILL)
        await built.fleet.until_status(lambda status: any(e.restarts for row in status.agents for e in row.experts))
        for control, step in ((built.shaky, held), (built.steady, hedge)):
            control.release()
            step.answer()
        ended = await victim
        await built.fleet.quiet()
        assert_one_end(ended)
        assert_accounted(ended)
        assert (ended.text, ended.error) == (ANSWER, None)
        assert outcomes(ended.receipt) == [("shaky", "failed"), ("steady", "answered")]
        assert built.fleet.coordinator.status().dispatch.hedges_won == 1
        await built.fleet.until(ready=2)
        assert breakers(built) == {}, "one crash is no habit"
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER
        await before.back()


@pytest.mark.slow
async def test_a_silent_link_costs_nobody_its_answer(tmp_path: Path) -> None:
    """The hedge answers before anybody knows that the link is dead; what the first one spent nobody can say."""
    async with bench(tmp_path, dispatch=DEFAULTS) as built, asyncio.timeout(100):
        victim = asyncio.create_task(built.ask(stream=True))
        held = await built.shaky.next_phase()
        broken = built.proxy.latest
        broken.up.drop()
        broken.down.drop()
        built.steady.free = True
        await start_steady(built)
        ended = await victim
        await broken.over.wait()
        built.shaky.release()
        held.answer()
        await built.fleet.quiet()
        assert_one_end(ended)
        assert (ended.text, ended.error) == (ANSWER, None)
        [entry] = built.request_ends()
        assert (entry["outcome"], entry["joules"], entry["energy_quality"]) == ("completed", None, "unmeasured")
        await built.fleet.until(ready=2)
        assert breakers(built) == {}
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER


@pytest.mark.slow
async def test_a_link_that_breaks_in_mid_stream_is_resumed(tmp_path: Path) -> None:
    """For a client that asked for it: no gap, no word twice, and all of it is useful work."""
    async with bench(tmp_path, dispatch=DEFAULTS) as built, asyncio.timeout(100):
        victim = asyncio.create_task(built.ask(stream=True, moe2={"resume": True}))
        for _ in range(3):
            (await built.shaky.next_phase()).answer()
        held = await built.shaky.next_phase()
        built.steady.free = True
        await start_steady(built)
        built.proxy.latest.reset()
        ended = await victim
        built.shaky.release()
        held.answer()
        await built.fleet.quiet()
        assert_one_end(ended)
        assert_accounted(ended)
        assert (ended.text, ended.error) == (ANSWER, None)
        assert outcomes(ended.receipt) == [("shaky", "broken_off"), ("steady", "answered")]
        assert built.fleet.coordinator.status().dispatch.resumed == 1


@pytest.mark.slow
async def test_an_engine_that_keeps_being_killed_loses_its_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was killed with is answered once it is back: the fault is its own, and traffic stops until a probe."""
    # It opens for longer than this test takes, and its time is up when the test says so.
    monkeypatch.setattr(breaker, "FIRST_OPEN_S", 600.0)
    async with bench(tmp_path, dispatch=DEFAULTS) as built, asyncio.timeout(100):
        built.shaky.free = True
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER
        before = Resources.now()
        for kills in range(1, breaker.MIN_FAILURES + 1):
            built.shaky.free = False
            request = asyncio.create_task(built.ask(model=built.pinned("shaky")))
            held = await built.shaky.next_phase()
            os.kill(built.engine_pid(), signal.SIGKILL)
            built.shaky.release()
            held.answer()
            ended = await request
            assert_one_end(ended)
            assert_accounted(ended)
            assert (ended.text, ended.error) == (ANSWER, None)
            assert outcomes(ended.receipt) == [("shaky", "failed"), ("shaky", "answered")]
            await built.fleet.until_status(partial(restarted, times=kills))
        assert breakers(built) == {"shaky": "open"}
        refused = await built.ask(model=built.pinned("shaky"))
        assert refused.error is not None
        assert (refused.status, refused.error["code"]) == (503, "no_live_expert")
        built.shaky.free = True
        opened = built.fleet.coordinator._service._judge.breakers._breakers[built.pinned("shaky")]
        opened.open_until_s = asyncio.get_running_loop().time()
        assert breakers(built) == {"shaky": "half_open"}
        assert (await built.ask(model=built.pinned("shaky"))).text == ANSWER
        assert breakers(built) == {}
        await built.fleet.quiet()
        await before.back()
