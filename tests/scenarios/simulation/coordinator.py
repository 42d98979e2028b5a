"""A simulated coordinator: the real hub, table, selector and service; only the WebSockets are ours."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from moe2.common.link.messages import PROTOCOL_VERSION, Welcome
from moe2.common.link.pump import Pump
from moe2.common.link.session import CoordinatorSession, JobMessage, SessionEvent
from moe2.coordinator.choosing.quality import Appraiser
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet import hub as hubs
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.register import ProvenIdentity
from moe2.coordinator.fleet.settings import AgentsSection
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.ledger.accounts import Accounts
from moe2.coordinator.ledger.store import Ledger
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.settings import DispatchSection
from tests.scenarios.simulation.wire import Wire
from tests.scenarios.simulation.world import World

HEARTBEAT_S, REPORT_S, STALE_S, EVICT_S = 5.0, 2.0, 8.0, 30.0


class Socket:
    """The coordinator's end of a wire, and what a `Pump` is to the hub."""

    def __init__(self, world: World, hub: hubs.Hub, wire: Wire) -> None:
        self._world = world
        self._hub = hub
        self._wire = wire
        self._session = CoordinatorSession(
            Welcome(
                protocol=PROTOCOL_VERSION,
                coordinator_id="c",
                coordinator_version="0",
                heartbeat_s=HEARTBEAT_S,
                report_s=REPORT_S,
                max_frame_bytes=2**20,
            ),
            now_s=world.now_s,
            handshake_s=5.0,
            asks_first=True,
        )
        self._outgoing: deque[JobMessage] = deque()
        self._connection = hubs._Connection(
            pump=cast(Pump, self),
            session=self._session,
            identity=ProvenIdentity(),
            address=None,
            outgoing=self._outgoing,
        )
        hub._connections.add(self._connection)
        self._tick: asyncio.TimerHandle | None = None
        self.is_gone = False
        self._arm()

    @property
    def agent_id(self) -> str | None:
        return self._connection.agent_id

    # What the hub wants of a pump.

    def wake(self) -> None:
        self._world.later(0.0, self._pump)

    def reschedule(self) -> None:
        self._world.later(0.0, self._ticked)

    def close(self, reason: str) -> None:
        self._world.later(0.0, self._say_goodbye, reason)

    # What the wire wants of an end.

    def heard(self, frame: bytes) -> None:
        if not self.is_gone:
            self._act(self._session.receive(frame, self._world.now_s))

    def broke(self) -> None:
        if not self.is_gone:
            self._gone()

    def _say_goodbye(self, reason: str) -> None:
        if not self.is_gone:
            self._pump()
            self._session.close(reason)
            self._pump()
            self._gone()

    def _act(self, events: list[SessionEvent]) -> None:
        for event in events:
            self._hub._act(self._connection, event)
        self._pump()
        if self._session.closed and not self.is_gone:
            self._gone()

    def _pump(self) -> None:
        if self.is_gone:
            return
        for frame in self._session.take_frames():
            self._wire.send_down(frame)
        while self._session.is_open and self._outgoing:
            self._session.send(self._outgoing.popleft())
            for frame in self._session.take_frames():
                self._wire.send_down(frame)
        self._arm()

    def _arm(self) -> None:
        if self._tick:
            self._tick.cancel()
        at_s = self._session.next_deadline_s
        self._tick = None if at_s is None else self._world.at(at_s, self._ticked)

    def _ticked(self) -> None:
        if not self.is_gone:
            self._act(self._session.tick(self._world.now_s))

    def _gone(self) -> None:
        self.is_gone = True
        if self._tick:
            self._tick.cancel()
        self._hub._connections.discard(self._connection)
        self._hub._forget(self._connection)
        self._wire.close(self)


class _OpenDoor:
    """A doorkeeper that knows everybody."""

    def refusal_of(self, identity: ProvenIdentity, agent_id: str) -> None:
        return None


class _Paper:
    """A ledger that is never read."""

    def record(self, entry: object) -> asyncio.Future[bool]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done


class SimCoordinator:
    """One process of the coordinator, from its start to its end."""

    def __init__(self, world: World, *, max_active: int) -> None:
        self._world = world
        self.table = CapabilityTable(stale_s=STALE_S, evict_s=EVICT_S)
        self.retired: list[tuple[Lifecycle, Receipt]] = []
        self.service = Service(
            self.table,
            Selector(Appraiser(None), {}, clock=lambda: 0.0),
            send=lambda agent_id, message: self.hub.send(agent_id, message),
            max_active=max_active,
            bookkeeper=Bookkeeper(Accounts(), cast(Ledger, _Paper()), clock=lambda: world.now_s),
            on_retired=lambda life, receipt: self.retired.append((life, receipt)),
            settings=DispatchSection(),
        )
        self.hub = hubs.Hub(
            AgentsSection(token_file="unused"),  # type: ignore[arg-type]
            doorkeeper=cast(Doorkeeper, _OpenDoor()),
            coordinator_id="c",
            table=self.table,
            on_message=self.service.agent_said,
            on_lost=self.service.agent_lost,
            on_report=self.service.fleet_changed,
        )
        self.sockets: set[Socket] = set()
        self.is_dead = False

    def accept(self, wire: Wire) -> Socket:
        socket = Socket(self._world, self.hub, wire)
        self.sockets = {known for known in self.sockets if not known.is_gone} | {socket}
        return socket

    def choosable(self) -> int:
        return len(self.table.choosable(self._world.now_s))
