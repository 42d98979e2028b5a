"""The hub: one WebSocket per agent; it alone writes the capability table."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web

from moe2.common import __version__
from moe2.common.errors import CommandErrorCode, LinkCode, Moe2Error
from moe2.common.health import HealthWarning
from moe2.common.link.enrolment import REFUSAL_HEADER, WHY, Refusal
from moe2.common.link.messages import (
    ASLEEP,
    PROTOCOL_VERSION,
    CancelJob,
    Command,
    CommandAnswer,
    CommandOutcome,
    FromAgent,
    Hello,
    Job,
    JobFailed,
    Report,
    ToAgent,
    Welcome,
)
from moe2.common.link.pump import LAST_WORDS_S, Pump
from moe2.common.link.session import (
    Closed,
    CoordinatorSession,
    Greeted,
    JobMessage,
    MessageReceived,
    NotSent,
    PeerFaulted,
    PeerUnreadable,
    RttMeasured,
    SessionEvent,
)
from moe2.common.link.supply import TicketWanted
from moe2.common.token_bucket import TokenBucket
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS, shown
from moe2.coordinator.fleet.checks import SAID_BY_AGENTS, AgentChecks, Checked, hello_fault
from moe2.coordinator.fleet.claims import PROBE_S, Claimant, Claims, Verdict
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.register import AgentRefusedError, ProvenIdentity, Register
from moe2.coordinator.fleet.settings import AgentsSection
from moe2.coordinator.fleet.table import CapabilityTable

log = structlog.get_logger()

AGENTS_PATH = "/v1/agents"
REFUSALS_LOGGED_PER_MINUTE = 60.0
WORDS_LOGGED_PER_MINUTE = 60.0
"""The number of lines per minute that the log takes of one agent, however often it connects."""
MAX_LOG_LIMITS = 1024
"""The number of agents whose lines are counted; the first ones are forgotten."""
MAX_SHAKING = 64
"""Agents that shake hands at a time; the others wait for their turn, unanswered.

Thousands that come together would else all be answered before the first one is welcomed, and their hellos would come
late for want of a processor, here or where they run: all of them then came again.
"""
MAX_TURN_S = 1.0
"""An agent that is slower with its hello gives its turn to the next one, and may still finish."""
BACK_S = 10.0
"""The time that a coordinator which comes back beside others waits for its agents. They dial it every 4 s at least."""
BACK_POLL_S = 0.05
MAX_FAULTS_TOLD = 4
"""The number of faults of one message that the agent and the log are told."""


@dataclass(eq=False)
class _Connection:
    pump: Pump
    session: CoordinatorSession
    identity: ProvenIdentity
    address: str | None
    outgoing: deque[JobMessage] = field(default_factory=deque)
    claimant: Claimant | None = None
    """The agent that the connection says to be; None until it has said hello."""
    checks: AgentChecks = field(default_factory=AgentChecks)
    told: str | None = None
    """The fault that the agent was told last: one that comes with every report is told once."""
    logged: TokenBucket = field(default_factory=lambda: TokenBucket(WORDS_LOGGED_PER_MINUTE, 0.0))
    turn: asyncio.TimerHandle | None = None
    """What ends its turn to shake hands; None once that has ended."""
    is_turned_out: bool = False
    is_asleep: bool = False
    """The agent said goodbye because its host was going to sleep."""

    @property
    def agent_id(self) -> str | None:
        """The id that the connection claims; None until it has said hello."""
        return self.claimant.hello.agent_id if self.claimant else None

    @property
    def may_log(self) -> bool:
        """Whether a line about this agent may be logged now, which is counted: an agent shall not flood the log."""
        return self.logged.take(asyncio.get_running_loop().time()) == 0.0


class Hub:
    """The hub accepts agents, keeps the capability table up to date and passes messages both ways.

    on_message: called with an agent's id and its word about a job. on_lost: called when an agent's session has ended,
    for whatever reason. on_report: called when an agent has reported what it can do. on_answer: called with
    an agent's id and its answer to a command. on_ticket_wanted: called when an agent is ready to fetch a file.
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
        on_answer: Callable[[str, CommandAnswer], None] = lambda agent_id, answer: None,
        on_ticket_wanted: Callable[[str, TicketWanted], None] = lambda agent_id, wanted: None,
    ) -> None:
        self.settings = settings
        self._doorkeeper = doorkeeper
        self._coordinator_id = coordinator_id
        self._table = table
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_report = on_report
        self._on_answer = on_answer
        self._connections: set[_Connection] = set()
        self._checked: Register | None = None
        self._refusals_logged = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, 0.0)
        self._logged: dict[str, TokenBucket] = {}
        self._by_agent: dict[str, _Connection] = {}
        self._claims = Claims()
        self._turns = asyncio.Semaphore(MAX_SHAKING)
        self._beside_jobs: Mapping[type[Any], Callable[[_Connection, str, Any], None]] = {
            Report: self._reported,
            CommandAnswer: self._answered,
            TicketWanted: lambda _, agent_id, wanted: on_ticket_wanted(agent_id, wanted),
        }
        """What takes the messages that are not about jobs, as most are, by their type."""

    def app(self) -> web.Application:
        """The application of the agents' listener."""
        app = web.Application()
        app.router.add_get(AGENTS_PATH, self._accept, expect_handler=_say_nothing_yet)
        return app

    def send(self, agent_id: str, message: ToAgent) -> bool:
        """Queues a message for an agent. Returns False if it is not connected any more."""
        connection = self._by_agent.get(agent_id)
        if connection is None:
            return False
        connection.checks.sent(message)
        connection.outgoing.append(message)
        connection.pump.wake()
        return True

    def disconnect_revoked(self) -> None:
        """Disconnects every agent that may not stay connected. It costs nothing while the register is unchanged."""
        register = self._doorkeeper.current()
        if register is self._checked:
            return
        self._checked = register
        for connection in tuple(self._by_agent.values()):
            self._may_stay(connection)

    async def until_back(self, stop: asyncio.Event) -> None:
        """Waits until the agents that are expected have reported, for `BACK_S` at most, or until `stop` is set.

        Until then other coordinators answer what this one cannot: who finds no API here goes on to them.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + BACK_S
        while self._table.is_expecting(loop.time()) and loop.time() < until_s and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACK_POLL_S):
                    await stop.wait()

    def warnings(self) -> list[HealthWarning]:
        """Returns a warning for each agent id that two hosts claim."""
        return self._claims.warnings(asyncio.get_running_loop().time())

    def close(self, reason: str) -> None:
        """Says goodbye to all agents; they reconnect by themselves as soon as a coordinator listens again."""
        for connection in tuple(self._connections):
            connection.pump.close(reason)

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        _check_headers(request)
        try:
            identity = await self._doorkeeper.admit(request.headers)
        except AgentRefusedError as error:
            # Whoever floods the listener must not flood the log as well.
            if self._refusals_logged.take(asyncio.get_running_loop().time()) == 0.0:
                log.warning("agent_refused", reason=error.refusal.value, peer=request.remote)
            headers = {REFUSAL_HEADER: error.refusal.value}
            raise web.HTTPUnauthorized(text=" ".join(WHY[error.refusal]), headers=headers) from error
        except Moe2Error as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        websocket = web.WebSocketResponse(
            max_msg_size=self.settings.max_frame_bytes, compress=False, autoping=True, heartbeat=None
        )
        await self._turns.acquire()
        try:
            await websocket.prepare(request)
        except BaseException:
            self._turns.release()
            raise
        session = CoordinatorSession(
            Welcome(
                protocol=PROTOCOL_VERSION,
                coordinator_id=self._coordinator_id,
                coordinator_version=__version__,
                heartbeat_s=self.settings.heartbeat_s,
                report_s=self.settings.report_s,
                max_frame_bytes=self.settings.max_frame_bytes,
                enrolled=identity.agent_id is not None,
            ),
            now_s=asyncio.get_running_loop().time(),
            handshake_s=self.settings.handshake_s,
            asks_first=True,
        )
        outgoing: deque[JobMessage] = deque()
        pump = Pump(
            session,
            next_message=lambda: outgoing.popleft() if outgoing else None,
            on_event=lambda event: self._act(connection, event),
        )
        connection = _Connection(
            pump=pump,
            session=session,
            identity=identity,
            address=request.remote,
            logged=self._log_limit(identity.agent_id or ""),
            outgoing=outgoing,
        )
        connection.turn = asyncio.get_running_loop().call_later(MAX_TURN_S, self._turn_over, connection)
        self._connections.add(connection)
        try:
            await pump.run(websocket)
        finally:
            self._turn_over(connection)
            self._connections.discard(connection)
            self._forget(connection)
            await _hang_up(request, websocket)
        return websocket

    def _turn_over(self, connection: _Connection) -> None:
        """Lets the next agent shake hands."""
        if connection.turn is not None:
            connection.turn.cancel()
            connection.turn = None
            self._turns.release()

    def _act(self, connection: _Connection, event: SessionEvent) -> None:
        match event:
            case MessageReceived(message=message):
                self._received(connection, message)
            case Greeted(hello=hello):
                self._greeted(connection, hello)
            case RttMeasured(rtt_s=rtt_s):
                if connection.agent_id:
                    self._table.rtt_measured(connection.agent_id, rtt_s)
            case NotSent():
                self._not_sent(connection, event)
            case PeerUnreadable(op=op, job_id=job_id, reason=reason):
                self._take(connection, op, connection.checks.unreadable(op, job_id, reason), is_told=True)
            case PeerFaulted(code=code, message=text):
                if connection.may_log:
                    code, detail = shown(code, MAX_NAME_CHARACTERS), shown(text)
                    log.warning("agent_did_not_understand", agent_id=connection.agent_id, code=code, detail=detail)
            case Closed(code=code, reason=reason):
                connection.is_asleep = code == LinkCode.GOODBYE and reason == ASLEEP
                code, reason = shown(code, MAX_NAME_CHARACTERS), shown(reason)
                if connection.may_log:
                    log.info("session_closed", agent_id=connection.agent_id, code=code, reason=reason)

    def _greeted(self, connection: _Connection, hello: Hello) -> None:
        """Takes an agent's hello, and refuses one with an impossible field."""
        self._turn_over(connection)
        if fault := hello_fault(hello):
            if connection.may_log:
                log.warning("agent_hello_refused", reason=fault)
            remedy = "Set agent.name on it, or remove agent-id from its state_dir."
            connection.session.refuse(LinkCode.INVALID_HELLO, f"The agent cannot be called so: {fault}.", remedy)
            connection.pump.wake()
            return
        connection.claimant = Claimant(hello, connection.address)
        connection.logged = self._log_limit(hello.agent_id)
        self._claimed(connection, connection.claimant)

    def _claimed(self, connection: _Connection, claimant: Claimant) -> None:
        """Welcomes an agent that claims its id, or first asks the holder of that id whether it is alive."""
        if not self._may_stay(connection):
            return
        now_s, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        holder = self._by_agent.get(claimant.hello.agent_id)
        if holder is not None and holder.session.closed:
            # It has ended, and its handler has not noticed yet.
            self._forget(holder)
            holder = None
        match self._claims.verdict(claimant, holder.claimant if holder else None, now_s):
            case Verdict.ASK_HOLDER if holder is not None:
                holder.session.probe(now_s)
                holder.pump.reschedule()
                wait_s = min(PROBE_S, self.settings.handshake_s / 2)
                loop.call_later(wait_s, self._holder_asked, connection, claimant, holder, now_s)
            case _:
                self._join(connection, claimant, holder)

    def _holder_asked(
        self, connection: _Connection, claimant: Claimant, holder: _Connection, asked_at_s: float
    ) -> None:
        """Decides on a claim after the holder of the id has had its time to answer."""
        if connection not in self._connections or connection.session.closed:
            return
        if self._by_agent.get(claimant.hello.agent_id) is not holder or holder.claimant is None:
            # It has left, or a third connection has its place.
            self._claimed(connection, claimant)
            return
        if holder.session.last_heard_s <= asked_at_s:
            if self._may_stay(connection):
                self._join(connection, claimant, holder)
            return
        log.warning(
            "agent_id_shared",
            agent_id=claimant.hello.agent_id,
            holder=str(holder.claimant),
            refused=str(claimant),
        )
        message, remedy = self._claims.refused(claimant, holder.claimant, asyncio.get_running_loop().time())
        connection.session.refuse(Refusal.AGENT_ID_SHARED.value, message, remedy)
        connection.pump.reschedule()

    def _join(self, connection: _Connection, claimant: Claimant, former: _Connection | None) -> None:
        """Welcomes an agent. former: its dead connection, whose jobs are lost."""
        hello, now_s = claimant.hello, asyncio.get_running_loop().time()
        if former:
            log.warning("agent_replaced", agent_id=hello.agent_id, agent_name=hello.agent_name)
            self._claims.replaced(hello.agent_id, now_s)
            self._forget(former)
            former.pump.close("replaced by a newer connection of the same agent")
        protocol = connection.session.welcome(now_s).protocol
        connection.pump.reschedule()
        self._by_agent[hello.agent_id] = connection
        self._table.agent_joined(hello, now_s, protocol=protocol)
        if connection.may_log:
            log.info("agent_joined", agent_id=hello.agent_id, agent_name=hello.agent_name, protocol=protocol)

    def _may_stay(self, connection: _Connection) -> bool:
        """Whether the connection may be its agent's; if not, the agent is told why and the connection ends."""
        agent_id = connection.agent_id or ""
        refusal = self._doorkeeper.refusal_of(connection.identity, agent_id)
        if refusal is None:
            return True
        log.warning("agent_no_longer_admitted", agent_id=agent_id, reason=refusal.value)
        connection.is_turned_out = True
        message, remedy = WHY[refusal]
        connection.session.refuse(refusal.value, message, remedy)
        connection.pump.wake()
        return False

    def _not_sent(self, connection: _Connection, event: NotSent) -> None:
        """Fails the job of a message that could not be sent, or answers the command; the link goes on."""
        message, reason = event.message, event.reason
        log.warning("message_not_sent", agent_id=connection.agent_id, op=type(message).__name__, reason=reason)
        if isinstance(message, Job) and connection.agent_id:
            self._on_message(connection.agent_id, JobFailed(job_id=message.job_id, code=event.code, message=reason))
        elif isinstance(message, Command) and connection.agent_id:
            refused = CommandAnswer(
                command_id=message.command_id,
                outcome=CommandOutcome.REFUSED,
                code=CommandErrorCode.NOT_POSSIBLE,
                message=reason,
            )
            self._on_answer(connection.agent_id, refused)

    def _received(self, connection: _Connection, message: JobMessage) -> None:
        if type(message) in SAID_BY_AGENTS:
            op = str(type(message).__struct_config__.tag)
            self._take(connection, op, connection.checks.check(message))
        elif connection.may_log:
            log.warning("message_ignored", agent_id=connection.agent_id, op=type(message).__name__)

    def _take(self, connection: _Connection, op: str, checked: Checked, *, is_told: bool = False) -> None:
        """Passes on the messages that may be believed, and acts on the faults. is_told: the agent knows the faults."""
        agent_id = connection.agent_id
        # A connection that was replaced may still have words in its buffers; its jobs are already given up.
        if agent_id is None or self._by_agent.get(agent_id) is not connection:
            return
        if checked.faults:
            self._complain(connection, agent_id, op, checked, is_told=is_told)
        for job_id in checked.stopped:
            self.send(agent_id, CancelJob(job_id=job_id))
        for message in checked.messages:
            if pass_on := self._beside_jobs.get(type(message)):
                pass_on(connection, agent_id, message)
            else:
                self._on_message(agent_id, cast("FromAgent", message))

    def _reported(self, _: _Connection, agent_id: str, report: Report) -> None:
        self._table.agent_reported(agent_id, report, asyncio.get_running_loop().time())
        self._on_report()

    def _answered(self, connection: _Connection, agent_id: str, answer: CommandAnswer) -> None:
        if connection.may_log:
            log.info("command_answered", agent_id=agent_id, **msgspec.structs.asdict(answer))
        self._on_answer(agent_id, answer)

    def _complain(self, connection: _Connection, agent_id: str, op: str, checked: Checked, *, is_told: bool) -> None:
        reason = "; ".join(checked.faults[:MAX_FAULTS_TOLD])
        if checked.suspends:
            self._table.agent_broke_rules(agent_id, reason, asyncio.get_running_loop().time())
        if reason == connection.told:
            return
        connection.told = reason
        if connection.may_log:
            log.warning("agent_broke_rules", agent_id=agent_id, op=op, reason=reason, suspended=checked.suspends)
        if not is_told:
            closed = connection.session.complain(LinkCode.UNSOUND, reason, in_reply_to=op, counts=checked.suspends)
            if closed:
                self._act(connection, closed)
            connection.pump.wake()

    def _log_limit(self, agent_id: str) -> TokenBucket:
        """Returns what counts an agent's lines in the log; "" for all that have not said who they are."""
        limit = self._logged.get(agent_id)
        if limit is None:
            if len(self._logged) >= MAX_LOG_LIMITS:
                del self._logged[next(iter(self._logged))]
            limit = self._logged[agent_id] = TokenBucket(WORDS_LOGGED_PER_MINUTE, 0.0)
        return limit

    def _forget(self, connection: _Connection) -> None:
        agent_id = connection.agent_id
        if agent_id is None or self._by_agent.get(agent_id) is not connection:
            return
        del self._by_agent[agent_id]
        if connection.is_turned_out:
            # Nobody waits for it to come back.
            self._table.agent_removed(agent_id)
        else:
            self._table.agent_left(agent_id, asyncio.get_running_loop().time(), asleep=connection.is_asleep)
        if connection.may_log:
            log.info("agent_left", agent_id=agent_id, asleep=connection.is_asleep)
        self._on_lost(agent_id)


async def _hang_up(request: web.Request, websocket: web.WebSocketResponse) -> None:
    """Ends a connection, also with a peer that does not read and so takes no part in its closing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await websocket.close()
    if request.transport is not None:
        request.transport.abort()


def _check_headers(request: web.Request) -> None:
    """Refuses a web page's request and a request with a body, neither of which an agent sends."""
    if "Origin" in request.headers:
        raise web.HTTPForbidden(text="Agents connect here; a browser's page may not.")
    if request.body_exists or "Expect" in request.headers:
        raise web.HTTPBadRequest(
            text="Agents connect here by WebSocket, without a body.", headers={"Connection": "close"}
        )


async def _say_nothing_yet(_: web.Request) -> None:
    """Sends no "100 Continue": nobody is asked for a body here."""
