"""The routes of OpenAI's API: chat completions, text completions and models."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec
import structlog
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import ToolCall
from moe2.coordinator.choosing.request import Demand
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.answer import (
    ChunkWriter,
    Header,
    chunks_of,
    finish_reason_of,
    full_response,
    rest_chunks_of,
    split_answer,
)
from moe2.coordinator.http.auth import BODY, PRINCIPAL
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.encodings import ACCEPTED
from moe2.coordinator.http.errors import ApiError, error_of, quoted, refused, unsupported
from moe2.coordinator.http.paths import CHAT_PATH, COMPLETIONS_PATH, MODELS_PATH
from moe2.coordinator.http.toolcalls import CallReader
from moe2.coordinator.keys.keys import ANYBODY
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.waiting_room import whole_seconds

log = structlog.get_logger()

MAX_PATIENCE_S = 60
REQUEST_ID = web.RequestKey("request_id", str)


class OpenAiRoutes:
    """The routes that turn HTTP requests into requests of the service, and what these produce into HTTP responses.

    request_timeout_s: after this a request is cancelled.
    """

    def __init__(self, service: Service, table: CapabilityTable, *, request_timeout_s: float) -> None:
        self._service = service
        self._table = table
        self.request_timeout_s = request_timeout_s
        self._started_unix_s = int(time.time())

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(CHAT_PATH, self._chat)
        app.router.add_post(COMPLETIONS_PATH, self._complete)
        app.router.add_get(MODELS_PATH, self._models)
        app.router.add_get(MODELS_PATH + "/{model:.+}", self._model)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, parse_chat)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, parse_completion)

    async def _answer(self, http: web.Request, parse: Callable[[bytes, Mapping[str, str]], Call]) -> web.StreamResponse:
        body = http[BODY]
        arrived_s = asyncio.get_running_loop().time()
        call = parse(body, http.headers)
        if call.n_choices > 1 or call.repeats_prompt or call.generation.echo:
            raise unsupported("n" if call.n > 1 else "echo" if call.n_choices == 1 else "prompt")
        self._check_can_begin(call)
        request = Request(
            request_id=http[REQUEST_ID],
            model=call.model,
            prompt=call.prompt,
            generation=call.generation,
            demand=Demand(call.prompt_tokens(), call.generation.max_tokens),
            arrived_s=arrived_s,
            deadline_s=arrived_s + self.request_timeout_s,
            wish=call.wish,
            modes=call.modes,
            prefix=call.prefix,
            ballot=call.ballot,
            traceparent=http.headers.get("traceparent"),
            principal=http.get(PRINCIPAL, ANYBODY),
            is_streamed=call.stream,
        )
        exchange = self._service.begin(request)
        try:
            if call.stream:
                return await self._stream(http, call, exchange)
            return await self._respond(call, exchange)
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
        self._check_model(call.model)

    def _check_model(self, model: str) -> None:
        known = self._table.models()
        if model in ANY_MODEL or model in known or self._table.knows_expert(model):
            return
        names = ", ".join((*ANY_MODEL, *known))
        raise refused(
            ErrorCode.MODEL_NOT_FOUND, f"The model {quoted(model)} does not exist. Known: {names}.", param="model"
        )

    async def _respond(self, call: Call, exchange: Exchange) -> web.Response:
        pieces, outcome = await exchange.receive_all()
        reason = _reason(outcome, exchange)
        receipt = exchange.receipt
        header = _header(call, exchange)
        calls: tuple[ToolCall, ...] = ()
        if reader := _call_reader(call, header):
            pieces, calls = split_answer(reader, pieces)
            reason = finish_reason_of(reason, reader)
        body = full_response(header, pieces, reason, receipt, with_logprobs=call.with_logprobs, calls=calls)
        answer = web.Response(
            body=msgspec.json.encode(body), content_type="application/json", headers=_headers(exchange)
        )
        await exchange.until_recorded()
        return answer

    async def _stream(self, http: web.Request, call: Call, exchange: Exchange) -> web.StreamResponse:
        # The status line waits for the first news, so that a failure before it is a proper HTTP error.
        pieces, outcome = await exchange.receive()
        if outcome is not None and not pieces:
            _reason(outcome, exchange)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_headers(exchange)}
        )
        await response.prepare(http)
        header = _header(call, exchange)
        writer = ChunkWriter(header, include_usage=call.include_usage, with_logprobs=call.with_logprobs)
        reader = _call_reader(call, header)
        while True:
            if pieces and (chunk := writer.tokens(pieces) if reader is None else chunks_of(writer, reader, pieces)):
                await response.write(chunk)
            if outcome is not None:
                break
            pieces, outcome = await exchange.receive()
        last = self._last_chunk(writer, reader, outcome, exchange)
        await exchange.until_recorded()
        await response.write(last)
        await response.write_eof()
        return response

    @staticmethod
    def _last_chunk(writer: ChunkWriter, reader: CallReader | None, outcome: Outcome, exchange: Exchange) -> bytes:
        held = b"" if reader is None else rest_chunks_of(writer, reader)
        try:
            reason = _reason(outcome, exchange)
        except ApiError as error:
            return held + ChunkWriter.error(error.body())
        return held + writer.end(reason if reader is None else finish_reason_of(reason, reader), exchange.receipt)

    async def _models(self, _: web.Request) -> web.Response:
        names = (ANY_MODEL[0], *self._table.models())
        body = {"object": "list", "data": [self._model_object(name) for name in names]}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        self._check_model(name)
        return web.Response(body=msgspec.json.encode(self._model_object(name)), content_type="application/json")

    def _model_object(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started_unix_s, "owned_by": "moe2"}


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


def _call_reader(call: Call, header: Header) -> CallReader | None:
    return CallReader(call.tool_names, ids=header.id.removeprefix("req-")) if call.tool_names else None


def _header(call: Call, exchange: Exchange) -> Header:
    leading = exchange.life.leading
    return Header(
        id=exchange.life.request.request_id,
        created=int(time.time()),
        model=leading.expert.model if leading else call.model,
        is_chat=call.is_chat,
    )


def _headers(exchange: Exchange) -> dict[str, str]:
    """Returns the headers that name the answering expert and the coordinator's own share of the time."""
    life = exchange.life
    headers = {"x-moe2-overhead-ms": f"{1000 * (life.overhead_s or 0.0):.3f}"}
    if life.leading:
        expert = life.leading.expert
        headers |= {"x-moe2-expert": expert.key, "x-moe2-agent": expert.agent_name}
    return headers


def new_request_id() -> str:
    """Returns a new random id for a request, such as `req-…`."""
    return f"req-{uuid.uuid4().hex}"


@web.middleware
async def openai_errors(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """A middleware that gives every response its request id and every error OpenAI's shape."""
    request_id = request[REQUEST_ID] = new_request_id()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    try:
        response: web.StreamResponse = await handler(request)  # type: ignore[misc]
    except ApiError as error:
        response = _error_response(error)
    except web.HTTPException as error:
        response = _error_response(_of_http(error, request))
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("request_handler_failed")
        response = _error_response(
            refused(ErrorCode.INTERNAL, f"This is a defect of moe2. Its log says more under {request_id}.")
        )
    return response


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Adds the request id to a response's headers; a handler of aiohttp's signal `on_response_prepare`."""
    response.headers["Server"] = "moe2"
    if request_id := request.get(REQUEST_ID):
        response.headers["x-request-id"] = request_id


def _of_http(error: web.HTTPException, request: web.Request) -> ApiError:
    match error.status:
        case 404:
            text = f"There is no {request.method} {request.path}."
        case 405:
            text = f"{request.path} does not take {request.method}."
        case _:
            text = error.reason or HTTPStatus(error.status).phrase
    return ApiError(error.status, text)


def _error_response(error: ApiError) -> web.Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.retry_after_s is not None and error.retry_after_s > MAX_PATIENCE_S:
        # OpenAI's client takes such a Retry-After for a mistake and would ask again at once; this it understands.
        headers["x-should-retry"] = "false"
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        headers["Accept-Encoding"] = ACCEPTED
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["Connection"] = "close"
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(error.body()),
        content_type="application/json",
        headers=headers,
    )
