"""What mode act has put to sleep comes back when the mode is changed, while the coordinator runs and over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from moe2.common.link.messages import Suspend
from moe2.coordinator.cli.fleet import told
from moe2.coordinator.provisioning import keeper
from moe2.coordinator.provisioning.state_files import Memory
from moe2.coordinator.provisioning.steering import Away
from tests.fakes.fleet import POLL_S, Fleet, fleet
from tests.scenarios.test_provisioning import row
from tests.scenarios.test_standby import FakeHost

pytestmark = pytest.mark.slow


def kept(root: Path) -> Memory:
    """What the slow level has written down."""
    path = root / "provisioning.json"
    return msgspec.json.decode(path.read_bytes(), type=Memory) if path.exists() else Memory()


async def put_to_sleep(running: Fleet, host: FakeHost) -> None:
    """Has `one` suspended as the slow level does when the traffic does not want it: it remembers that it did.

    That its own decisions are remembered so is a claim of its unit tests; they take measured minutes to come about.
    """
    agent_id = running.agents["one"].status().agent_id
    assert running.coordinator._hub.send(agent_id, Suspend(command_id="as the slow level does"))
    await host.asleep.wait()
    await running.until_status(lambda status: any(one.asleep for one in status.agents))
    running.coordinator._keeper._steering.restore_away((Away(host=agent_id),))


@pytest.mark.parametrize("mode", ["observe", "off"])
async def test_hosts_that_act_put_to_sleep_are_woken_when_the_mode_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The status names them until they are back, and nothing is put to sleep again."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.02)
    woken, host = tmp_path / "woken", FakeHost()
    provisioning = {"mode": "act", "wake_command": ("/usr/bin/touch", str(woken))}
    async with fleet(tmp_path, agents=(), provisioning=provisioning) as running:
        allowed = {"allow_suspend": True, "asleep_w": 3.0}
        await running.start_agent("one", agent=allowed, control=host, profile="rtx-4090")
        await running.start_agent("two", profile="rtx-4090")
        await running.until(ready=2)
        await put_to_sleep(running, host)
        running.configuration["provisioning"]["mode"] = mode
        running.coordinator.reload()
        async with asyncio.timeout(20):
            while not woken.exists():
                await asyncio.sleep(POLL_S)
        assert any(
            line.startswith("Being brought back, as mode act is over: one.")
            for line in told(running.coordinator.status())
        )
        host.wake(3600.0)
        await running.until(ready=2)
        await running.until_status(lambda status: not (status.provisioning and status.provisioning.returning))
        assert kept(tmp_path).away == ()


@pytest.mark.parametrize(("is_ours", "mode"), [(True, "off"), (True, "observe"), (False, "off")])
async def test_over_a_restart_only_what_act_has_put_to_sleep_is_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, is_ours: bool
) -> None:
    """A host that went to sleep for any other reason is left asleep by a coordinator that does not act."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.02)
    host = FakeHost()
    async with fleet(tmp_path, agents=(), provisioning={"wake_command": ("/usr/bin/true",)}) as running:
        await running.start_agent("one", agent={"allow_suspend": True}, control=host, profile="rtx-4090")
        await running.until(ready=1)
        agent_id = row(running.coordinator.status()).agent_id
        running.coordinator._keeper.wish("sleep", "one")
        await host.asleep.wait()
        await running.until_status(lambda status: row(status).asleep)
        async with asyncio.timeout(10):
            while not kept(tmp_path).sleepers:
                await asyncio.sleep(POLL_S)
        memory = kept(tmp_path)
        host.wake(1.0)
    other, woken = tmp_path / "other", tmp_path / "woken"
    other.mkdir()
    away = (Away(host=agent_id),) if is_ours else ()
    (other / "provisioning.json").write_bytes(msgspec.json.encode(Memory(sleepers=memory.sleepers, away=away)))
    command = ("/usr/bin/touch", str(woken))
    async with fleet(other, agents=(), provisioning={"mode": mode, "wake_command": command}) as again:
        await again.until_status(lambda status: len(status.agents) == 1 and row(status).asleep)
        if is_ours:
            async with asyncio.timeout(10):
                while not woken.exists():
                    await asyncio.sleep(POLL_S)
        else:
            again.coordinator._keeper.wish("pin", "one")  # Looks at the fleet once, like any other reason to.
            again.coordinator._keeper.wish("unpin", "one")
            await again.until_status(lambda status: row(status).asleep)
            assert not woken.exists()
