"""Anthropic's shapes, put together again by the SDK's own types and accumulator."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from pydantic import TypeAdapter

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.errors import invalid, refused
from moe2.coordinator.http.faces.face import End, Origin, Part, Text
from moe2.coordinator.http.faces.messages import MessageEncoder, error_body
from moe2.coordinator.http.faces.toolcalls import told
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import LifeBench

ORIGIN = Origin("req-1", 1_700_000_000, "m", prompt_tokens=7)
CALL = ToolCall(id="c1", name="time", arguments='{"zone":"UTC"}')
USAGE = {"input_tokens": 4, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 0, "output_tokens": 5}


def end(reason: str = "stop") -> End:
    life = LifeBench().admitted()
    life.done()
    return End(reason, receipt_of(life.life))


def text(*words: str) -> Text:
    return Text([TokenPiece(word) for word in words])


def events_of(stream: bytes) -> list[dict[str, Any]]:
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def streamed(*parts: Part, reason: str = "stop") -> list[dict[str, Any]]:
    encoder = MessageEncoder()
    stream = encoder.begin(ORIGIN) + b"".join(encoder.parts([part]) for part in parts) + encoder.end(end(reason))
    return events_of(stream)


def whole(*parts: Part, reason: str = "stop") -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(msgspec.json.encode(MessageEncoder().whole(ORIGIN, parts, end(reason))))
    return answer


def as_message(answer: Any) -> Any:
    """The SDK's own type for an answer, which it refuses if it does not fit. The SDK takes seconds to import."""
    from anthropic.types import Message

    return Message.model_validate(answer)


def accumulated(events: list[Any]) -> Any:
    """The message that the SDK puts together from the events of a stream."""
    from anthropic.lib.streaming._messages import accumulate_event
    from anthropic.types import RawMessageStreamEvent

    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        snapshot = accumulate_event(event=adapter.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    return snapshot


def test_a_message_is_anthropics() -> None:
    """A message equals Anthropic's key by key, with the receipt beside them."""
    answer = whole(text("Hé", "llo"))
    assert answer.pop("moe2")["request_id"] == "req-1"
    assert answer == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Héllo"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }
    as_message(answer)


def test_a_stream_has_anthropics_events() -> None:
    """A block is opened, written and closed; the next one has the next index."""
    events = streamed(text("a"), text("b"), *told(CALL))
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 7


@pytest.mark.parametrize(
    "parts", [(), (text("a"),), told(CALL), (text("Hm."), *told(CALL), *told(CALL), text("a", "b"))]
)
@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_the_sdk_puts_a_stream_together_again(parts: tuple[Part, ...], reason: str) -> None:
    """The SDK's types take each event; its accumulator ends with the message that is not streamed."""
    expected = as_message(whole(*parts, reason=reason))
    found = as_message(accumulated(streamed(*parts, reason=reason)).model_dump())
    assert found.model_dump(exclude={"moe2"}) == expected.model_dump(exclude={"moe2"})


def test_reasoning_is_a_block_of_thinking() -> None:
    """It is closed where the answer begins, whole as streamed."""
    parts = (Text([TokenPiece("Hm.")], is_reasoning=True), text("Yes", "!"))
    answer = whole(*parts)
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Yes!"},
    ]
    snapshot = accumulated(streamed(*parts))
    assert [block.model_dump(exclude_none=True) for block in snapshot.content] == answer["content"]


def test_a_stop_sequence_is_the_reason_where_it_ended_the_answer() -> None:
    """Anthropic tells a stop sequence from the answer's own end, and names it."""
    answer = MessageEncoder().whole(ORIGIN, (text("a"),), replace(end(), stop="END"))
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")


def test_an_error_in_a_stream_is_anthropics_event() -> None:
    """The event `error` has the envelope of an error's body."""
    (event,) = events_of(MessageEncoder().error(invalid("No.", param="system")))
    assert event["error"]["type"] == "invalid_request_error"
    assert (event["error"]["message"], event["error"]["param"]) == ("No.", "system")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.INVALID_JSON, "invalid_request_error"),
        (ErrorCode.INVALID_API_KEY, "authentication_error"),
        (ErrorCode.INSUFFICIENT_SCOPE, "permission_error"),
        (ErrorCode.MODEL_NOT_FOUND, "not_found_error"),
        (ErrorCode.BODY_TOO_LARGE, "request_too_large"),
        (ErrorCode.OVERLOADED, "rate_limit_error"),
        (ErrorCode.NO_LIVE_EXPERT, "overloaded_error"),
        (ErrorCode.DEADLINE_EXCEEDED, "timeout_error"),
        (ErrorCode.INTERNAL, "api_error"),
        (ErrorCode.ENGINE_CRASHED, "api_error"),
    ],
)
def test_errors_have_anthropics_types_and_moe2s_codes(code: ErrorCode, kind: str) -> None:
    """The type is what Anthropic's clients know for the status; the code is the same as on every route."""
    body = error_body(refused(code, "Why."))
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["code"]) == (kind, code.shown)
