"""The parts of an answer, as every face is told of them."""

from __future__ import annotations

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.faces.face import PartReader, Text
from moe2.coordinator.http.faces.toolcalls import told

CALL = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'


def pieces(*texts: str) -> list[TokenPiece]:
    return [TokenPiece(text) for text in texts]


def test_without_tools_tokens_pass_as_they_are() -> None:
    """Tokens keep their log-probabilities where nothing could be a call, and a mere `{` is not held back."""
    reader = PartReader(frozenset(), "req-1")
    scored = [TokenPiece("{", -0.5)]
    assert reader.feed(scored) == [Text(scored)]
    assert reader.finish() == []
    assert reader.reason("stop") == "stop"


def test_calls_come_in_their_place_with_ids_of_the_request() -> None:
    """Text before a call comes before it; the call's id is the request's own, and the answer ends for its calls."""
    reader = PartReader(frozenset({"time"}), "req-1")
    parts = [*reader.feed(pieces("Let me ", "see. ", CALL[:20])), *reader.feed(pieces(CALL[20:])), *reader.finish()]
    assert "".join(str(part) for part in parts if isinstance(part, Text)) == "Let me see."
    assert parts[-1] == ToolCall(id="call_1_0", name="time", arguments="{}")
    assert (reader.reason("stop"), reader.reason("length")) == ("tool_calls", "length")


def test_reasoning_is_a_part_of_its_own() -> None:
    """No call is looked for in it, and it does not keep an answer from being one."""
    thought = TokenPiece(CALL, is_reasoning=True)
    reader = PartReader(frozenset({"time"}), "req-1")
    parts = [*reader.feed([thought, *pieces('{"name": "time"}')]), *reader.finish()]
    call = ToolCall(id="call_1_0", name="time", arguments="{}")
    assert parts == [Text([thought], is_reasoning=True), *told(call)]


def test_no_tokens_are_no_parts() -> None:
    """A wake-up without tokens says nothing."""
    assert PartReader(frozenset(), "req-1").feed([]) == PartReader(frozenset({"time"}), "req-1").feed([]) == []
