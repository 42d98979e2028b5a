"""Who is sent to at once, and who has to wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from moe2.common.link.messages import ToAgent
from moe2.common.link.supply import FetchModel, ModelStore, Ticket, TicketWanted
from moe2.common.tickets import TICKET_S
from moe2.coordinator.supply.pushes import LOOK_EVERY_S, Pushes, PushWanted
from tests.coordinator.supply.test_hosts import row
from tests.gguf import write_gguf
from tests.virtualclock import on_virtual_clock


@dataclass
class Fleet:
    """Two hosts that take models, and what they were sent."""

    sent: list[tuple[str, ToAgent]] = field(default_factory=list)

    def pushes(self) -> Pushes:
        """Pushes to one host at a time, with a listener."""
        rows = [msgspec.structs.replace(row(name), models=ModelStore(takes_orders=True)) for name in "ab"]
        made = Pushes(rows=lambda: rows, send=self._send, max_hosts=1, tls=False, folder=None)
        made.port = 1
        return made

    def _send(self, agent_id: str, message: ToAgent) -> bool:
        self.sent.append((agent_id, message))
        return True

    def orders(self) -> dict[str, str]:
        """The id of each agent's order."""
        return {agent_id: message.command_id for agent_id, message in self.sent if isinstance(message, FetchModel)}

    def tickets(self) -> list[tuple[str, str]]:
        """(agent, secret) of each ticket, in order."""
        return [(agent_id, message.secret) for agent_id, message in self.sent if isinstance(message, Ticket)]


async def _both_ask(hosts: Fleet, folder: Path) -> Pushes:
    """Both hosts have been sent an order and have asked for their ticket, "agent-a" first."""
    made = hosts.pushes()
    await made.want(PushWanted(path=str(write_gguf(folder / "m.gguf")), hosts=("a", "b")), is_local=True)
    for agent_id, command_id in hosts.orders().items():
        made.ticket_wanted(agent_id, TicketWanted(command_id=command_id, part=0))
    return made


@on_virtual_clock
async def test_a_host_that_does_not_come_with_its_ticket_loses_its_place(tmp_path: Path) -> None:
    """The next one gets a ticket once the first one's has expired."""
    hosts = Fleet()
    running = asyncio.create_task((await _both_ask(hosts, tmp_path)).run())
    await asyncio.sleep(TICKET_S - LOOK_EVERY_S)
    assert [agent_id for agent_id, _ in hosts.tickets()] == ["agent-a"]
    await asyncio.sleep(2 * LOOK_EVERY_S)
    assert [agent_id for agent_id, _ in hosts.tickets()] == ["agent-a", "agent-b"]
    running.cancel()


@on_virtual_clock
async def test_a_host_that_came_with_its_ticket_keeps_its_place(tmp_path: Path) -> None:
    """However long it is sent to."""
    hosts = Fleet()
    made = await _both_ask(hosts, tmp_path)
    running = asyncio.create_task(made.run())
    [(agent_id, secret)] = hosts.tickets()
    assert isinstance(made.admit(secret, agent_id, 1.0), tuple)
    await asyncio.sleep(3 * TICKET_S)
    assert len(hosts.tickets()) == 1
    running.cancel()
