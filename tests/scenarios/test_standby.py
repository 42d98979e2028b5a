"""Who is awake, through the whole fleet with fake experts: commands, their answers, sleep, and measuring oneself."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import AgentDaemon
from moe2.agent.standby.logind import Logind, SuspendError
from moe2.common import magicpacket
from moe2.common.link.messages import (
    Command,
    CommandAnswer,
    CommandOutcome,
    LoadModel,
    Suspend,
    UnloadModel,
    WakeNeighbour,
)
from moe2.common.link.reports import ExpertReport
from moe2.common.status import AgentRow, CoordinatorStatus
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.logind import FakeLogind, fake_logind

pytestmark = pytest.mark.slow

ALLOWED = {"allow_unload": True, "allow_suspend": True}


class FakeHost:
    """A host that can be suspended: it sleeps until `wake`, and its clocks say so."""

    def __init__(self, *, fault: str | None = None, refusal: str | None = None) -> None:
        self._fault = fault
        self._refusal = refusal
        self._suspended_s = 0.0
        self.asleep = asyncio.Event()

    async def fault(self) -> str | None:
        return self._fault

    async def suspend(self) -> None:
        if self._refusal is not None:
            raise SuspendError(self._refusal)
        self.asleep.set()

    def suspended_s(self) -> float:
        return self._suspended_s

    def wake(self, slept_s: float) -> None:
        """The host has slept for so long, and runs again."""
        self._suspended_s += slept_s


class Commander:
    """Sends commands to agents, and waits for their answers."""

    def __init__(self, running: Fleet) -> None:
        self._hub = running.coordinator._hub
        self._answers: dict[str, asyncio.Future[CommandAnswer]] = {}
        self._hub._on_answer = self._answered

    def send(self, agent: AgentDaemon, command: Command) -> asyncio.Future[CommandAnswer]:
        """Returns what the answer will come in."""
        answer = self.expect(command.command_id)
        assert self._hub.send(agent.status().agent_id, command)
        return answer

    def expect(self, command_id: str) -> asyncio.Future[CommandAnswer]:
        """Returns what the next answer to this command will come in."""
        answer: asyncio.Future[CommandAnswer] = asyncio.get_running_loop().create_future()
        self._answers[command_id] = answer
        return answer

    async def order(self, agent: AgentDaemon, command: Command) -> CommandAnswer:
        """Returns the answer."""
        async with asyncio.timeout(30):
            return await self.send(agent, command)

    def _answered(self, _: str, answer: CommandAnswer) -> None:
        self._answers[answer.command_id].set_result(answer)


@asynccontextmanager
async def host(root: Path, **options: Any) -> AsyncIterator[tuple[Fleet, AgentDaemon, Commander]]:
    """A fleet of one agent that may be commanded to sleep."""
    async with fleet(root, agents=(), api={}) as running:
        agent = await running.start_agent("one", agent=ALLOWED, **options)
        await running.until(ready=1)
        yield running, agent, Commander(running)


def expert_of(status: CoordinatorStatus) -> ExpertReport:
    return status.agents[0].experts[0]


def row_of(status: CoordinatorStatus) -> AgentRow:
    return status.agents[0]


async def test_an_unloaded_model_gives_its_process_back_and_is_loaded_by_the_next_request(tmp_path: Path) -> None:
    """The process has ended when the answer comes; nobody has to restart anything."""
    async with host(tmp_path, profile="rtx-4090") as (running, agent, commander):
        assert agent.engine_pids()["fake"] is not None
        answer = await commander.order(agent, UnloadModel(command_id="c", model="fake"))
        assert answer == CommandAnswer(command_id="c", outcome=CommandOutcome.DONE)
        assert agent.engine_pids() == {"fake": None}
        await running.until_status(lambda status: expert_of(status).state == "cold" and expert_of(status).on_demand)
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200
        await running.until_status(lambda status: expert_of(status).load_cost is not None)
        await running.until_status(lambda status: expert_of(status).unload_cost is not None)


async def test_a_model_is_loaded_by_command(tmp_path: Path) -> None:
    """Done means ready; once more changes nothing."""
    async with host(tmp_path) as (running, agent, commander):
        await commander.order(agent, UnloadModel(command_id="c1", model="fake"))
        assert (await commander.order(agent, LoadModel(command_id="c2", model="fake"))).outcome == "done"
        await running.until(ready=1)
        pid = agent.engine_pids()["fake"]
        assert (await commander.order(agent, LoadModel(command_id="c3", model="fake"))).outcome == "done"
        assert agent.engine_pids()["fake"] == pid


async def test_what_the_configuration_does_not_allow_is_refused(tmp_path: Path) -> None:
    """An agent obeys its own configuration first, and says which setting it was."""
    async with fleet(tmp_path) as running:
        agent, commander = running.agents["one"], Commander(running)
        unload = await commander.order(agent, UnloadModel(command_id="c1", model="fake"))
        suspend = await commander.order(agent, Suspend(command_id="c2"))
        assert (unload.outcome, unload.code) == (suspend.outcome, suspend.code) == ("refused", "not_allowed")
        assert "allow_unload" in (unload.message or "")
        assert "allow_suspend" in (suspend.message or "")
        assert agent.engine_pids()["fake"] is not None


async def test_a_running_answer_is_never_cut_off_by_a_command(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The model is unloaded once it is complete, not before."""
    async with host(tmp_path, engine_argv=controlled) as (running, agent, commander):
        chat = asyncio.create_task(running.chat("one two", max_tokens=2))
        step = await control.next_phase()
        answer = commander.send(agent, UnloadModel(command_id="c", model="fake"))
        assert (await commander.order(agent, LoadModel(command_id="later", model="fake"))).outcome == "done"
        assert not answer.done() or answer.result().code == "superseded"
        answer = commander.send(agent, UnloadModel(command_id="c2", model="fake"))
        step.answer()
        control.release()
        async with await chat as said:
            assert (await said.json())["choices"][0]["message"]["content"] == "one two "
        assert (await answer).outcome == "done"
        assert agent.engine_pids() == {"fake": None}


async def test_a_host_with_a_running_answer_sleeps_when_it_is_complete(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """It is told to while it writes; the answer comes whole, then the host says goodbye."""
    sleeper = FakeHost()
    async with host(tmp_path, engine_argv=controlled, control=sleeper) as (running, agent, commander):
        chat = asyncio.create_task(running.chat("one two", max_tokens=2))
        step = await control.next_phase()
        answer = commander.send(agent, Suspend(command_id="c"))
        # It is answered after the first one was read.
        await commander.order(agent, WakeNeighbour(command_id="n", mac="3c:6d:66:01:02:03", network="203.0.113.0/24"))
        assert not answer.done()
        assert not sleeper.asleep.is_set()
        step.answer()
        control.release()
        async with await chat as said:
            assert (await said.json())["choices"][0]["message"]["content"] == "one two "
        assert (await answer).outcome == "done"
        await running.until_status(lambda status: row_of(status).asleep)
        sleeper.wake(1.0)


async def test_a_host_that_is_told_to_sleep_says_goodbye_and_comes_back_as_itself(tmp_path: Path) -> None:
    """Done comes before the goodbye; after the sleep the same agent reports how long it was, and serves."""
    control = FakeHost()
    async with host(tmp_path, control=control, profile="rtx-4090") as (running, agent, commander):
        identity = agent.status().agent_id
        assert (await commander.order(agent, Suspend(command_id="c"))).outcome == "done"
        await control.asleep.wait()
        await running.until_status(lambda status: not row_of(status).connected)
        control.wake(3600.0)
        await running.until(ready=1)
        await running.until_status(lambda status: bool((standby := row_of(status).standby) and standby.wake_cost))
        row = row_of(running.coordinator.status())
        assert (row.agent_id, len(running.coordinator.status().agents)) == (identity, 1)
        assert row.standby is not None
        assert row.standby.asleep_s == 3600.0
        assert row.standby.suspend_cost is not None
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200


async def test_a_host_that_cannot_sleep_after_all_comes_back_and_says_so(tmp_path: Path) -> None:
    """The command that was done is answered once more, as failed."""
    control = FakeHost(refusal="logind refuses Suspend: Access denied.")
    async with host(tmp_path, control=control) as (running, agent, commander):
        assert (await commander.order(agent, Suspend(command_id="c"))).outcome == "done"
        answer = await commander.expect("c")
        assert (answer.outcome, answer.code) == ("failed", "suspend_failed")
        assert "Access denied" in (answer.message or "")
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200


async def test_a_host_that_is_known_to_be_unable_to_sleep_refuses(tmp_path: Path) -> None:
    """With logind's reason, which also stands in the report."""
    async with host(tmp_path, control=FakeHost(fault="This host cannot suspend.")) as (running, agent, commander):
        await running.until_status(lambda status: bool((told := row_of(status).standby) and told.suspend_fault))
        answer = await commander.order(agent, Suspend(command_id="c"))
        assert (answer.outcome, answer.code, answer.message) == (
            "refused",
            "not_possible",
            "This host cannot suspend.",
        )


class BusHost(Logind):
    """A host whose logind is a fake one on a real bus, and which has slept for an hour each time it was suspended."""

    def __init__(self, logind: FakeLogind) -> None:
        super().__init__(("busctl", f"--address={logind.address}", "--json=short", "--timeout=20"))
        self._logind = logind

    def suspended_s(self) -> float:
        return 3600.0 * sum(method == "Suspend" for method, _ in self._logind.calls)


@pytest.mark.skipif(not (shutil.which("busctl") and shutil.which("dbus-daemon")), reason="needs busctl, dbus-daemon")
async def test_logind_suspends_the_host_and_the_agent_comes_back(tmp_path: Path) -> None:
    """Through busctl, a bus and logind's own words; one call, which asks nobody for a password."""
    async with fake_logind(tmp_path) as logind, host(tmp_path, control=BusHost(logind)) as (running, agent, commander):
        assert (await commander.order(agent, Suspend(command_id="c"))).outcome == "done"
        await running.until_status(lambda status: bool((told := row_of(status).standby) and told.asleep_s == 3600.0))
        await running.until(ready=1)
        assert [call for call in logind.calls if call[0] == "Suspend"] == [("Suspend", (False,))]


async def test_an_agent_wakes_a_neighbour_with_a_magic_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network of its own, here the loopback's, whose broadcast address somebody listens at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.255.255.255", 0))
        listener.settimeout(10)
        monkeypatch.setattr(magicpacket, "PORT", listener.getsockname()[1])
        async with host(tmp_path) as (_, agent, commander):
            command = WakeNeighbour(command_id="c", mac="3c:6d:66:01:02:03", network="127.0.0.0/8")
            assert (await commander.order(agent, command)).outcome == "done"
        assert listener.recv(200) == b"\xff" * 6 + bytes.fromhex("3c6d66010203") * 16


async def test_a_packet_for_a_network_that_the_agent_is_not_on_is_refused(tmp_path: Path) -> None:
    """An agent is no relay: it sends to its own networks' broadcast addresses alone."""
    async with host(tmp_path) as (_, agent, commander):
        command = WakeNeighbour(command_id="c", mac="3c:6d:66:01:02:03", network="203.0.113.0/24")
        answer = await commander.order(agent, command)
        assert (answer.outcome, answer.code) == ("refused", "not_possible")
        assert "203.0.113.0/24" in (answer.message or "")


# --- The books --------------------------------------------------------------------------------------------------------


async def test_joules_of_no_request_stand_in_the_books_by_cause(tmp_path: Path) -> None:
    """In the ledger's answer, in the status and among the metrics; a reload is among them."""
    async with host(tmp_path, profile="rtx-4090") as (running, agent, commander):
        await commander.order(agent, UnloadModel(command_id="c", model="fake"))
        async with await running.chat("hi", max_tokens=1) as said:
            assert said.status == 200
        await running.until_status(
            lambda status: bool(
                (told := row_of(status).standby)
                and told.energy
                and told.energy.idle_j > 1
                and told.energy.loading_j > 1
            )
        )
        running.coordinator._chores.book_standing()
        balance = running.coordinator.status().energy
        assert balance is not None
        assert balance.loading_j is not None
        assert balance.j_per_answer is not None
        assert (balance.answers, balance.quality) == (1, "simulated")
        assert balance.j_per_answer > balance.loading_j > 0
        standing: dict[str, Any] = {"hosts": []}
        async with asyncio.timeout(30):
            while not standing["hosts"]:  # the books are written by a thread
                async with running.http.get("/v1/moe2/ledger") as answer:
                    standing = (await answer.json())["standing"]
        assert standing["answers"] == 1
        [books] = standing["hosts"]
        assert (books["agent_name"], books["quality"]) == ("one", "simulated")
        async with running.http.get("/metrics") as scraped:
            text = await scraped.text()
        assert 'moe2_fleet_standing_energy_joules_total{agent="one"' in text
        assert 'cause="loading"' in text
