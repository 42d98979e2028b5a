"""The Responses API's shapes, put together again by the SDK's own types and accumulator."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.responses import Item, read_responses
from moe2.coordinator.http.errors import invalid
from moe2.coordinator.http.faces.face import End, Origin, Part, Text
from moe2.coordinator.http.faces.responses import ResponseEncoder
from moe2.coordinator.http.faces.toolcalls import told
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.lives import LifeBench

ORIGIN = Origin("req-1", 1_700_000_000, "m")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CALL = ToolCall(id="c1", name="time", arguments='{"zone":"UTC"}')
OTHER_CALL = ToolCall(id="c2", name="time", arguments="{}")
KEPT: list[tuple[dict[str, Any], dict[str, Item]]] = []


def end(reason: str = "stop") -> End:
    life = LifeBench().admitted()
    life.done()
    return End(reason, receipt_of(life.life))


def encoder(**fields: Any) -> ResponseEncoder:
    request, _ = read_responses({"model": "moe2", "input": "hi", **fields})
    KEPT.clear()
    return ResponseEncoder(
        request, lambda answer, items: KEPT.append((answer, items)), with_logprobs="top_logprobs" in fields
    )


def text(*words: str, logprob: float | None = None) -> Text:
    return Text([TokenPiece(word, logprob) for word in words])


def events_of(stream: bytes) -> list[dict[str, Any]]:
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def streamed(*parts: Part, reason: str = "stop", **fields: Any) -> list[dict[str, Any]]:
    writer = encoder(**fields)
    stream = writer.begin(ORIGIN) + b"".join(writer.parts([part]) for part in parts) + writer.end(end(reason))
    return events_of(stream)


def whole(*parts: Part, reason: str = "stop", **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(msgspec.json.encode(encoder(**fields).whole(ORIGIN, parts, end(reason))))
    return answer


def test_a_text_streams_in_the_order_of_openai() -> None:
    """A message is opened, its part is opened, written and closed, and the message is closed."""
    assert [event["type"].removeprefix("response.") for event in streamed(text("Hé"), text("llo"))] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_events_are_numbered_without_a_hole() -> None:
    """Each event has the next sequence number."""
    events = streamed(text("a"), *told(CALL), text("b"), reason="length")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts", [(), (text("a"),), told(CALL), (text("Hm."), *told(CALL), *told(OTHER_CALL), text("a", "b"))]
)
def test_the_sdk_puts_a_stream_together_again(parts: tuple[Part, ...]) -> None:
    """The SDK's types take each event strictly; its accumulator ends with the response that is not streamed."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    events = streamed(*parts)
    for event in events:
        state.handle_event(EVENT.validate_python(event))
    final = state._completed_response
    assert final.output_text == "".join(str(part) for part in parts if isinstance(part, Text))
    assert [item.arguments for item in final.output if item.type == "function_call"] == [
        part.arguments for part in parts if isinstance(part, ToolCall)
    ]
    answer = whole(*parts)
    Response.model_validate(answer)
    assert events[-1]["response"]["output"] == answer["output"]


def test_an_answer_that_is_wanted_whole_has_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would repeat all of a long text, on the event loop, for nobody."""
    encoded: list[Any] = []
    monkeypatch.setattr(msgspec.json, "encode", encoded.append)
    answer = encoder().whole(ORIGIN, (Text([TokenPiece("Hm")], is_reasoning=True), *told(CALL), text("a")), end())
    assert [item["type"] for item in answer["output"]] == ["reasoning", "function_call", "message"]
    assert encoded == []


def test_reasoning_is_an_item_before_the_message() -> None:
    """The SDK reads its events, and a next turn gets it back."""
    parts = (Text([TokenPiece("Hm"), TokenPiece(".")], is_reasoning=True), text("Yes"))
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    events = streamed(*parts)
    for event in events:
        state.handle_event(EVENT.validate_python(event))
    output = events[-1]["response"]["output"]
    assert [(item["type"], item["content"][0]["text"], item["status"]) for item in output] == [
        ("reasoning", "Hm.", "completed"),
        ("message", "Yes", "completed"),
    ]
    assert "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta") == "Hm."
    [(_, items)] = KEPT
    assert [type(item).__name__ for item in items.values()] == ["ReasoningItem", "MessageItem"]


def test_an_answer_cut_off_is_incomplete() -> None:
    """`length` becomes the status, with its reason, and the message is incomplete, too."""
    answer = whole(text("Once"), reason="length")
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    assert streamed(text("Once"), reason="length")[-1]["type"] == "response.incomplete"


def test_usage_and_receipt_come_with_the_end() -> None:
    """Tokens have the Responses API's names; the receipt stands beside them."""
    answer = whole(text("a"))
    assert answer["usage"]["input_tokens"] == 7
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert (answer["usage"]["output_tokens"], answer["usage"]["total_tokens"]) == (5, 12)
    assert answer["moe2"]["request_id"] == "req-1"
    assert "moe2" not in streamed(text("a"))[0]["response"]


def test_logprobs_come_with_their_text() -> None:
    """Each token's log-probability is in its delta and in the finished part."""
    events = streamed(text("a", logprob=-0.5), text("b", logprob=-0.25), top_logprobs=0)
    deltas = [event["logprobs"][0]["logprob"] for event in events if event["type"].endswith("text.delta")]
    assert deltas == [-0.5, -0.25]
    assert [score["token"] for score in events[-1]["response"]["output"][0]["content"][0]["logprobs"]] == ["a", "b"]


def test_an_error_in_a_stream_is_a_failed_response() -> None:
    """What was written stays; code and message tell what went wrong."""
    writer = encoder()
    events = events_of(writer.begin(ORIGIN) + writer.parts([text("On")]) + writer.error(invalid("No.")))
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert response["error"] == {"code": "invalid_request_error", "message": "No."}
    assert response["output"][0]["content"][0]["text"] == "On"
    assert not KEPT


def test_what_is_kept_is_what_was_answered() -> None:
    """The next turn finds the items by the ids that the client was told."""
    answer = whole(text("Hm."), *told(CALL))
    ((kept, items),) = KEPT
    assert kept["id"] == answer["id"] == "resp_1"
    assert list(items) == [item["id"] for item in answer["output"]]
