"""Hosts whose wall clocks disagree: everything on the wire is relative."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from moe2.common.localclient import fetch
from tests.fakes.agentprocess import agent_process
from tests.fakes.control import expert_control
from tests.fakes.fleet import TOKEN, fleet

YEAR_S = 365 * 86_400.0


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [YEAR_S, -YEAR_S], ids=["ahead", "behind"])
async def test_a_wrong_wall_clock_changes_nothing(tmp_path: Path, ahead_s: float) -> None:
    """An agent a year off is fresh, answers within its budgets, and its deadlines are kept to the request's length."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(expert_control(tmp_path / "control.sock"))
        running = await stack.enter_async_context(fleet(tmp_path, agents=(), api={"request_timeout_s": 2.0}))
        await stack.enter_async_context(
            agent_process(
                tmp_path,
                "off",
                running.coordinator.agents_url,
                token=TOKEN,
                expert=("--control", str(tmp_path / "control.sock")),
                ahead_s=ahead_s,
            )
        )
        async with asyncio.timeout(100):
            await running.until(ready=1)
            status = json.loads(await asyncio.to_thread(fetch, tmp_path / "off.sock", "/status"))
            assert abs(status["link"]["connected_since_unix_s"] - time.time()) > YEAR_S / 2
            row = running.coordinator.status().agents[0]
            assert row.report_age_s is not None
            assert 0 <= row.report_age_s < 60
            request = asyncio.create_task(running.chat("a b", max_tokens=2))
            step = await control.next_phase()
            # It is kept waiting: its time is up by both clocks' count of seconds, not at once and not in a year.
            answer = await request
            assert answer.status == 504
            receipt = (await answer.json())["moe2"]
            assert receipt["seconds"]["total"] >= 2.0
            control.release()
            step.answer()
            await running.quiet()
            async with await running.chat("a b", max_tokens=2) as answered:
                receipt = (await answered.json())["moe2"]
            assert receipt["experts"][0]["outcome"] == "answered"
            assert 0 <= receipt["seconds"]["queue"] <= receipt["seconds"]["total"]
