"""Two hosts with one identity, on a real coordinator."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from moe2.agent.link.identity import machine_fingerprint
from moe2.common.link.messages import Hello, Refused, Welcome
from moe2.common.link.wire import wire_codec
from moe2.coordinator.fleet.register_file import RegisterFile
from tests.fakes.fleet import TOKEN, Fleet, fleet

CODEC = wire_codec()


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that is asked has half a second to answer."""
    monkeypatch.setattr("moe2.coordinator.fleet.hub.PROBE_S", 0.5)


@pytest.fixture
def _never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has to wait until a holder was asked waits for ever."""
    monkeypatch.setattr("moe2.coordinator.fleet.hub.PROBE_S", 1e6)


async def claim(
    stack: AsyncExitStack, running: Fleet, instance_id: str | None
) -> tuple[aiohttp.ClientWebSocketResponse, Welcome | Refused]:
    """A peer that says hello and then nothing more, as one whose host lost its power; what it was answered."""
    url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
    websocket = await stack.enter_async_context(running.http.ws_connect(url, headers=headers))
    hello = Hello(
        protocol_min=1,
        protocol_max=2,
        agent_id="agent-1",
        agent_name="raw",
        agent_version="0",
        instance_id=instance_id,
    )
    await websocket.send_bytes(CODEC.encode(hello))
    answer = CODEC.decode(await websocket.receive_bytes())
    assert isinstance(answer, Welcome | Refused)
    return websocket, answer


@pytest.mark.slow
@pytest.mark.usefixtures("_soon")
async def test_of_two_hosts_with_one_identity_the_living_one_keeps_it(tmp_path: Path) -> None:
    """The other is refused, both sides say so by name, and requests go on without a failure."""
    async with fleet(tmp_path) as running:
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        copy = await running.start_agent("two")
        await running.until_status(lambda _: "agent_id_shared" in {each.code for each in copy.status().warnings})
        [warning] = [each for each in running.coordinator.status().warnings if each.code == "agent_id_shared"]
        [told] = [each for each in copy.status().warnings if each.code == "agent_id_shared"]
        for name in ("one (", "two ("):
            assert name in warning.message
            assert name in told.message
        assert copy.status().link.attempts == 1
        [row] = running.coordinator.status().agents
        assert (row.agent_name, row.connected) == ("one", True)
        assert running.agents["one"].status().link.attempts == 1
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_a_copy_on_another_machine_enrols_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token that was copied along; the original is not disturbed, and the copy says what it is."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("1" * 32)
    theirs.write_text("2" * 32)
    monkeypatch.setattr(
        "moe2.agent.link.identity.machine_fingerprint", lambda _: machine_fingerprint(tmp_path / "here")
    )
    (tmp_path / "here").symlink_to(ours)
    async with fleet(tmp_path) as running:
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        (tmp_path / "here").unlink()
        (tmp_path / "here").symlink_to(theirs)
        copy = await running.start_agent("two")
        await running.until(ready=2)
        assert {agent.agent_name for agent in RegisterFile(tmp_path).current().agents} == {"one", "two"}
        assert "identity_copied" in {warning.code for warning in copy.status().warnings}
        assert running.agents["one"].status().link.attempts == 1


@pytest.mark.usefixtures("_never")
async def test_an_agent_whose_old_connection_is_dead_reconnects_at_once(tmp_path: Path) -> None:
    """The same process comes again, before the coordinator has missed its heartbeats."""
    async with fleet(tmp_path, agents=()) as running, AsyncExitStack() as stack:
        for _ in range(2):
            _, answer = await claim(stack, running, "a")
            assert isinstance(answer, Welcome)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("instance_id", ["b", None])
async def test_an_agent_that_was_started_again_takes_the_place_of_its_dead_connection(
    tmp_path: Path, instance_id: str | None
) -> None:
    """After a power failure, whose old connection answers no more; older agents do not name their process."""
    async with fleet(tmp_path, agents=()) as running, AsyncExitStack() as stack:
        await claim(stack, running, "a" if instance_id else None)
        _, answer = await claim(stack, running, instance_id)
        assert isinstance(answer, Welcome)
        assert not [each for each in running.coordinator.status().warnings if each.code == "agent_id_shared"]


@pytest.mark.usefixtures("_never")
async def test_a_claimant_that_leaves_while_it_waits_costs_nothing(tmp_path: Path) -> None:
    """Its connection is forgotten, and the holder stays."""
    async with fleet(tmp_path, agents=()) as running, AsyncExitStack() as stack:
        await claim(stack, running, "a")
        hub = running.coordinator._hub
        waiting = asyncio.create_task(claim(stack, running, "b"))
        await running.until_status(lambda _: len(hub._connections) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stack.aclose()
        await running.until_status(lambda _: not hub._connections)
