"""The WebSocket to the coordinator: a pump around `AgentSession`, with reconnection. Decides nothing about jobs."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import structlog

from moe2.agent.link.outbox import Outbox
from moe2.common.backoff import Backoff
from moe2.common.errors import JobErrorCode, Moe2Error, ProtocolError
from moe2.common.link.enrolment import REFUSAL_HEADER, WHY, Refusal
from moe2.common.link.messages import (
    CancelJob,
    Hello,
    JobFailed,
    JobPieces,
    JobScored,
    NextTokens,
    Tokens,
    Vectors,
    Welcome,
)
from moe2.common.link.pump import Pump
from moe2.common.link.session import (
    AgentSession,
    Closed,
    JobMessage,
    MessageReceived,
    NotSent,
    Opened,
    PeerFaulted,
    RttMeasured,
    SessionEvent,
)
from moe2.common.link.wire import DEFAULT_MAX_FRAME_BYTES
from moe2.common.status import LinkState, LinkStatus
from moe2.common.tls.contexts import TlsError, connection_fault

log = structlog.get_logger()

AGENTS_PATH = "/v1/agents"


class LinkTiming(Protocol):
    """The settings that each attempt to connect goes by."""

    @property
    def connect_timeout_s(self) -> float: ...

    @property
    def refused_retry_s(self) -> float: ...


class Credentials(Protocol):
    """What shows the coordinator who we are."""

    def headers(self) -> Mapping[str, str]:
        """Returns the headers of the next upgrade request. Raises `Moe2Error`."""

    def enrolled(self) -> None:
        """The coordinator knows our credential. Raises `Moe2Error` if that cannot be stored."""

    def unknown(self) -> bool:
        """The coordinator does not know what we showed; True if there is something else to show."""


@dataclass(frozen=True)
class Trouble:
    """Why there is no session. code: see `LinkStatus.last_error_code`."""

    reason: str
    code: str | None = None
    remedy: str | None = None

    @property
    def is_refusal(self) -> bool:
        """Whether the coordinator refused, so that nothing changes until a person acts."""
        return self.code in tuple(Refusal)


class Link:
    """Keeps one session with the coordinator alive until `run()` is cancelled.

    credentials: what to show at each attempt. tls: makes an attempt's context, None for ws://; may raise `TlsError`.
    timing: read anew at each attempt.

    on_opened, on_message and on_lost are called on the event loop; `on_lost` once per session that was open.
    """

    def __init__(
        self,
        *,
        url: str,
        credentials: Credentials,
        tls: Callable[[], ssl.SSLContext | None],
        hello: Hello,
        timing: LinkTiming,
        backoff: Backoff,
        on_opened: Callable[[Welcome], None],
        on_message: Callable[[JobMessage], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._url = url
        self._papers = credentials
        self._tls = tls
        self._hello = hello
        self.timing = timing
        self.backoff = backoff
        self._on_opened = on_opened
        self._on_message = on_message
        self._on_lost = on_lost
        self._outbox = Outbox()
        self._session: AgentSession | None = None
        self._pump: Pump | None = None
        self._called = asyncio.Event()
        """Set where the next step is not to be waited for any longer."""
        self._closing: str | None = None
        self._away: str | None = None
        self._left = asyncio.Event()
        self._state = LinkState.WAITING
        self._connected_since_unix_s: float | None = None
        self._rtt_s: float | None = None
        self._protocol: int | None = None
        self._attempts = 0
        self._next_attempt_s: float | None = None
        self._last_error: tuple[Trouble, float] | None = None

    @property
    def status(self) -> LinkStatus:
        next_attempt_in_s = None
        if self._state is LinkState.WAITING and self._next_attempt_s is not None:
            next_attempt_in_s = max(0.0, self._next_attempt_s - asyncio.get_running_loop().time())
        return LinkStatus(
            url=self._url,
            state=self._state,
            connected_since_unix_s=self._connected_since_unix_s,
            rtt_s=self._rtt_s,
            protocol=self._protocol,
            attempts=self._attempts,
            next_attempt_in_s=next_attempt_in_s,
            last_error=self._last_error[0].reason if self._last_error else None,
            last_error_code=self._last_error[0].code if self._last_error else None,
            last_error_remedy=self._last_error[0].remedy if self._last_error else None,
            last_error_at_unix_s=self._last_error[1] if self._last_error else None,
        )

    @property
    def is_open(self) -> bool:
        """Whether what is sent now reaches the coordinator."""
        return self._pump is not None and self._session is not None and self._session.is_open

    def send(self, message: JobMessage) -> None:
        """Queue a message for the open session; dropped where there is none, as nobody could use it later."""
        if self._pump and self._session and self._session.is_open:
            self._outbox.put(message)
            self._pump.wake()

    def send_tokens(self, jobs: tuple[JobPieces, ...]) -> None:
        if self._pump and self._session and self._session.is_open:
            self._outbox.put_tokens(jobs)
            self._pump.wake()

    def close(self, reason: str) -> None:
        """Say goodbye once everything queued has been sent; the session then ends and is not opened again."""
        self._closing = reason
        self._left.set()
        self._called.set()
        if self._pump:
            self._pump.close(reason)

    async def leave(self, reason: str) -> None:
        """Say goodbye once everything queued has been sent; returns when it is said. Stay away until `come_back`."""
        self._away = reason
        self._left.clear()
        self._called.set()
        if self._pump:
            self._pump.close(reason)
        await self._left.wait()

    def come_back(self) -> None:
        """Connect again at once, also where a session is open: after a sleep its other end may be gone."""
        if self._away is None and self._pump:
            self._pump.close("the host has slept")
        self._away = None
        self._left.set()
        self._called.set()

    async def run(self) -> None:
        """Connect, serve the session, and again with back-off. Returns only after `close()`."""
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession() as http:
            while self._closing is None:
                self._called.clear()
                if self._away is not None:
                    self._left.set()
                    await self._called.wait()
                    continue
                self._attempts += 1
                self._state = LinkState.CONNECTING
                trouble = await self._attempt(http)
                self._state, self._protocol, self._rtt_s = LinkState.WAITING, None, None
                self._connected_since_unix_s = None
                if self._called.is_set():
                    # Told to leave, to come back, or to end: nothing went wrong, and nothing is waited for.
                    continue
                self._last_error = (trouble, time.time())
                delay_s = self.backoff.next_delay_s()
                if trouble.is_refusal and not self._refused(trouble):
                    delay_s = max(delay_s, self.timing.refused_retry_s)
                self._next_attempt_s = loop.time() + delay_s
                log.warning("link_lost", reason=trouble.reason, code=trouble.code, retry_in_s=round(delay_s, 2))
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._called.wait()

    def _refused(self, trouble: Trouble) -> bool:
        """True if the next attempt shows something else, and so need not wait for a person."""
        if trouble.code != Refusal.CREDENTIAL_UNKNOWN:
            return False
        return self._papers.unknown()

    async def _attempt(self, http: aiohttp.ClientSession) -> Trouble:
        """One connection from handshake to end; returns why it ended."""
        try:
            async with asyncio.timeout(self.timing.connect_timeout_s):
                websocket = await http.ws_connect(
                    self._url + AGENTS_PATH,
                    headers=self._papers.headers(),
                    ssl=self._tls() or True,
                    max_msg_size=DEFAULT_MAX_FRAME_BYTES,
                    autoping=True,
                    heartbeat=None,
                )
        except TimeoutError:
            return Trouble(f"no answer within {self.timing.connect_timeout_s:.0f} s")
        except aiohttp.WSServerHandshakeError as error:
            return _refused_upgrade(error)
        except aiohttp.InvalidURL:
            return Trouble(f"{self._url} is no address that can be connected to. Correct coordinator.url.")
        except TlsError as error:
            return Trouble(str(error), error.fault, error.remedy)
        except Moe2Error as error:
            return Trouble(str(error), Refusal.TOKEN_REFUSED, error.remedy)
        except (aiohttp.ClientError, OSError) as error:
            return self._not_connected(error)
        try:
            return await self._serve(websocket)
        except (aiohttp.ClientError, OSError) as error:
            return _broken(error)
        except ProtocolError as error:
            return Trouble(str(error), error.code)
        finally:
            was_open = self._session is not None and self._protocol is not None
            self._session = self._pump = None
            self._outbox.clear()
            await websocket.close()
            if was_open:
                self._on_lost()

    def _not_connected(self, error: Exception) -> Trouble:
        if self._url.startswith("wss:"):
            if fault := connection_fault(error):
                return Trouble(str(fault), fault.fault, fault.remedy)
        elif isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
            return Trouble(f"{error}. If the coordinator has [agents.tls], write wss:// in coordinator.url.")
        return _broken(error)

    async def _serve(self, websocket: aiohttp.ClientWebSocketResponse) -> Trouble:
        session = AgentSession(
            self._hello,
            now_s=asyncio.get_running_loop().time(),
            handshake_s=self.timing.connect_timeout_s,
            max_frame_bytes=DEFAULT_MAX_FRAME_BYTES,
        )
        self._session = session
        self._pump = Pump(session, next_message=self._outbox.take, on_event=self._act)
        if (reason := self._closing or self._away) is not None:
            self._pump.close(reason)
        await self._pump.run(websocket)
        if session.closed:
            closed = session.closed
            return Trouble(str(ProtocolError(closed.reason, remedy=closed.remedy)), closed.code, closed.remedy)
        return Trouble("the connection to the coordinator broke")

    def _act(self, event: SessionEvent) -> None:
        match event:
            case Opened(protocol=protocol, welcome=Welcome() as welcome):
                self.backoff.succeeded()
                self._state, self._protocol = LinkState.CONNECTED, protocol
                self._connected_since_unix_s = time.time()
                log.info("link_opened", url=self._url, protocol=protocol)
                if welcome.enrolled:
                    self._enrolled()
                self._on_opened(welcome)
            case MessageReceived(message=message):
                self._on_message(message)
            case RttMeasured(rtt_s=rtt_s):
                self._rtt_s = rtt_s
            case NotSent(message=message, reason=reason):
                self._not_sent(message, reason)
            case PeerFaulted(code=code, message=text):
                log.warning("coordinator_did_not_understand", code=code, detail=text)
            case Closed(code=code, reason=reason):
                log.info("session_closed", code=code, reason=reason)

    def _enrolled(self) -> None:
        try:
            self._papers.enrolled()
        except Moe2Error as error:
            # The link is good; the token is only shown once more after a restart.
            log.warning("credential_not_stored", reason=str(error))

    def _not_sent(self, message: JobMessage, reason: str) -> None:
        """It costs its jobs only, not the link: an answer with a hole in it is worth nothing."""
        log.warning("message_not_sent", op=type(message).__name__, reason=reason)
        match message:
            case Tokens(jobs=jobs):
                job_ids = [job.job_id for job in jobs]
            case NextTokens(job_id=job_id) | JobScored(job_id=job_id) | Vectors(job_id=job_id):
                job_ids = [job_id]
            case _:
                return
        for job_id in job_ids:
            self.send(JobFailed(job_id=job_id, code=JobErrorCode.INTERNAL, message=reason))
            self._on_message(CancelJob(job_id=job_id))


def _refused_upgrade(error: aiohttp.WSServerHandshakeError) -> Trouble:
    named = error.headers.get(REFUSAL_HEADER) if error.headers else None
    if named in tuple(Refusal):
        refusal = Refusal(named)
    elif error.status == 401:
        # A coordinator that knows of no credentials asks for the token each time.
        refusal = Refusal.CREDENTIAL_UNKNOWN
    else:
        return Trouble(f"the coordinator answered {error.status} {error.message}. Is this its agents listener?")
    return Trouble(" ".join(WHY[refusal]), refusal, WHY[refusal][1])


def _broken(error: Exception) -> Trouble:
    if isinstance(error, aiohttp.ClientConnectorError):
        # The library's own text has an address in memory in it, which is another one at each attempt.
        cause = error.os_error
        said = os.strerror(cause.errno) if cause.errno else str(cause)
        return Trouble(f"{error.host}:{error.port} cannot be connected to: {said}")
    return Trouble(str(error) or type(error).__name__)
