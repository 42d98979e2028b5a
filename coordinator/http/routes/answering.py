"""What answers a request, whatever its face: it begins the request, waits for its tokens, and sends what the face
writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.access.auth import PRINCIPAL
from moe2.coordinator.http.access.upload import BODY
from moe2.coordinator.http.body.parse import Call, Reading
from moe2.coordinator.http.errors import ApiError, invalid, refused
from moe2.coordinator.http.faces.face import EVENTS, Asked, End, Face, Incoming, Part
from moe2.coordinator.http.routes.incoming import (
    Answer,
    EventStream,
    blaming,
    headers_of,
    origin_of,
    reader_of,
    reason_of,
    repeated_prompt,
    stop_of,
)
from moe2.coordinator.http.routes.models import check_fits, check_model, reports_of
from moe2.coordinator.http.settings import ApiSection
from moe2.coordinator.keys.keys import ANYBODY, Principal
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.receipt import Receipt, joint_receipt
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.waiting_room import whole_seconds

REQUEST_ID = web.RequestKey("request_id", str)
CLIENT_REQUEST_ID: web.RequestKey[str | None] = web.RequestKey("client_request_id")
"""The client's own id of its request; None where it sent none."""


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
        self.settings = settings
        self._reading = Reading(ignore_unknown=settings.unknown_parameters == "ignore", aliases=settings.aliases)

    def reading(self) -> Reading:
        """Returns how bodies are read, by the settings as they are now."""
        return self._reading

    def through(self, face: Face) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Returns the handler that answers requests which have this face.

        face: is called in a thread where the body is long, see `Body.parsed`.
        """
        return partial(self._answer, face)

    async def _answer(self, face: Face, http: web.Request) -> web.StreamResponse:
        arrived_s = asyncio.get_running_loop().time()
        principal = http.get(PRINCIPAL, ANYBODY)
        reading = self._reading
        asked = await http[BODY].parsed(lambda body: face(Incoming(body, http.headers, principal, reading)))
        call = asked.call
        self._check_can_begin(call)
        calls = call.choices()
        news = asyncio.Event() if call.stream else None
        exchanges: list[Exchange] = []
        try:
            for index, each in enumerate(calls):
                if index:
                    # Each is sent as soon as it is begun, and a long prompt takes a while to write.
                    await asyncio.sleep(0)
                request = self._request(http, each, index, principal=principal, arrived_s=arrived_s)
                exchanges.append(self._service.begin(request, news))
            if news is not None:
                return await self._stream(http, asked, calls, exchanges, news)
            return await self._respond(asked, calls, exchanges)
        except ApiError as error:
            # Those that still run end with it.
            self._end(exchanges)
            await _until_recorded(exchanges)
            raise blaming(error, call) from None
        finally:
            # The client left, or the handler failed: either way nobody reads on. No effect on ended requests.
            self._end(exchanges)

    def _request(self, http: web.Request, call: Call, index: int, *, principal: Principal, arrived_s: float) -> Request:
        """Returns the service's request for one answer. index: its place among those that the client asked for."""
        request_id = http[REQUEST_ID]
        return Request(
            request_id=f"{request_id}-{index}" if index else request_id,
            model=call.model,
            prompt=call.prompt,
            generation=call.generation,
            demand=call.demand(),
            arrived_s=arrived_s,
            deadline_s=arrived_s + self.settings.request_timeout_s,
            wish=call.wish,
            modes=call.modes,
            prefix=call.prefix,
            ballot=call.ballot,
            texts=call.texts,
            vector_size=call.vector_size,
            traceparent=http.headers.get("traceparent"),
            client_request_id=http[CLIENT_REQUEST_ID],
            principal=principal,
            is_streamed=call.stream,
        )

    def _end(self, exchanges: Sequence[Exchange]) -> None:
        for exchange in exchanges:
            self._service.client_gone(exchange.life.request.request_id)

    def _check_can_begin(self, call: Call) -> None:
        """Raises `ApiError` if the request cannot be begun.

        The reasons are a shutdown, too many requests in progress, and an unknown model.
        """
        if self._service.stopping:
            raise refused(ErrorCode.STOPPING, "The coordinator is shutting down.")
        if not self._service.has_room_for(call.n_choices):
            room_in_s = self._service.room_in_s(call.model)
            raise refused(
                ErrorCode.OVERLOADED,
                "Too many requests in progress.",
                retry_after_s=None if room_in_s is None else whole_seconds(room_in_s),
            )
        check_model(self._table, call.model, self.settings.aliases)
        check_fits(self._table, call.model, call.least_tokens())
        has_ids = isinstance(call.prompt, TextPrompt) and bool(call.prompt.tokens) and not call.texts
        if has_ids and call.model in ANY_MODEL and len(self._table.models()) > 1:
            text = "Token ids are those of one model's vocabulary: name the model that they are for."
            raise invalid(text, param="model")

    def _headers(self, call: Call, exchange: Exchange) -> dict[str, str]:
        return headers_of(call, exchange, lambda: reports_of(self._table.reports_by_model(), call.model))

    async def _respond(self, asked: Asked, calls: Sequence[Call], exchanges: Sequence[Exchange]) -> web.Response:
        answers = [await _whole(calls[0], exchanges[0])] if len(calls) == 1 else await _all_of(calls, exchanges)
        receipt = _receipt(exchanges)
        origin = origin_of(calls[0], exchanges[0], exchanges[0].life.request.request_id)
        if len(answers) > 1 and asked.choices is not None:
            body = asked.choices.whole(origin, answers, receipt)
        else:
            [(parts, reason)] = answers
            body = asked.encoder.whole(origin, parts, End(reason, receipt, stop_of(exchanges[0]), exchanges[0].vectors))
        answer = web.Response(
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers=self._headers(asked.call, exchanges[0]),
        )
        await _until_recorded(exchanges)
        return answer

    async def _stream(
        self,
        http: web.Request,
        asked: Asked,
        calls: Sequence[Call],
        exchanges: Sequence[Exchange],
        news: asyncio.Event,
    ) -> web.StreamResponse:
        """Streams all answers. A failure before anything was sent is a proper HTTP error.

        Where nobody has room the stream begins at once, else with the first news, or after a while without any.
        """
        encoders = asked.choices.encoders if asked.choices is not None else [asked.encoder]
        has_comments = asked.content_type == EVENTS
        answers = [
            Answer(*each, response_id=http[REQUEST_ID], has_comments=has_comments)
            for each in zip(calls, exchanges, encoders, strict=True)
        ]
        with EventStream(
            http,
            news,
            comment_s=self.settings.stream_comment_s,
            comment=asked.idle_event,
            content_type=asked.content_type,
        ) as stream:
            if not any(exchange.is_waiting for exchange in exchanges):
                await stream.news_or_silence()
            open_ = list(answers)
            taken = [answer.take() for answer in open_]
            for answer in () if any(taken) else open_:
                if answer.outcome is not None:
                    answer.reason()  # raises where it has failed
            await stream.open(self._headers(asked.call, exchanges[0]))
            while True:
                events = b"".join([answer.events() for answer in open_])
                ended = [answer for answer in open_ if answer.outcome is not None]
                failed = next((answer for answer in ended if not isinstance(answer.outcome, Completed)), None)
                last = failed or (ended[-1] if len(ended) == len(open_) else None)
                for answer in ended:
                    events += answer.rest()
                    if answer is not last and failed is None and asked.choices is not None:
                        events += asked.choices.encoders[answers.index(answer)].finish(answer.reason())
                if last is not None:
                    break
                await stream.write(events)
                open_ = [answer for answer in open_ if answer.outcome is None]
                await stream.news_or_silence()
                for answer in open_:
                    answer.take()
            if failed is not None:
                self._end(exchanges)
            await _until_recorded(exchanges)
            return await stream.close(events + _last_events(last, _receipt(exchanges)))


def _last_events(last: Answer, receipt: Receipt) -> bytes:
    """Returns the events that end a stream. last: the answer that ended last, or failed."""
    try:
        reason = last.reason()
    except ApiError as error:
        return last.encoder.error(blaming(error, last.call))
    return last.encoder.end(End(reason, receipt, stop_of(last.exchange)))


async def _all_of(calls: Sequence[Call], exchanges: Sequence[Exchange]) -> list[tuple[list[Part], str]]:
    """Waits for all answers; returns their parts and why each ended. Raises `ApiError` as soon as one has failed."""
    try:
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(_whole(*each)) for each in zip(calls, exchanges, strict=True)]
    except* ApiError as group:
        errors = group.exceptions
    else:
        return [wait.result() for wait in waits]
    raise errors[0]


async def _whole(call: Call, exchange: Exchange) -> tuple[list[Part], str]:
    pieces, outcome = await exchange.receive_all()
    reason = reason_of(outcome, exchange)
    reader = reader_of(call, exchange)
    parts = [*repeated_prompt(call), *reader.feed(pieces), *reader.finish()]
    return parts, reader.reason(reason)


def _receipt(exchanges: Sequence[Exchange]) -> Receipt:
    if len(exchanges) == 1:
        return exchanges[0].receipt
    return joint_receipt([exchange.life for exchange in exchanges], [exchange.receipt for exchange in exchanges])


async def _until_recorded(exchanges: Sequence[Exchange]) -> None:
    for exchange in exchanges:
        await exchange.until_recorded()
