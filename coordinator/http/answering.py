"""What answers a request, whatever its face: it begins the request, waits for its tokens, and sends what the face
writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.auth import BODY, PRINCIPAL
from moe2.coordinator.http.body.parse import Call, Reading
from moe2.coordinator.http.errors import ApiError, error_of, listed_in_header, quoted, refused, unsupported
from moe2.coordinator.http.face import Asked, End, Face, Incoming, Origin, PartReader
from moe2.coordinator.http.settings import ApiSection
from moe2.coordinator.keys.keys import ANYBODY
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.waiting_room import whole_seconds

REQUEST_ID = web.RequestKey("request_id", str)


class Answering:
    """Turns HTTP requests into requests of the service, and what these produce into HTTP responses.

    settings: those of the API, as they are now; a reload replaces them.
    """

    def __init__(self, service: Service, table: CapabilityTable, settings: ApiSection) -> None:
        self._service = service
        self._table = table
        self.use(settings)

    def use(self, settings: ApiSection) -> None:
        """Replaces the settings; they hold from the next request on."""
        self._settings = settings
        self._reading = Reading(ignore_unknown=settings.unknown_parameters == "ignore", aliases=settings.aliases)

    def through(self, face: Face) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Returns the handler that answers requests which have this face."""

        async def handler(http: web.Request) -> web.StreamResponse:
            return await self._answer(http, face)

        return handler

    async def _answer(self, http: web.Request, face: Face) -> web.StreamResponse:
        arrived_s = asyncio.get_running_loop().time()
        principal = http.get(PRINCIPAL, ANYBODY)
        asked = face(Incoming(http[BODY], http.headers, principal, self._reading))
        call = asked.call
        if call.n_choices > 1 or call.repeats_prompt or call.generation.echo:
            raise unsupported("n" if call.n > 1 else "echo" if call.n_choices == 1 else "prompt")
        self._check_can_begin(call)
        request = Request(
            request_id=http[REQUEST_ID],
            model=call.model,
            prompt=call.prompt,
            generation=call.generation,
            demand=call.demand(),
            arrived_s=arrived_s,
            deadline_s=arrived_s + self._settings.request_timeout_s,
            wish=call.wish,
            modes=call.modes,
            prefix=call.prefix,
            ballot=call.ballot,
            texts=call.texts,
            vector_size=call.vector_size,
            traceparent=http.headers.get("traceparent"),
            principal=principal,
            is_streamed=call.stream,
        )
        exchange = self._service.begin(request)
        try:
            if call.stream:
                return await self._stream(http, asked, exchange)
            return await self._respond(asked, exchange)
        except ApiError as error:
            await exchange.until_recorded()
            raise _blaming(error, call) from None
        finally:
            # The client left, or the handler failed: either way nobody reads on. No effect on an ended request.
            self._service.client_gone(request.request_id)

    def _check_can_begin(self, call: Call) -> None:
        """Raises `ApiError` if the request cannot be begun.

        The reasons are a shutdown, too many requests in progress, and an unknown model.
        """
        if self._service.stopping:
            raise refused(ErrorCode.STOPPING, "The coordinator is shutting down.")
        if self._service.is_full:
            room_in_s = self._service.room_in_s(call.model)
            raise refused(
                ErrorCode.OVERLOADED,
                "Too many requests in progress.",
                retry_after_s=None if room_in_s is None else whole_seconds(room_in_s),
            )
        check_model(self._table, call.model)

    @staticmethod
    async def _respond(asked: Asked, exchange: Exchange) -> web.Response:
        pieces, outcome = await exchange.receive_all()
        reason = _reason(outcome, exchange)
        reader = _reader(asked.call, exchange)
        parts = [*reader.feed(pieces), *reader.finish()]
        end = End(reader.reason(reason), exchange.receipt, exchange.vectors)
        body = asked.encoder.whole(_origin(asked.call, exchange), parts, end)
        answer = web.Response(
            body=msgspec.json.encode(body), content_type="application/json", headers=_headers(asked.call, exchange)
        )
        await exchange.until_recorded()
        return answer

    @staticmethod
    async def _stream(http: web.Request, asked: Asked, exchange: Exchange) -> web.StreamResponse:
        # The status line waits for the first news, so that a failure before it is a proper HTTP error.
        pieces, outcome = await exchange.receive()
        if outcome is not None and not pieces:
            _reason(outcome, exchange)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_headers(asked.call, exchange)}
        )
        await response.prepare(http)
        encoder, reader = asked.encoder, _reader(asked.call, exchange)
        opening: bytes | None = None
        while True:
            for remark in exchange.remarks():
                # A line of an event stream that clients leave out, so that proxies see that somebody is at work.
                await response.write(f": {remark}\n\n".encode())
            if opening is None and (pieces or outcome is not None):
                # Only now it is known who answers.
                opening = encoder.begin(_origin(asked.call, exchange))
            if chunk := (opening or b"") + encoder.parts(reader.feed(pieces)):
                await response.write(chunk)
            if outcome is not None:
                break
            opening = opening and b""
            pieces, outcome = await exchange.receive()
        last = _last_chunk(asked, reader, outcome, exchange)
        await exchange.until_recorded()
        await response.write(last)
        await response.write_eof()
        return response


def check_model(table: CapabilityTable, model: str) -> None:
    """Raises `ApiError` (404) for a name that is neither a model, nor an expert, nor one that lets moe2 choose."""
    known = table.models()
    if model in ANY_MODEL or model in known or table.knows_expert(model):
        return
    names = ", ".join((*ANY_MODEL, *known))
    raise refused(
        ErrorCode.MODEL_NOT_FOUND, f"The model {quoted(model)} does not exist. Known: {names}.", param="model"
    )


def _last_chunk(asked: Asked, reader: PartReader, outcome: Outcome, exchange: Exchange) -> bytes:
    encoder = asked.encoder
    held = encoder.parts(reader.finish())
    try:
        reason = _reason(outcome, exchange)
    except ApiError as error:
        return held + encoder.error(error)
    return held + encoder.end(End(reader.reason(reason), exchange.receipt))


def _reason(outcome: Outcome, exchange: Exchange) -> str:
    """Returns the finish reason of a completed request; raises `ApiError` for any other outcome."""
    match outcome:
        case Completed(reason=reason):
            return reason
        case Failed():
            raise error_of(outcome, exchange.receipt, exchange.life.refused, retry_after_s=exchange.retry_after_s)
        case Cancelled():
            raise ApiError(499, f"{exchange.life.request.request_id} was cancelled.", kind="server_error")


def _blaming(error: ApiError, call: Call) -> ApiError:
    """Names, in an error about a grammar, the parameter that the grammar was made from."""
    if error.code == ErrorCode.INVALID_GRAMMAR.shown and error.param is None:
        error.param = call.structured_by
        error.message = f"'{error.param}' cannot be used: {error.message}"
    return error


def _reader(call: Call, exchange: Exchange) -> PartReader:
    return PartReader(call.tool_names, exchange.life.request.request_id)


def _origin(call: Call, exchange: Exchange) -> Origin:
    leading = exchange.life.leading
    return Origin(
        request_id=exchange.life.request.request_id,
        created_unix_s=int(time.time()),
        model=leading.expert.model if leading else call.model,
        prompt_tokens=leading.prompt_tokens if leading else None,
    )


def _headers(call: Call, exchange: Exchange) -> dict[str, str]:
    """Returns the headers that say who answers, what the coordinator took, and which parameters change nothing."""
    life = exchange.life
    headers = {"x-moe2-overhead-ms": f"{1000 * (life.overhead_s or 0.0):.3f}"}
    if call.ignored:
        headers["x-moe2-ignored"] = listed_in_header(call.ignored)
    # Before a token or the end, it is open whose answer it will be.
    if life.leading and (life.first_token_s is not None or life.outcome is not None):
        expert = life.leading.expert
        headers |= {"x-moe2-expert": expert.key, "x-moe2-agent": expert.agent_name}
    return headers
