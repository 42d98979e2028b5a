"""One answer on its way: as it comes in from the service, and as the server-sent events that it goes out by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.reports import ExpertReport
from moe2.coordinator.http.body.parse import Call
from moe2.coordinator.http.body.prompt import idle_settings
from moe2.coordinator.http.errors import ApiError, error_of, explained, listed_in_header
from moe2.coordinator.http.faces.face import ChoiceEncoder, Encoder, Origin, Part, PartReader, Text
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.exchange import Exchange

HEADERS = {
    "Cache-Control": "no-cache",
    # nginx passes on what it gets, instead of waiting until a buffer is full.
    "X-Accel-Buffering": "no",
}


class Answer:
    """An answer that is being streamed.

    call: the one that asks for this answer alone. response_id: the id of the request that asked for it, which several
    answers have in common. has_comments: the stream has lines that clients pass over.
    """

    def __init__(
        self, call: Call, exchange: Exchange, encoder: Encoder, *, response_id: str, has_comments: bool = True
    ) -> None:
        self.call = call
        self.exchange = exchange
        self.encoder = encoder
        self.outcome: Outcome | None = None
        self._response_id = response_id
        self._has_comments = has_comments
        self._pieces: list[TokenPiece] = []
        self._reader = reader_of(call, exchange)
        self._has_begun = False
        self._counter = encoder if call.continuous_usage and isinstance(encoder, ChoiceEncoder) else None
        self._n_tokens = 0

    def take(self) -> bool:
        """Takes what has come since; returns whether there is anything to write of it."""
        self._pieces, self.outcome = self.exchange.take()
        return bool(self._pieces)

    def events(self) -> bytes:
        """Returns the events for what was taken."""
        # Lines of an event stream that clients leave out, so that a reader sees that somebody is at work.
        remarks = self.exchange.remarks() if self._has_comments else ()
        opening = b"".join(f": {remark}\n\n".encode() for remark in remarks)
        if not self._has_begun and (self._pieces or self.outcome):
            self._has_begun = True
            opening += self.encoder.begin(origin_of(self.call, self.exchange, self._response_id))
            opening += self.encoder.parts(repeated_prompt(self.call))
        if self._counter is not None and self._has_begun:
            self._n_tokens += len(self._pieces)
            self._counter.counted(self._n_tokens)
        return opening + self.encoder.parts(self._reader.feed(self._pieces)) if self._has_begun else opening

    def rest(self) -> bytes:
        """Returns the events for what was held back until the end."""
        return self.encoder.parts(self._reader.finish())

    def reason(self) -> str:
        """Returns the finish reason; raises `ApiError` for an answer that was not completed."""
        assert self.outcome is not None  # noqa: S101 - it has ended
        return self._reader.reason(reason_of(self.outcome, self.exchange))


def reason_of(outcome: Outcome, exchange: Exchange) -> str:
    """Returns the finish reason of a completed request; raises `ApiError` for any other outcome."""
    match outcome:
        case Completed(reason=reason):
            return reason
        case Failed():
            contexts = [attempt.expert.report.context_tokens for attempt in exchange.life.attempts]
            outcome = explained(outcome, max(contexts, default=None))
            raise error_of(outcome, exchange.receipt, exchange.life.refused, retry_after_s=exchange.retry_after_s)
        case Cancelled():
            raise ApiError(499, f"{exchange.life.request.request_id} was cancelled.", kind="server_error")


def stop_of(exchange: Exchange) -> str | None:
    """Returns the stop string that has ended the answer; None where none has, or nobody knows."""
    outcome = exchange.life.outcome
    return outcome.stop if isinstance(outcome, Completed) else None


def blaming(error: ApiError, call: Call) -> ApiError:
    """Names, in an error about a grammar, the parameter that the grammar was made from."""
    if error.code == ErrorCode.INVALID_GRAMMAR.shown and error.param is None:
        error.param = call.structured_by
        error.message = f"'{error.param}' cannot be used: {error.message}"
    return error


def repeated_prompt(call: Call) -> Sequence[Part]:
    """Returns the prompt as a part of the answer, where the client wants to see it and the expert does not send it."""
    if not call.repeats_prompt or not isinstance(call.prompt, TextPrompt):
        return ()
    return (Text((TokenPiece(call.prompt.text),)),)


def reader_of(call: Call, exchange: Exchange) -> PartReader:
    """Returns who finds the parts of an answer in its tokens."""
    rules, offered = call.generation.tool_rules, call.offered
    most_calls = 1 if offered.is_legacy or (rules is not None and not rules.parallel) else None
    request_id = exchange.life.request.request_id
    return PartReader(call.tool_names, request_id, most_calls=most_calls, input_of=offered.input_of)


def origin_of(call: Call, exchange: Exchange, response_id: str) -> Origin:
    """Returns where an answer comes from, as far as that is known."""
    leading = exchange.life.leading
    return Origin(
        request_id=response_id,
        created_unix_s=int(time.time()),
        model=leading.expert.model if leading else call.model,
        prompt_tokens=leading.prompt_tokens if leading else None,
    )


def headers_of(call: Call, exchange: Exchange, able: Callable[[], Sequence[ExpertReport]]) -> dict[str, str]:
    """Returns the headers that say who answers, what the coordinator took, and which parameters change nothing.

    able: tells of the experts that the model's name stands for, one of which is to answer.
    """
    reports = None
    life = exchange.life
    leading = life.leading
    headers = {"x-moe2-overhead-ms": f"{1000 * (life.overhead_s or 0.0):.3f}"}
    # Before a token or the end, it is open whose answer it will be.
    if leading and (life.first_token_s is not None or life.outcome is not None):
        expert = leading.expert
        reports = (expert.report,)
        headers["x-moe2-expert"] = expert.key
        headers["x-moe2-agent"] = expert.agent_name
    ignored = call.ignored
    if call.variables:
        bounded = call.generation.thinking_budget_tokens is not None
        ignored += idle_settings(call.variables, reports or able(), bounded=bounded)
    if ignored:
        headers["x-moe2-ignored"] = listed_in_header(ignored)
    return headers


class EventStream:
    """A response of server-sent events. news: set where there is more to write, and when the silence has been too long.

    comment_s: the longest silence. comment: what is sent where there is nothing to say. content_type: that of other
    streams, whose events are no server-sent ones.

    Used as a context manager, which watches the silence with one timer: to limit each wait for news by itself would
    cost a timer for every token.
    """

    def __init__(
        self,
        http: web.Request,
        news: asyncio.Event,
        *,
        comment_s: float,
        comment: bytes,
        content_type: str = "text/event-stream",
    ) -> None:
        self._http = http
        self._news = news
        self._comment_s = comment_s
        self._comment = comment
        self._content_type = content_type
        self._loop = asyncio.get_running_loop()
        self._response: web.StreamResponse | None = None
        self._spoke_s: float | None = None
        self._began_s = self._loop.time()
        self._timer = self._loop.call_later(comment_s, self._look)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def open(self, headers: Mapping[str, str]) -> None:
        """Sends the status line and the headers."""
        self._response = web.StreamResponse(headers={**HEADERS, "Content-Type": self._content_type, **headers})
        await self._response.prepare(self._http)

    async def write(self, events: bytes) -> None:
        """Sends events; the comment in their place where there are none and the silence has been long enough.

        The first call sends one at once, so that nothing on the way holds the headers back.
        """
        if events:
            await self._send(events)
        elif self._spoke_s is None or self._silent_s >= self._comment_s:
            await self._send(self._comment)

    async def close(self, events: bytes) -> web.StreamResponse:
        """Sends the last events and ends the response."""
        await self._send(events)
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write_eof()
        return self._response

    async def news_or_silence(self) -> None:
        """Waits for news, but no longer than until something has to be said again."""
        await self._news.wait()
        self._news.clear()

    @property
    def _silent_s(self) -> float:
        """The seconds since something was sent, or since the stream began."""
        return self._loop.time() - (self._began_s if self._spoke_s is None else self._spoke_s)

    def _look(self) -> None:
        """Ends the wait where the silence has been long enough, and looks again when it could next be."""
        left_s = self._comment_s - self._silent_s
        if left_s <= 0:
            self._news.set()
            left_s = self._comment_s
        self._timer = self._loop.call_later(left_s, self._look)

    async def _send(self, content: bytes) -> None:
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write(content)
        self._spoke_s = self._loop.time()
