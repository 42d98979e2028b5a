"""The face of Anthropic's Messages API: `POST /v1/messages`, whole or streamed, with its errors. PURE.

The shapes are those of https://docs.anthropic.com/en/api/messages-streaming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from moe2.common.generation import Generation
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.choosing.request import ROUTE_ONLY
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.messages import CHAT_NAMES, CountRequest, MessagesRequest, chat_fields
from moe2.coordinator.http.body.parse import Call, read_chat, read_struct
from moe2.coordinator.http.errors import ApiError, renamed
from moe2.coordinator.http.faces.face import Asked, End, Incoming, NeverStreamed, Origin, Part, Text
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun, arguments_object
from moe2.coordinator.serving.receipt import Receipt

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""What Anthropic's streams say while they wait; its clients expect it anywhere, also before the message begins."""
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's type of an error, by its status; of others it is `invalid_request_error` or `api_error`."""


def messages_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/messages`. Raises `ApiError` (400), which names the parameter."""
    fields = json_object(incoming.body)
    request, ignored = read_struct(fields, MessagesRequest, incoming.reading)
    return Asked(replace(_call(request, fields, incoming), ignored=ignored), MessageEncoder(), idle_event=PING)


def count_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/messages/count_tokens`. Raises `ApiError` (400), which names the parameter."""
    fields = json_object(incoming.body)
    request, ignored = read_struct(fields, CountRequest, incoming.reading)
    call = _call(request, fields, incoming)
    generation = Generation(max_tokens=0)
    counts = replace(call, generation=generation, modes=ROUTE_ONLY, ballot=None, stream=False, ignored=ignored)
    return Asked(counts, CountEncoder())


def _call(request: CountRequest, fields: Mapping[str, Any], incoming: Incoming) -> Call:
    try:
        call = read_chat(chat_fields(request, fields), incoming.headers, incoming.reading)
    except ApiError as error:
        raise renamed(error, CHAT_NAMES) from None
    return call.called(CHAT_NAMES)


def error_body(error: ApiError) -> dict[str, Any]:
    """Returns an error's body in Anthropic's shape, with the code, parameter and offers that OpenAI's has, too."""
    body = error.body()
    kind = _ERROR_TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", **body, "error": {**body["error"], "type": kind}}


def usage_of(receipt: Receipt) -> dict[str, Any]:
    """Returns a receipt's tokens as Anthropic's usage, without those that are not known. `input_tokens` are those that
    came from no cache."""
    tokens = receipt.tokens
    cached = tokens.cached or 0
    usage = {
        "input_tokens": None if tokens.prompt is None else tokens.prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": tokens.decoded,
    }
    return {name: value for name, value in usage.items() if value is not None}


class CountEncoder(NeverStreamed):
    """The `Encoder` of a prompt's length, which never comes as a stream."""

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns the number of tokens, as the expert has counted them."""
        return {"input_tokens": end.receipt.tokens.prompt, "moe2": end.receipt}


class MessageEncoder:
    """The `Encoder` of one message."""

    def __init__(self) -> None:
        self._n_blocks = 0
        self._open_kind: str | None = None
        """The kind of the block of text that is open: "text" or "thinking"."""
        self._events: list[bytes] = []

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns a `message`."""
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                content.append({**_tool_use(part), "input": arguments_object(part)})
            elif isinstance(part, Text) and (text := str(part)):
                kind = "thinking" if part.is_reasoning else "text"
                if not content or content[-1]["type"] != kind:
                    content.append(_block(kind))
                content[-1][kind] += text
        # Known of an answer that is complete.
        usage = {"input_tokens": 0, "output_tokens": 0, **usage_of(end.receipt)}
        return {**_message(origin), "content": content, **_stop(end), "usage": usage, "moe2": end.receipt}

    def begin(self, origin: Origin) -> bytes:
        """Returns the event `message_start`. Tokens that came from a cache are told from the others at the end."""
        usage = {"input_tokens": origin.prompt_tokens or 0, "output_tokens": 0}
        self._say("message_start", message={**_message(origin), "usage": usage})
        return self._said()

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the events for more of the answer."""
        for part in parts:
            if isinstance(part, CallBegun):
                self._close_text()
                self._say("content_block_start", index=self._n_blocks, content_block={**_tool_use(part), "input": {}})
            elif isinstance(part, CallArguments):
                self._delta("input_json_delta", partial_json=part.text)
            elif isinstance(part, ToolCall):
                self._close_block()
            elif text := str(part):
                kind = "thinking" if part.is_reasoning else "text"
                self._open_text(kind)
                self._delta(f"{kind}_delta", **{kind: text})
        return self._said()

    def end(self, end: End) -> bytes:
        """Returns the events `message_delta`, with the receipt, and `message_stop`."""
        self._close_text()
        usage = {"output_tokens": 0, **usage_of(end.receipt)}
        self._say("message_delta", delta=_stop(end), usage=usage, moe2=end.receipt)
        self._say("message_stop")
        return self._said()

    def error(self, error: ApiError) -> bytes:
        """Returns the event `error`."""
        return b"event: error\ndata: " + msgspec.json.encode(error_body(error)) + b"\n\n"

    def _open_text(self, kind: str) -> None:
        if self._open_kind != kind:
            self._close_text()
            self._open_kind = kind
            self._say("content_block_start", index=self._n_blocks, content_block=_block(kind))

    def _close_text(self) -> None:
        if self._open_kind is not None:
            self._open_kind = None
            self._close_block()

    def _delta(self, kind: str, **fields: Any) -> None:
        self._say("content_block_delta", index=self._n_blocks, delta={"type": kind, **fields})

    def _close_block(self) -> None:
        self._say("content_block_stop", index=self._n_blocks)
        self._n_blocks += 1

    def _say(self, kind: str, **fields: Any) -> None:
        data = msgspec.json.encode({"type": kind, **fields})
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n")

    def _said(self) -> bytes:
        said = b"".join(self._events)
        self._events.clear()
        return said


def _message(origin: Origin) -> dict[str, Any]:
    """Returns the `message` of an answer that has just begun."""
    return {
        "id": f"msg_{origin.request_id.removeprefix('req-')}",
        "type": "message",
        "role": "assistant",
        "model": origin.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _block(kind: str) -> dict[str, Any]:
    """Returns an empty block of text or thinking. Nothing is signed here, so that a signature is empty."""
    return {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}


def _tool_use(call: ToolCall | CallBegun) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _stop(end: End) -> dict[str, Any]:
    reason = "stop_sequence" if end.stop is not None else _STOP_REASONS.get(end.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": end.stop}
