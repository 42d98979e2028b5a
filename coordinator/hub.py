"""The agents' side: one WebSocket per agent, the capability table's only writer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from moe2.common import __version__
from moe2.common.enrolment import REFUSAL_HEADER, WHY
from moe2.common.errors import LinkCode
from moe2.common.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    FromAgent,
    Hello,
    Job,
    JobDone,
    JobFailed,
    JobScored,
    JobStarted,
    NextTokens,
    Report,
    ToAgent,
    Tokens,
    Welcome,
)
from moe2.common.pump import LAST_WORDS_S, Pump
from moe2.common.session import (
    Closed,
    CoordinatorSession,
    JobMessage,
    MessageReceived,
    NotSent,
    Opened,
    PeerFaulted,
    PeerUnreadable,
    RttMeasured,
    SessionEvent,
)
from moe2.coordinator.access.bucket import TokenBucket
from moe2.coordinator.checks import AgentChecks, Checked, hello_fault
from moe2.coordinator.enrolment.doorkeeper import Doorkeeper
from moe2.coordinator.enrolment.register import Admission, AdmissionRefusedError, Register
from moe2.coordinator.settings import AgentsSection
from moe2.coordinator.table import CapabilityTable

log = structlog.get_logger()

AGENTS_PATH = "/v1/agents"
REFUSALS_LOGGED_PER_MINUTE = 60.0
MAX_FAULTS_TOLD = 4
"""Of one message."""


@dataclass(eq=False)
class _Connection:
    pump: Pump
    session: CoordinatorSession
    admission: Admission
    outgoing: deque[JobMessage] = field(default_factory=deque)
    checks: AgentChecks = field(default_factory=AgentChecks)
    told: str | None = None
    """The fault that the agent was told of last: one that comes with every report is told once."""
    agent_id: str | None = None
    is_turned_out: bool = False


class Hub:
    """Accepts agents, keeps the table true, passes messages both ways.

    on_message: an agent's id and its word about a job. on_lost: an agent's session has ended, for whatever reason.
    on_report: an agent has said what it can do now.
    """

    def __init__(
        self,
        settings: AgentsSection,
        *,
        doorkeeper: Doorkeeper,
        coordinator_id: str,
        table: CapabilityTable,
        on_message: Callable[[str, FromAgent], None],
        on_lost: Callable[[str], None],
        on_report: Callable[[], None],
    ) -> None:
        self.settings = settings
        self._doorkeeper = doorkeeper
        self._coordinator_id = coordinator_id
        self._table = table
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_report = on_report
        self._connections: set[_Connection] = set()
        self._checked: Register | None = None
        self._refusals_logged = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, 0.0)
        self._by_agent: dict[str, _Connection] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get(AGENTS_PATH, self._accept, expect_handler=_say_nothing_yet)
        return app

    def send(self, agent_id: str, message: ToAgent) -> bool:
        """Queue a message for an agent. False if it is not connected (any more)."""
        connection = self._by_agent.get(agent_id)
        if connection is None:
            return False
        connection.checks.sent(message)
        connection.outgoing.append(message)
        connection.pump.wake()
        return True

    def turn_out(self) -> None:
        """Disconnect every agent that may not be connected any more. Costs nothing where the register is the same."""
        register = self._doorkeeper.current()
        if register is self._checked:
            return
        self._checked = register
        for connection in tuple(self._by_agent.values()):
            self._check_standing(connection)

    def close(self, reason: str) -> None:
        """Say goodbye to all agents; they reconnect by themselves when there is somebody to connect to."""
        for connection in tuple(self._connections):
            connection.pump.close(reason)

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        _check_headers(request)
        try:
            admission = await self._doorkeeper.admit(request.headers)
        except AdmissionRefusedError as error:
            # Whoever floods the listener must not flood the log as well.
            if self._refusals_logged.take(asyncio.get_running_loop().time()) == 0.0:
                log.warning("agent_refused", reason=error.refusal.value, peer=request.remote)
            headers = {REFUSAL_HEADER: error.refusal.value}
            raise web.HTTPUnauthorized(text=" ".join(WHY[error.refusal]), headers=headers) from error
        websocket = web.WebSocketResponse(
            max_msg_size=self.settings.max_frame_bytes, compress=False, autoping=True, heartbeat=None
        )
        await websocket.prepare(request)
        session = CoordinatorSession(
            Welcome(
                protocol=PROTOCOL_VERSION,
                coordinator_id=self._coordinator_id,
                coordinator_version=__version__,
                heartbeat_s=self.settings.heartbeat_s,
                report_s=self.settings.report_s,
                max_frame_bytes=self.settings.max_frame_bytes,
                enrolled=admission.agent_id is not None,
            ),
            now_s=asyncio.get_running_loop().time(),
            handshake_s=self.settings.handshake_s,
        )
        outgoing: deque[JobMessage] = deque()
        pump = Pump(
            session,
            next_message=lambda: outgoing.popleft() if outgoing else None,
            on_event=lambda event: self._act(connection, event),
        )
        connection = _Connection(pump=pump, session=session, admission=admission, outgoing=outgoing)
        self._connections.add(connection)
        try:
            await pump.run(websocket)
        finally:
            self._connections.discard(connection)
            self._forget(connection)
            await _hang_up(request, websocket)
        return websocket

    def _act(self, connection: _Connection, event: SessionEvent) -> None:
        match event:
            case MessageReceived(message=message):
                self._received(connection, message)
            case Opened(hello=Hello() as hello, protocol=protocol):
                self._joined(connection, hello, protocol)
            case RttMeasured(rtt_s=rtt_s):
                if connection.agent_id:
                    self._table.rtt_measured(connection.agent_id, rtt_s)
            case NotSent():
                self._not_sent(connection, event)
            case PeerUnreadable(op=op, job_id=job_id, reason=reason):
                self._take(connection, op, connection.checks.unreadable(op, job_id, reason), is_told=True)
            case PeerFaulted(code=code, message=text):
                log.warning("agent_did_not_understand", agent_id=connection.agent_id, code=code, detail=text)
            case Closed(code=code, reason=reason):
                log.info("session_closed", agent_id=connection.agent_id, code=code, reason=reason)

    def _joined(self, connection: _Connection, hello: Hello, protocol: int) -> None:
        if fault := hello_fault(hello):
            log.warning("agent_misnamed", reason=fault)
            remedy = "Set agent.name on it, or remove agent-id from its state_dir."
            connection.session.refuse(LinkCode.INVALID_HELLO, f"The agent cannot be called so: {fault}.", remedy)
            connection.pump.wake()
            return
        connection.agent_id = hello.agent_id
        if not self._check_standing(connection):
            return
        former = self._by_agent.get(hello.agent_id)
        if former:
            # The agent reconnected before we noticed that its old connection is dead; what ran there is lost.
            log.warning("agent_replaced", agent_id=hello.agent_id, agent_name=hello.agent_name)
            self._forget(former)
            former.pump.close("replaced by a newer connection of the same agent")
        self._by_agent[hello.agent_id] = connection
        self._table.agent_joined(hello, asyncio.get_running_loop().time(), protocol=protocol)
        log.info("agent_joined", agent_id=hello.agent_id, agent_name=hello.agent_name, protocol=protocol)

    def _check_standing(self, connection: _Connection) -> bool:
        """True if the connection may be its agent's; otherwise it is told why not, and ends."""
        agent_id = connection.agent_id or ""
        refusal = self._doorkeeper.standing(connection.admission, agent_id)
        if refusal is None:
            return True
        log.warning("agent_turned_out", agent_id=agent_id, reason=refusal.value)
        connection.is_turned_out = True
        message, remedy = WHY[refusal]
        connection.session.refuse(refusal.value, message, remedy)
        connection.pump.wake()
        return False

    def _not_sent(self, connection: _Connection, event: NotSent) -> None:
        """It costs its job only, not the link."""
        message, reason = event.message, event.reason
        log.warning("message_not_sent", agent_id=connection.agent_id, op=type(message).__name__, reason=reason)
        if isinstance(message, Job) and connection.agent_id:
            self._on_message(connection.agent_id, JobFailed(job_id=message.job_id, code=event.code, message=reason))

    def _received(self, connection: _Connection, message: JobMessage) -> None:
        match message:
            case Report() | JobStarted() | Tokens() | NextTokens() | JobDone() | JobScored() | JobFailed():
                op = type(message).__struct_config__.tag
                self._take(connection, str(op), connection.checks.check(message))
            case _:
                log.warning("message_ignored", agent_id=connection.agent_id, op=type(message).__name__)

    def _take(self, connection: _Connection, op: str, checked: Checked, *, is_told: bool = False) -> None:
        """Hand on what may be believed, and act on the rest. is_told: the agent knows what was wrong."""
        agent_id = connection.agent_id
        # A connection that was replaced may still have words in its buffers; its jobs are already given up.
        if agent_id is None or self._by_agent.get(agent_id) is not connection:
            return
        if checked.faults:
            self._complain(connection, agent_id, op, checked, is_told=is_told)
        for job_id in checked.stopped:
            self.send(agent_id, CancelJob(job_id=job_id))
        for message in checked.messages:
            if isinstance(message, Report):
                self._table.agent_reported(agent_id, message, asyncio.get_running_loop().time())
                self._on_report()
            else:
                self._on_message(agent_id, message)

    def _complain(self, connection: _Connection, agent_id: str, op: str, checked: Checked, *, is_told: bool) -> None:
        reason = "; ".join(checked.faults[:MAX_FAULTS_TOLD])
        if checked.suspends:
            self._table.agent_broke_rules(agent_id, reason, asyncio.get_running_loop().time())
        if reason == connection.told:
            return
        connection.told = reason
        log.warning("agent_broke_rules", agent_id=agent_id, op=op, reason=reason, suspended=checked.suspends)
        if not is_told:
            closed = connection.session.complain(LinkCode.UNSOUND, reason, in_reply_to=op, counts=checked.suspends)
            if closed:
                self._act(connection, closed)
            connection.pump.wake()

    def _forget(self, connection: _Connection) -> None:
        agent_id = connection.agent_id
        if agent_id is None or self._by_agent.get(agent_id) is not connection:
            return
        del self._by_agent[agent_id]
        if connection.is_turned_out:
            # Nobody waits for it to come back.
            self._table.agent_removed(agent_id)
        else:
            self._table.agent_left(agent_id, asyncio.get_running_loop().time())
        log.info("agent_left", agent_id=agent_id)
        self._on_lost(agent_id)


async def _hang_up(request: web.Request, websocket: web.WebSocketResponse) -> None:
    """End a connection. A peer that does not read does not take part in its closing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await websocket.close()
    if request.transport is not None:
        request.transport.abort()


def _check_headers(request: web.Request) -> None:
    """Refuse what no agent sends: a page's request, and a body, which is not read for anybody."""
    if "Origin" in request.headers:
        raise web.HTTPForbidden(text="Agents connect here; a browser's page may not.")
    if request.body_exists or "Expect" in request.headers:
        raise web.HTTPBadRequest(
            text="Agents connect here by WebSocket, without a body.", headers={"Connection": "close"}
        )


async def _say_nothing_yet(_: web.Request) -> None:
    """Nobody is asked for a body here."""
