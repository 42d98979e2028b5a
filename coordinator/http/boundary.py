"""The middleware: what every request goes through, and errors in the shape that a path's clients read."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from time import time
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from moe2.common.error_codes import ErrorCode
from moe2.common.listening import ErrorShape
from moe2.coordinator.http.access.auth import Guard
from moe2.coordinator.http.access.browsers import Browsers
from moe2.coordinator.http.access.encodings import ACCEPTED
from moe2.coordinator.http.access.upload import BODY, Body, BodyReader
from moe2.coordinator.http.errors import ApiError, refused
from moe2.coordinator.http.faces import messages, ollama
from moe2.coordinator.http.paths import MESSAGES_PATH, OLLAMA_PREFIX
from moe2.coordinator.http.routes.answering import CLIENT_REQUEST_ID, REQUEST_ID

log = structlog.get_logger()

MAX_PATIENCE_S = 60
MAX_CLIENT_ID_CHARACTERS = 128
CLIENT_ID_HEADERS = ("x-client-request-id", "x-request-id")
"""Headers with a client's own id of its request. The first one comes back beside moe2's own `x-request-id`."""
_NOT_PRINTABLE = re.compile(r"[^!-~]")
ENVELOPES: Mapping[str, Callable[[ApiError], dict[str, Any]]] = {
    MESSAGES_PATH: messages.error_body,
    OLLAMA_PREFIX: ollama.error_body,
}
"""What writes an error's body on paths that begin so; on all others it is in OpenAI's shape."""


def new_request_id() -> str:
    """Returns a new id for a request, `req-…`: 48 bits of milliseconds since the epoch, then 80 random ones.

    The order is that of UUIDv7 (RFC 9562): databases that are asked by id enter new ones side by side, not each into
    another page.
    """
    return f"req-{int(time() * 1000):012x}{os.urandom(10).hex()}"


def client_request_id(headers: Mapping[str, str]) -> str | None:
    """Returns the client's own id of a request, cut short and of plain characters; None where it sent none."""
    for name in CLIENT_ID_HEADERS:
        if found := headers.get(name):
            return _NOT_PRINTABLE.sub("?", found[:MAX_CLIENT_ID_CHARACTERS])
    return None


class Boundary:
    """The way of every request of a listener to its handler, and of every answer back: one middleware for all of it.

    A request gets its id, is checked, and its body is read before the handler is called, which finds it in `BODY`. An
    error gets the shape that its path's clients read, and every answer the headers that all have. browsers, guard: tell
    who may ask; None for a listener that only this machine's users reach.
    """

    def __init__(self, bodies: BodyReader, *, browsers: Browsers | None = None, guard: Guard | None = None) -> None:
        self._bodies = bodies
        self._browsers = browsers
        self._guard = guard

    def add_to(self, app: web.Application) -> None:
        """Surrounds the application's handlers. It must be called after all routes have been registered."""
        app.middlewares.append(self._answer)
        app.on_response_prepare.append(self._add_headers)
        self._bodies.add_to(app)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # aiohttp has a task for each request, with which ends what is bound here.
        request_id = request[REQUEST_ID] = new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        client_id = request[CLIENT_REQUEST_ID] = client_request_id(request.headers)
        if client_id is not None:
            structlog.contextvars.bind_contextvars(client_request_id=client_id)
        body: Body | None = None
        try:
            if self._browsers is not None and (answer := self._browsers.check(request)) is not None:
                return answer
            if self._guard is not None:
                await self._guard.admit(request)
            if request.method == "POST" and request.match_info.http_exception is None:
                body = request[BODY] = await self._bodies.read(request)
            return await handler(request)
        except ApiError as error:
            return _error_response(error, request)
        except web.HTTPException as error:
            response = _error_response(_of_http(error, request), request)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("request_handler_failed")
            text = f"This is a defect of moe2. Its log says more under {request_id}."
            return _error_response(refused(ErrorCode.INTERNAL, text), request)
        finally:
            if body is not None:
                body.end()

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "moe2"
        # What the HTTP library answers before the middleware has none.
        if REQUEST_ID in request:
            response.headers["x-request-id"] = request[REQUEST_ID]
            if (client_id := request[CLIENT_REQUEST_ID]) is not None:
                response.headers[CLIENT_ID_HEADERS[0]] = client_id
        if self._browsers is not None:
            self._browsers.add_headers(request, response)


def _of_http(error: web.HTTPException, request: web.Request) -> ApiError:
    match error.status:
        case 404:
            text = f"There is no {request.method} {request.path}."
        case 405:
            text = f"{request.path} does not take {request.method}."
        case _:
            text = error.reason or HTTPStatus(error.status).phrase
    return ApiError(error.status, text)


def _error_response(error: ApiError, request: web.Request) -> web.Response:
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
        body=msgspec.json.encode(_body_of(error, request)),
        content_type="application/json",
        headers=headers,
    )


def _body_of(error: ApiError, request: web.Request) -> dict[str, Any]:
    """Returns the error's JSON body as the clients of the request's path read it."""
    return next((body(error) for prefix, body in ENVELOPES.items() if request.path.startswith(prefix)), error.body())


def _protocol_error(status: int, text: str) -> bytes:
    """Returns the body of an error that a listener answers itself, before any handler."""
    if status == ErrorCode.TOO_MANY_CONNECTIONS.status:
        error = refused(ErrorCode.TOO_MANY_CONNECTIONS, f"{text} (max_connections_per_address)")
    else:
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        error = ApiError(status, text, kind=kind)
    return msgspec.json.encode(error.body())


JSON_ERRORS = ErrorShape("application/json", _protocol_error)
"""The shape of the errors of the coordinator's listeners, before any handler."""
