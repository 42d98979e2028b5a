"""Agents on hosts with several boards, divided ones and ones that sleep, through NVIDIA's library as a stand-in."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moe2.common.link.messages import CommandAnswer, CommandOutcome, UnloadModel
from moe2.common.link.reports import SensorReport
from moe2.common.status import AgentRow
from tests.fakes import sysfs
from tests.fakes.agentprocess import agent_process
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.fakes.nvidialibrary import compile_nvml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the fake driver library"),
]


@dataclass
class Host:
    """A host of one agent, whose driver answers what the file `driver` says."""

    running: Fleet
    process: asyncio.subprocess.Process
    root: Path

    @property
    def tree(self) -> Path:
        """Where its /sys is."""
        return self.root / "no-sensors"

    @property
    def n_wakes(self) -> int:
        """How often the driver was asked what wakes a board."""
        return (self.root / "wakes").stat().st_size

    def row(self) -> AgentRow:
        return self.running.coordinator.status().agents[0]

    def sensor(self, name: str = "nvml:0") -> SensorReport:
        return {sensor.name: sensor for sensor in self.row().sensors}[name]

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        [pid] = [int(pid) for pid, command in commands.items() if b"tests.fakes.expert" in command]
        return pid

    def driver(self, values: Mapping[str, int]) -> None:
        """Have the driver answer so from now on; it never reads half a file."""
        (self.root / "driver.new").write_text("".join(f"{key} {value}\n" for key, value in values.items()))
        (self.root / "driver.new").replace(self.root / "driver")

    async def until(self, code: str) -> None:
        """Wait until the agent warns of this."""
        await self.running.until_status(lambda status: code in {one.code for one in status.agents[0].warnings})

    async def receipt(self) -> dict[str, Any]:
        """The receipt of an answer that was not over between two readings."""
        async with asyncio.timeout(60):
            while True:
                async with await self.running.chat("hello", max_tokens=200) as answer:
                    assert answer.status == 200
                    receipt: dict[str, Any] = (await answer.json())["moe2"]
                if receipt["energy"]["joules"] is not None:
                    return receipt


@asynccontextmanager
async def host(
    root: Path, monkeypatch: pytest.MonkeyPatch, driver: Mapping[str, int], **options: Any
) -> AsyncIterator[Host]:
    compile_nvml(root)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(root))
    monkeypatch.setenv("FAKE_NVML_STATE", str(root / "driver"))
    monkeypatch.setenv("FAKE_NVML_WAKES", str(root / "wakes"))
    (root / "no-sensors/run").mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(fleet(root, agents=()))
        one = Host(running, None, root)  # type: ignore[arg-type]
        one.driver(driver)
        process = agent_process(root, "one", running.coordinator.agents_url, token=TOKEN, profile="nvml", **options)
        one.process = await stack.enter_async_context(process)
        await running.until(ready=1)
        await running.until_status(
            lambda status: any(sensor.power_w is not None for sensor in status.agents[0].sensors)
        )
        yield one


async def test_joules_follow_the_board_that_the_model_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1400 W and 2 W only the 2 W are the request's, once the driver tells that its process is there."""
    boards = {"count": 2, "live_mw": 1_400_000, "live_mw_1": 2_000}
    async with host(tmp_path, monkeypatch, boards) as one:
        one.driver({**boards, "computing_0": 0, "computing_1": one.engine_pid()})
        async with asyncio.timeout(60):
            while True:
                receipt = await one.receipt()
                if receipt["energy"]["joules"] <= 1.05 * 2.0 * receipt["seconds"]["total"]:
                    break
        powers = {sensor.name: sensor.power_w for sensor in one.row().sensors}
    assert receipt["energy"]["joules"] > 0
    assert receipt["energy"]["quality"] == "measured_counter"
    assert powers == {"nvml:0": pytest.approx(1400.0, rel=0.2), "nvml:1": pytest.approx(2.0, rel=0.2)}


async def test_the_joules_of_a_mig_instance_are_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sums up all instances: receipt and status say so, though nobody else can be seen."""
    divided = {"live_mw": 100_000, "mig": 1, "instances": 3}
    async with host(tmp_path, monkeypatch, divided) as one:
        one.driver({**divided, "computing_in_0": one.engine_pid()})
        await one.until("device_shared")
        energy = (await one.receipt())["energy"]
        [warning] = [warning for warning in one.row().warnings if warning.code == "device_shared"]
    assert energy["quality"] == "partial"
    assert "3 MIG instances" in energy["reason"]
    assert "switch MIG off" in warning.remedy


async def test_a_board_of_one_mig_instance_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can be on it."""
    whole = {"live_mw": 100_000, "mig": 1, "instances": 1}
    async with host(tmp_path, monkeypatch, whole) as one:
        one.driver({**whole, "computing_in_0": one.engine_pid()})
        energy = (await one.receipt())["energy"]
        codes = {warning.code for warning in one.row().warnings}
    assert energy["quality"] == "measured_counter"
    assert "device_shared" not in codes


async def test_a_laptops_card_is_left_to_sleep_while_no_model_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call that would wake it, by any of the agent's looks; the next request loads the model and is measured."""
    tree = tmp_path / "no-sensors"
    sysfs.write(tree, "sys/bus/pci/devices/0000:01:00.0/power/control", "auto")
    async with host(tmp_path, monkeypatch, {"live_mw": 100_000}, unloads=True) as one:
        await _unloaded(one)
        await one.running.until_status(lambda _: "can sleep" in (one.sensor().detail or ""))
        # The agent looks for a new power mode more rarely than at its boards.
        await _power_mode_seen(one, "quiet")
        before = one.n_wakes
        await _power_mode_seen(one, "balanced")
        await _power_mode_seen(one, "performance")
        assert one.n_wakes == before
        resting = one.sensor()
        codes = {warning.code for warning in one.row().warnings}
        receipt = await one.receipt()
        await one.running.until_status(lambda _: one.sensor().power_w is not None)
        assert one.n_wakes > before
    assert (resting.state, resting.power_w) == ("present", None)
    assert not {code for code in codes if code.startswith(("sensor", "energy"))}
    assert receipt["energy"]["source"] == "nvml.total_energy"


async def _unloaded(one: Host) -> None:
    hub, answered = one.running.coordinator._hub, asyncio.get_running_loop().create_future()

    def on_answer(_: str, answer: CommandAnswer) -> None:
        answered.set_result(answer.outcome)

    usual = hub._on_answer
    hub._on_answer = on_answer
    try:
        assert hub.send(one.row().agent_id, UnloadModel(command_id="u", model="fake"))
        async with asyncio.timeout(60):
            assert await answered is CommandOutcome.DONE
    finally:
        hub._on_answer = usual


async def _power_mode_seen(one: Host, mode: str) -> None:
    sysfs.write(one.tree, "sys/firmware/acpi/platform_profile", mode)
    await one.running.until_status(
        lambda status: (host := status.agents[0].host) is not None and host.power_mode == mode
    )
