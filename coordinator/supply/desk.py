"""Where models are ordered and handed out: the operator's desk, and the listener at which agents fetch files.

An operator has orders, files that are sent, and those that hosts pull. Agents fetch files by ranges, with their
credential and a ticket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import time

import structlog
from aiohttp import web

from moe2.common.errors import Moe2Error
from moe2.common.filestream import Pace, check_plain, send_file
from moe2.common.link.messages import CommandAnswer, ToAgent
from moe2.common.link.supply import FILES_PATH, TICKET_HEADER
from moe2.common.status import AgentRow
from moe2.common.tickets import TicketFault
from moe2.common.token_bucket import TokenBucket
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.register import AgentRefusedError
from moe2.coordinator.supply.orders import Orders
from moe2.coordinator.supply.pulls import Pulls
from moe2.coordinator.supply.pushes import Pushes
from moe2.coordinator.supply.settings import PushSection

FOLLOW_EVERY_S = 0.5
log = structlog.get_logger()

REFUSALS_LOGGED_PER_MINUTE = 60.0


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


class FileListener:
    """Answers agents' requests for files."""

    def __init__(self, pushes: Pushes, doorkeeper: Doorkeeper, settings: PushSection) -> None:
        self._pushes = pushes
        self._doorkeeper = doorkeeper
        self._pace = Pace(settings.max_bytes_per_s)
        self._refusals_logged = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, 0.0)

    def app(self) -> web.Application:
        """Returns the application of the listener."""
        app = web.Application()
        app.router.add_get(FILES_PATH, self._give, allow_head=False)
        return app

    async def _give(self, request: web.Request) -> web.StreamResponse:
        check_plain(request)
        try:
            identity = await self._doorkeeper.admit(request.headers)
        except AgentRefusedError as error:
            raise web.HTTPUnauthorized(text="This is no agent's credential.") from error
        except Moe2Error as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        now_s = asyncio.get_running_loop().time()
        agent_id = identity.agent_id or ""
        found = self._pushes.admit(request.headers.get(TICKET_HEADER, ""), agent_id, now_s)
        if isinstance(found, TicketFault):
            if self._refusals_logged.take(now_s) == 0.0:
                log.warning("ticket_refused", reason=found.value, agent_id=agent_id, peer=request.remote)
            raise web.HTTPForbidden(text=f"The ticket opens nothing: {found.value}.")
        push, part = found
        path, whole = push.parcel.paths[part], push.parcel.parts[part].size_bytes
        try:
            return await send_file(request, path, whole, self._pace, lambda done: self._pushes.sent(push, part, done))
        finally:
            self._pushes.hung_up(push)
