"""Sensors of real trees and plugs, from the host to the receipt: who owns a device, what appears late, the wall."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.energy import monitor
from moe2.agent.energy.wall import Plug
from moe2.common.status import CoordinatorStatus
from tests.fakes import sysfs
from tests.fakes.agentprocess import agent_process
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.fakes.nvidialibrary import compile_nvml
from tests.fakes.plug import plugged_in

pytestmark = pytest.mark.slow


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    """An Orin NX with a /run, where nothing else measures."""
    root = tmp_path / "jetson"
    sysfs.orin_nx(root)
    (root / "run").mkdir()
    return root


def _host_w(status: CoordinatorStatus) -> float | None:
    """The hosts' power as anyone adds it up: over all sensors that tell one."""
    known = [sensor.power_w for row in status.agents for sensor in row.sensors if sensor.power_w is not None]
    return sum(known) if known else None


async def _energy(running: Fleet, model: str) -> dict[str, Any]:
    answer = await running.chat("hello", model=model)
    assert answer.status == 200
    receipt: dict[str, Any] = (await answer.json())["moe2"]
    energy: dict[str, Any] = receipt["energy"]
    return energy


async def test_of_two_agents_on_one_host_only_one_counts_its_joules(tmp_path: Path, jetson: Path) -> None:
    """The first measures the module; the second's joules are unmeasured, and its status says who measures."""
    async with fleet(tmp_path, agents=(), sensors_root=jetson) as running:
        for name in ("first", "second"):
            gguf = tmp_path / "fake.gguf"
            await running.start_agent(name, sensors_root=jetson, models=[{"name": f"m-{name}", "path": gguf}])
            await running.until(ready=len(running.agents))
        first, second = await _energy(running, "m-first"), await _energy(running, "m-second")
        warnings = {warning.code: warning for warning in running.agents["second"].status().warnings}
    assert first["joules"] > 0
    assert second["joules"] is None
    assert "the agent first" in second["reason"]
    assert "the agent first" in warnings["device_owned"].message


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the fake driver library")
async def test_of_two_agents_on_one_nvidia_card_only_one_counts_its_joules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with a driver that tells both of 100 W: status names the owner, and who comes second says so."""
    compile_nvml(tmp_path)
    (tmp_path / "driver").write_text("live_mw 100000\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("FAKE_NVML_STATE", str(tmp_path / "driver"))
    (tmp_path / "no-sensors/run").mkdir(parents=True)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(fleet(tmp_path, agents=()))
        for count, name in enumerate(("first", "second"), start=1):
            process = agent_process(tmp_path, name, running.coordinator.agents_url, token=TOKEN, profile="nvml")
            await stack.enter_async_context(process)
            await running.until(ready=count)
        await running.until_status(lambda status: _host_w(status) is not None)
        energies: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
        # An answer may be over between two readings, and is unmeasured then.
        while not energies["second"] or all(energy["joules"] is None for energy in energies["first"]):
            for answer in await asyncio.gather(*(running.chat("hello", max_tokens=2) for _ in range(4))):
                receipt = (await answer.json())["moe2"]
                energies[answer.headers["x-moe2-agent"]].append(receipt["energy"])
        status = running.coordinator.status()
    rows = {row.agent_name: row for row in status.agents}
    assert [sensor.owned for row in (rows["first"], rows["second"]) for sensor in row.sensors] == [True, False]
    assert _host_w(status) == pytest.approx(100.0, rel=0.01)
    [warning] = [one for one in status.warnings if one.code == "device_owned"]
    assert "the agent first" in warning.message
    for energy in (energy for energy in energies["first"] if energy["joules"] is not None):
        assert energy["joules"] > 0
        assert energy["source"] == "nvml.total_energy"
    for energy in energies["second"]:
        assert energy["joules"] is None
        assert "the agent first" in energy["reason"]


async def test_a_sensor_that_appears_after_the_start_measures_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver was loaded while the agent served."""
    monkeypatch.setattr(monitor, "_FIRST_SEARCH_S", 0.02)
    root = tmp_path / "jetson"
    root.mkdir()
    async with fleet(tmp_path, sensors_root=root) as running:
        before = await _energy(running, "fake")
        sysfs.orin_nx(root)
        await running.until_status(lambda status: _host_w(status) is not None)
        after = await _energy(running, "fake")
    assert before["joules"] is None
    assert after["joules"] > 0
    assert after["source"] == "ina3221"


async def test_a_fleets_power_is_the_rails_and_not_the_rails_and_the_wall(tmp_path: Path, jetson: Path) -> None:
    """A plug beside the rails is shown, and not added: neither to the host nor to a request."""
    with plugged_in() as plug:
        plugs = (Plug("shelly", plug.url),)
        async with fleet(tmp_path, sensors_root=jetson, plugs=plugs) as running:
            await running.until_status(
                lambda status: (
                    all(
                        sensor.power_w or sensor.uncounted_w
                        for row in status.agents
                        for sensor in row.sensors
                        if sensor.state == "present"
                    )
                    and _host_w(status) is not None
                )
            )
            power_w = _host_w(running.coordinator.status())
            energy = await _energy(running, "fake")
    assert power_w == pytest.approx(16.57, abs=0.01)
    assert energy["scope"] == "module_input"


async def test_budgets_by_the_wall_have_receipts_of_the_wall(tmp_path: Path, jetson: Path) -> None:
    """With budget_scope = "wall" a request's joules are the plug's, and the fleet's power as well."""
    with plugged_in() as plug:
        plugs = (Plug("tasmota", plug.url, lag_s=0.2),)
        async with fleet(tmp_path, sensors_root=jetson, plugs=plugs, by_wall=True) as running:
            await running.until_status(lambda status: _host_w(status) is not None)
            power_w = _host_w(running.coordinator.status())
            energy = await _energy(running, "fake")
    assert power_w == pytest.approx(57.3)
    assert energy["scope"] == "wall"
    assert energy["source"] == "wall.tasmota"
