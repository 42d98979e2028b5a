"""Reasoning in chat completions, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from moe2.common.link.messages import TokenPiece
from moe2.coordinator.http.body.parse import parse_chat
from moe2.coordinator.http.faces.completions import CompletionEncoder, usage_of
from moe2.coordinator.http.faces.face import End, Origin, Part, Text
from tests.coordinator.receipts import receipt

ORIGIN = Origin("req-1", 1_700_000_000, "m")
PARTS: tuple[Part, ...] = (Text([TokenPiece("Hm", -0.5)], is_reasoning=True), Text([TokenPiece("Yes", -0.25)]))
END = End("stop", msgspec.structs.replace(receipt(), tokens=msgspec.structs.replace(receipt().tokens, reasoning=4)))


def encoder() -> CompletionEncoder:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "logprobs": True}
    return CompletionEncoder(parse_chat(json.dumps(body).encode()))


def test_a_message_has_its_reasoning_apart() -> None:
    """Content and log-probabilities are the answer's alone."""
    [choice] = encoder().whole(ORIGIN, PARTS, END)["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Yes",
        "refusal": None,
        "reasoning_content": "Hm",
    }
    assert [scored["token"] for scored in choice["logprobs"]["content"]] == ["Yes"]


def test_a_message_without_reasoning_does_not_mention_it() -> None:
    """Its shape is that of a model that does not reason."""
    [choice] = encoder().whole(ORIGIN, PARTS[1:], END)["choices"]
    assert "reasoning_content" not in choice["message"]


def test_reasoning_streams_in_deltas_of_its_own() -> None:
    """The role comes before it, once."""
    writer = encoder()
    lines = (writer.begin(ORIGIN) + writer.parts(PARTS[:1]) + writer.parts(PARTS[1:])).split(b"\n\n")[:-1]
    chunks = [ChatCompletionChunk.model_validate_json(line.removeprefix(b"data: ")) for line in lines]
    deltas: list[dict[str, Any]] = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {"reasoning_content": "Hm"}, {"content": "Yes"}]


def test_reasoning_tokens_are_told_apart_in_the_usage() -> None:
    """Where the agent said how many there were."""
    usage = CompletionUsage.model_validate(usage_of(END.receipt))
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 4
    assert "completion_tokens_details" not in (usage_of(receipt()) or {})
