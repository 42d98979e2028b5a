"""The slow level with real llama.cpp processes and the real SmolLM2 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.provisioning import keeper, trials
from tests.fakes.fleet import fleet
from tests.models import served, smollm2_path

pytestmark = pytest.mark.slow

MODELS = [served(smollm2_path())]


async def test_in_mode_act_an_unmeasured_expert_is_unloaded_and_a_request_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, a request for that very expert loads it again, and what that took is in the books."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.05)
    monkeypatch.setattr(keeper, "DECIDE_EVERY_S", 0.2)
    monkeypatch.setattr(trials, "TRIAL_AFTER_S", 0.5)
    options: dict[str, Any] = {
        "engine_argv": ENGINE_ARGV,
        "models": MODELS,
        "profile": "rtx-4090",
        "agent": {"allow_unload": True},
    }
    async with fleet(tmp_path, agents=("one", "two"), provisioning={"mode": "act"}, **options) as running:

        def cold(status: CoordinatorStatus) -> list[str]:
            return [row.agent_name for row in status.agents for one in row.experts if one.state == "cold"]

        await running.until_status(lambda status: len(cold(status)) == 1)
        [name] = cold(running.coordinator.status())
        assert running.agents[name].engine_pids() == {"smollm2": None}
        gone = next(row for row in running.coordinator.status().agents if row.agent_name == name)
        async with await running.chat("What is 2+2?", model=f"{gone.agent_id}/smollm2", max_tokens=4) as said:
            assert said.status == 200, await said.text()
        await running.until_status(
            lambda status: any(
                row.agent_name == name and row.standby and row.standby.energy and row.standby.energy.loading_j > 0.0
                for row in status.agents
            )
        )
