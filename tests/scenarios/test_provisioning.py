"""The slow level through the whole fleet: sleep and wake by an operator, by need, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moe2.agent import presence
from moe2.agent.daemon import AgentDaemon
from moe2.agent.standby.logind import Logind
from moe2.common import magicpacket
from moe2.common.link.messages import Suspend
from moe2.common.localclient import RefusedError
from moe2.common.magicpacket import send_magic_packet
from moe2.common.standby import Standby, WakeAddress
from moe2.common.status import AgentRow, CoordinatorStatus
from moe2.coordinator.cli.contradictions import contradictions
from moe2.coordinator.cli.fleet import told
from moe2.coordinator.http.paths import WISH_PATH
from moe2.coordinator.provisioning import keeper, steering, trials, waking
from moe2.coordinator.settings import CoordinatorSettings
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.idlehost import keep_idle_watts
from tests.fakes.logind import FakeLogind, fake_logind
from tests.scenarios.test_standby import ALLOWED, FakeHost

pytestmark = pytest.mark.slow


@asynccontextmanager
async def sleepy(
    root: Path, *, mode: str, wakes: bool = True, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[tuple[Fleet, AgentDaemon, FakeHost]]:
    """A fleet of one host that may sleep, and that the operator's command wakes, if it `wakes` at all."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.02)
    woken = root / "woken"
    provisioning = {"mode": mode, "wake_command": ("/usr/bin/touch", str(woken))}
    host = FakeHost()
    async with fleet(root, agents=(), provisioning=provisioning, **options) as running:
        agent = await running.start_agent("one", agent=ALLOWED, control=host, profile="rtx-4090")
        await running.until(ready=1)

        async def wake_when_told() -> None:
            while True:
                if wakes and woken.exists():
                    woken.unlink()
                    host.wake(3600.0)
                await asyncio.sleep(0.01)

        waker = asyncio.create_task(wake_when_told())
        try:
            yield running, agent, host
        finally:
            waker.cancel()
            host.wake(1.0)


async def wish(running: Fleet, verb: str, host: str = "one") -> str:
    """An operator's word, over the local socket as the command line says it."""
    return str((await running.tell(WISH_PATH, verb=verb, host=host))["done"])


def row(status: CoordinatorStatus) -> AgentRow:
    return status.agents[0]


async def slept_once(running: Fleet) -> None:
    """Has the host sleep and wake, so that it is known what waking takes."""
    await wish(running, "sleep")
    await running.until_status(lambda status: row(status).asleep)
    await wish(running, "wake")
    await running.until(ready=1)
    await running.until_status(lambda status: bool((standby := row(status).standby) and standby.wake_cost))


async def test_an_operator_sends_a_host_to_sleep_and_wakes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleeping host is asleep and not lost, its model is still listed, and it comes back as the same agent."""
    async with sleepy(tmp_path, mode="observe", monkeypatch=monkeypatch) as (running, agent, host):
        identity = agent.status().agent_id
        assert "goes to sleep" in await wish(running, "sleep")
        await host.asleep.wait()
        await running.until_status(lambda status: row(status).asleep and not row(status).connected)
        async with running.http.get("/v1/models") as listed:
            assert "fake" in {one["id"] for one in (await listed.json())["data"]}
        assert "Asleep: one." in told(running.coordinator.status())
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 503
        assert await wish(running, "wake") == "one is being woken."
        await running.until(ready=1)
        assert row(running.coordinator.status()).agent_id == identity
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200


async def test_a_request_that_only_a_sleeping_host_can_serve_wakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mode act it waits for the wake and is answered."""
    async with sleepy(tmp_path, mode="act", monkeypatch=monkeypatch) as (running, agent, _):
        await slept_once(running)
        running.coordinator._hub.send(agent.status().agent_id, Suspend(command_id="by-hand"))
        await running.until_status(lambda status: row(status).asleep)
        async with await running.chat("one two", max_tokens=2) as said:
            assert said.status == 200, await said.text()
            assert (await said.json())["choices"][0]["message"]["content"] == "one two "


async def test_a_budget_that_the_measured_wake_breaks_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that may not wait for as long as waking took is refused, and nobody is woken."""
    async with sleepy(tmp_path, mode="act", monkeypatch=monkeypatch) as (running, agent, _):
        await slept_once(running)
        running.coordinator._hub.send(agent.status().agent_id, Suspend(command_id="by-hand"))
        await running.until_status(lambda status: row(status).asleep)
        async with await running.chat("hi", max_tokens=1, moe2={"ttft_budget_s": 1e-6}) as said:
            assert said.status == 422, await said.text()
        assert row(running.coordinator.status()).asleep


async def test_a_wake_that_fails_is_told_and_the_request_gets_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not wake in its time is not counted on until it is seen; the warning names it. A request that
    waited for it gets its error then."""
    monkeypatch.setattr(steering, "MAX_UNMEASURED_WAKE_S", 0.2)
    options: dict[str, Any] = {"mode": "act", "wakes": False, "dispatch": {"queue_s": 0.0}}
    async with sleepy(tmp_path, monkeypatch=monkeypatch, **options) as (running, agent, host):
        running.coordinator._hub.send(agent.status().agent_id, Suspend(command_id="by-hand"))
        await running.until_status(lambda status: row(status).asleep)
        async with await running.chat("hi", max_tokens=1) as said:
            assert (said.status, "was not woken" in await said.text()) == (502, True)
        host.wake(10.0)
        await running.until(ready=1)
        await wish(running, "sleep")
        await running.until_status(lambda status: row(status).asleep)
        await wish(running, "wake")
        await running.until_status(lambda status: "wake_failed" in {one.code for one in status.warnings})
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 503
        host.wake(10.0)
        await running.until(ready=1)
        await running.until_status(lambda status: "wake_failed" not in {one.code for one in status.warnings})
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200


@pytest.mark.parametrize("mode", ["act", "observe"])
async def test_a_host_that_sleeps_is_no_trouble_where_a_request_wakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Nobody is told that it is missing; the service is ready if it can be woken, so that balancers send requests."""
    async with sleepy(tmp_path, mode=mode, wakes=False, monkeypatch=monkeypatch) as (running, agent, _):
        running.coordinator._hub.send(agent.status().agent_id, Suspend(command_id="by-hand"))
        await running.until_status(lambda status: row(status).asleep)
        codes = {one.code for one in running.coordinator.status().warnings}
        assert "agent_disconnected" not in codes
        assert ("no_live_expert" in codes) == (mode == "observe")
        async with running.http.get("/readyz") as said:
            assert said.status == (200 if mode == "act" else 503)


async def test_a_sleeping_host_is_found_again_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that starts while a host sleeps knows that it sleeps, and what an operator has said."""
    async with sleepy(tmp_path, mode="observe", monkeypatch=monkeypatch) as (running, _, host):
        await wish(running, "sleep")
        await host.asleep.wait()
        await running.until_status(lambda status: row(status).asleep)
        async with asyncio.timeout(10):
            while b'"sleepers":[]' in (tmp_path / "provisioning.json").read_bytes():
                await asyncio.sleep(0.01)
        kept = (tmp_path / "provisioning.json").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "provisioning.json").write_bytes(kept)
    async with fleet(other, agents=()) as again:
        await again.until_status(lambda status: len(status.agents) == 1 and row(status).asleep)
        provisioning = again.coordinator.status().provisioning
        assert provisioning is not None
        assert provisioning.kept_asleep == ("one",)


@pytest.mark.parametrize(
    ("verb", "host", "said"),
    [
        ("sleep", "nobody", "No host is called 'nobody'"),
        ("dance", "one", "There is no order 'dance' for hosts"),
        ("sleep", "one", "allow_suspend = true"),
    ],
)
async def test_a_word_that_cannot_be_followed_is_refused(tmp_path: Path, verb: str, host: str, said: str) -> None:
    """An unknown host, an unknown word and an agent that forbids it are errors with what to do."""
    async with fleet(tmp_path) as running:
        with pytest.raises(RefusedError) as refused:
            await wish(running, verb, host)
        assert said in refused.value.message


async def test_by_default_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode observe decides, says so, and sends no command."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.01)
    monkeypatch.setattr(keeper, "DECIDE_EVERY_S", 0.02)
    async with fleet(tmp_path, profile="rtx-4090", agent=ALLOWED) as running:
        sent: list[Any] = []
        real = running.coordinator._hub.send

        def noted(agent_id: str, message: Any) -> bool:
            sent.append(message)
            return real(agent_id, message)

        monkeypatch.setattr(running.coordinator._hub, "send", noted)
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200
        await running.until_status(lambda status: bool(status.provisioning and status.provisioning.status == "optimal"))
        assert [type(one).__name__ for one in sent] == ["Submit"]
        lines = told(running.coordinator.status())
        assert lines[1] == "Mode observe: this is what it would do; it touches nothing."
        assert any(line.startswith("Wanted in memory") for line in lines)


async def test_contradictory_limits_are_told_with_the_cheapest_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More hosts than the fleet has, or one that nobody is called, are warnings, and nobody is touched. `check-config`
    says so beside the running coordinator, and after its end by what it has kept."""
    monkeypatch.setattr(keeper, "WATCH_EVERY_S", 0.01)
    monkeypatch.setattr(keeper, "DECIDE_EVERY_S", 0.02)
    async with fleet(tmp_path, provisioning={"min_hosts": {"fake": 3}, "pinned": ["one", "onne"]}) as running:
        await running.until_status(lambda status: "provisioning_infeasible" in {one.code for one in status.warnings})
        remedies = {one.code: one.remedy for one in running.coordinator.status().warnings}
        too_few = "3 hosts with fake are needed, and the fleet has 1. Ask for 1."
        unknown = "pinned: no agent is called onne. Correct the name, or start that agent; known are one."
        assert (remedies["provisioning_infeasible"], remedies["provisioning_unknown_host"]) == (too_few, unknown)
        settings = CoordinatorSettings.model_validate(running.configuration)
        expected = (f"provisioning.{unknown}", f"provisioning: whatever is asked, these limits contradict. {too_few}")
        assert await asyncio.to_thread(contradictions, settings) == expected
    later = await asyncio.to_thread(contradictions, settings)
    assert [line.partition(" (By what a coordinator knew ")[0] for line in later] == list(expected)


class ListeningHost(Logind):
    """A host that a fake logind on a real bus suspends, and that sleeps until a magic packet for it comes."""

    def __init__(self, logind: FakeLogind, listener: socket.socket) -> None:
        super().__init__(("busctl", f"--address={logind.address}", "--json=short", "--timeout=20"))
        self._logind, self._listener = logind, listener
        self._woken = 0

    @property
    def asked(self) -> int:
        return sum(method == "Suspend" for method, _ in self._logind.calls)

    def suspended_s(self) -> float:
        with suppress(BlockingIOError):
            while packet := self._listener.recv(200):
                if packet == b"\xff" * 6 + bytes.fromhex("3c6d66010203") * 16 and self._woken < self.asked:
                    self._woken += 1
        return 3600.0 * self._woken


CARD = WakeAddress(
    interface="eth0", mac="3c:6d:66:01:02:03", network="127.0.0.0/8", broadcast="127.255.255.255", armed=True
)


@asynccontextmanager
async def never_slept(
    root: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fleet, ListeningHost]]:
    """Two hosts, of which `one` may be suspended and never was; a magic packet on the loopback's network wakes it."""
    for module, name, value in (
        (keeper, "WATCH_EVERY_S", 0.02),
        (keeper, "DECIDE_EVERY_S", 0.1),
        (trials, "TRIAL_AFTER_S", 0.2),
        (trials, "TRIAL_S", 0.5),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(presence, "wake_addresses", lambda: (CARD,))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.255.255.255", 0))
        listener.setblocking(False)
        monkeypatch.setattr(magicpacket, "PORT", listener.getsockname()[1])
        monkeypatch.setattr(waking, "send_magic_packet", partial(send_magic_packet, port=listener.getsockname()[1]))
        async with fake_logind(root) as logind, fleet(root, agents=(), provisioning={"mode": mode}) as running:
            host = ListeningHost(logind, listener)
            keep_idle_watts(root / "one", "fake")
            allowed = {"allow_suspend": True, "asleep_w": 3.0}
            await running.start_agent("one", agent=allowed, control=host, profile="rtx-4090")
            await running.start_agent("two", profile="rtx-4090")
            await running.until(ready=2)
            yield running, host


def slept_row(status: CoordinatorStatus) -> AgentRow:
    return next(row for row in status.agents if row.agent_name == "one")


NEEDS_A_BUS = pytest.mark.skipif(
    not (shutil.which("busctl") and shutil.which("dbus-daemon")), reason="needs busctl, dbus-daemon"
)


@NEEDS_A_BUS
async def test_in_mode_act_a_host_that_never_slept_is_put_to_sleep_once_and_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """logind suspends it, a magic packet brings it back, what both took is in its report, and the service goes on."""
    async with never_slept(tmp_path, "act", monkeypatch) as (running, host):
        await running.until_status(lambda status: slept_row(status).asleep)
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200
        await running.until(ready=2)
        await running.until_status(
            lambda status: bool(
                (told := slept_row(status).standby) and told.wake_cost and told.suspend_cost and told.asleep_s
            )
        )
        assert "wake_failed" not in {one.code for one in running.coordinator.status().warnings}
        assert host.asked == 1


@NEEDS_A_BUS
async def test_a_request_for_a_host_that_sleeps_only_to_be_measured_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wake is unmeasured, and the request waits for it all the same, however long the trial would have been."""
    async with never_slept(tmp_path, "act", monkeypatch) as (running, _):
        monkeypatch.setattr(trials, "TRIAL_S", 1e6)
        await running.until_status(lambda status: slept_row(status).asleep)
        name = f"{slept_row(running.coordinator.status()).agent_id}/fake"
        async with await running.chat("one two", model=name, max_tokens=2) as said:
            assert said.status == 200, await said.text()


@NEEDS_A_BUS
async def test_mode_observe_says_what_it_would_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names host and reason, and nobody is suspended."""
    async with never_slept(tmp_path, "observe", monkeypatch) as (running, host):
        await running.until_status(lambda status: any("It would: suspend one" in line for line in told(status)))
        assert any("unmeasured: for two minutes" in line for line in told(running.coordinator.status()))
        assert host.asked == 0


async def test_a_host_that_nobody_could_wake_is_not_sent_to_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator is told what is missing, in place of a word that nothing follows."""
    monkeypatch.setattr(presence, "wake_addresses", lambda: ())
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("one", agent=ALLOWED, control=FakeHost())
        await running.until(ready=1)
        with pytest.raises(RefusedError) as refused:
            await wish(running, "sleep")
        assert "Nobody could wake one:" in refused.value.message


async def test_a_magic_packet_reaches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens on the host's broadcast address receives its hardware address sixteen times."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        monkeypatch.setattr(waking, "send_magic_packet", partial(send_magic_packet, port=port))
        address = WakeAddress(interface="eth0", mac="3c:6d:66:01:02:03", network="127.0.0.0/8", broadcast="127.0.0.1")
        asleep = _row("asleep", connected=False, address=address)
        awake = _row("awake", connected=True, address=address)
        sent: list[tuple[str, Any]] = []

        def send(agent_id: str, message: Any) -> bool:
            sent.append((agent_id, message))
            return True

        await waking.wake(asleep, (asleep, awake), send, None, "order")
        packet = await asyncio.get_running_loop().sock_recv(listener, 1024)
    assert packet == b"\xff" * 6 + bytes.fromhex("3c6d66010203") * 16
    [(agent_id, message)] = sent
    assert (agent_id, message.mac, message.network) == ("awake", "3c:6d:66:01:02:03", "127.0.0.0/8")


def _row(name: str, *, connected: bool, address: WakeAddress) -> AgentRow:
    return AgentRow(
        agent_id=name,
        agent_name=name,
        version="1",
        connected=connected,
        draining=False,
        report_age_s=None,
        rtt_s=None,
        host=None,
        experts=(),
        sensors=(),
        warnings=(),
        standby=Standby(wake_addresses=(address,)),
        asleep=not connected,
    )
