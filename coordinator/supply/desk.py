"""All that an operator can have done about models: orders, files that are sent, and those that hosts pull."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import time

from moe2.common.link.messages import CommandAnswer, ToAgent
from moe2.common.status import AgentRow
from moe2.coordinator.supply.orders import Orders
from moe2.coordinator.supply.pulls import Pulls
from moe2.coordinator.supply.pushes import Pushes
from moe2.coordinator.supply.settings import PushSection

FOLLOW_EVERY_S = 0.5


class SupplyDesk:
    """Orders, pushes and pulls, and what agents say of them.

    rows, send, aliases: as of `Orders`. tls: as of `Pushes`.
    """

    def __init__(
        self,
        settings: PushSection,
        *,
        rows: Callable[[], Sequence[AgentRow]],
        send: Callable[[str, ToAgent], bool],
        aliases: Callable[[], Mapping[str, str]],
        tls: bool,
    ) -> None:
        self.orders = Orders(rows=rows, send=send, aliases=aliases, clock=time)
        self.pulls = Pulls(rows=rows, send=send)
        self.pushes = Pushes(rows=rows, send=send, max_hosts=settings.max_hosts, tls=tls, folder=settings.folder)

    async def run(self) -> None:
        """Follows what is under way, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.pushes.run())
            while True:
                await asyncio.sleep(FOLLOW_EVERY_S)
                self.pulls.follow()

    def answered(self, agent_id: str, answer: CommandAnswer) -> bool:
        """Takes an agent's answer; False if it is about nothing of ours."""
        return any(one.answered(agent_id, answer) for one in (self.orders, self.pushes, self.pulls))

    def agent_lost(self, agent_id: str) -> None:
        """An agent's connection has ended."""
        for one in (self.orders, self.pushes, self.pulls):
            one.agent_lost(agent_id)
