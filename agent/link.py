"""The WebSocket to the coordinator: a pump around `AgentSession`, with reconnection. Decides nothing about jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import structlog

from moe2.agent.outbox import Outbox
from moe2.common.backoff import Backoff
from moe2.common.errors import ProtocolError
from moe2.common.messages import Hello, JobPieces, Welcome
from moe2.common.pump import Pump
from moe2.common.session import (
    AgentSession,
    Closed,
    JobMessage,
    MessageReceived,
    Opened,
    PeerFaulted,
    RttMeasured,
    SessionEvent,
)
from moe2.common.status import LinkState, LinkStatus
from moe2.common.wire import DEFAULT_MAX_FRAME_BYTES

log = structlog.get_logger()

AGENTS_PATH = "/v1/agents"


class Link:
    """Keeps one session with the coordinator alive until `run()` is cancelled.

    on_opened, on_message and on_lost are called on the event loop; `on_lost` once per session that was open.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        hello: Hello,
        connect_timeout_s: float,
        backoff: Backoff,
        on_opened: Callable[[Welcome], None],
        on_message: Callable[[JobMessage], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._url = url
        self._token = token
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._backoff = backoff
        self._on_opened = on_opened
        self._on_message = on_message
        self._on_lost = on_lost
        self._outbox = Outbox()
        self._session: AgentSession | None = None
        self._pump: Pump | None = None
        self._closed = asyncio.Event()
        self._closing: str | None = None
        self._state = LinkState.WAITING
        self._connected_since_unix_s: float | None = None
        self._rtt_s: float | None = None
        self._protocol: int | None = None
        self._attempts = 0
        self._next_attempt_s: float | None = None
        self._last_error: tuple[str, float] | None = None

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
            last_error=self._last_error[0] if self._last_error else None,
            last_error_at_unix_s=self._last_error[1] if self._last_error else None,
        )

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
        self._closed.set()
        if self._pump:
            self._pump.close(reason)

    async def run(self) -> None:
        """Connect, serve the session, and again with back-off. Returns only after `close()`."""
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._token}"}) as http:
            while self._closing is None:
                self._attempts += 1
                self._state = LinkState.CONNECTING
                problem = await self._attempt(http)
                self._state, self._protocol, self._rtt_s = LinkState.WAITING, None, None
                self._connected_since_unix_s = None
                if self._closing is not None:
                    return
                self._last_error = (problem, time.time())
                delay_s = self._backoff.next_delay_s()
                self._next_attempt_s = loop.time() + delay_s
                log.warning("link_lost", reason=problem, retry_in_s=round(delay_s, 2))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), delay_s)

    async def _attempt(self, http: aiohttp.ClientSession) -> str:
        """One connection from handshake to end; returns why it ended."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                websocket = await http.ws_connect(
                    self._url + AGENTS_PATH, max_msg_size=DEFAULT_MAX_FRAME_BYTES, autoping=True, heartbeat=None
                )
        except TimeoutError:
            return f"no answer within {self._connect_timeout_s:.0f} s"
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401:
                return "the coordinator refused the enrolment token (401). Put its current token into token_file."
            return f"the coordinator answered {error.status} {error.message}. Is this its agents listener?"
        except aiohttp.InvalidURL:
            return f"{self._url} is no address that can be connected to. Correct coordinator.url."
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__
        try:
            return await self._serve(websocket)
        except (aiohttp.ClientError, OSError, ProtocolError) as error:
            return str(error) or type(error).__name__
        finally:
            was_open = self._session is not None and self._protocol is not None
            self._session = self._pump = None
            self._outbox.clear()
            await websocket.close()
            if was_open:
                self._on_lost()

    async def _serve(self, websocket: aiohttp.ClientWebSocketResponse) -> str:
        session = AgentSession(
            self._hello,
            now_s=asyncio.get_running_loop().time(),
            handshake_s=self._connect_timeout_s,
            max_frame_bytes=DEFAULT_MAX_FRAME_BYTES,
        )
        self._session = session
        self._pump = Pump(session, next_message=self._outbox.take, on_event=self._act)
        if self._closing is not None:
            self._pump.close(self._closing)
        await self._pump.run(websocket)
        if session.closed:
            return str(ProtocolError(session.closed.reason, remedy=session.closed.remedy))
        return "the connection to the coordinator broke"

    def _act(self, event: SessionEvent) -> None:
        match event:
            case Opened(protocol=protocol, welcome=Welcome() as welcome):
                self._backoff.succeeded()
                self._state, self._protocol = LinkState.CONNECTED, protocol
                self._connected_since_unix_s = time.time()
                log.info("link_opened", url=self._url, protocol=protocol)
                self._on_opened(welcome)
            case MessageReceived(message=message):
                self._on_message(message)
            case RttMeasured(rtt_s=rtt_s):
                self._rtt_s = rtt_s
            case PeerFaulted(code=code, message=text):
                log.warning("coordinator_did_not_understand", code=code, detail=text)
            case Closed(code=code, reason=reason):
                log.info("session_closed", code=code, reason=reason)
