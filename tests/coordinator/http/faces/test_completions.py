"""Answers in OpenAI's shapes, compared with literal documents and the SDK's own types."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from moe2.common.link.messages import TokenAlternative, TokenPiece
from moe2.coordinator.http.errors import ApiError, error_of, invalid, unsupported
from moe2.coordinator.http.faces.completions import ChunkWriter, Header, choice_of, full_response, logprobs_of, usage_of
from moe2.coordinator.serving.effects import Failed
from moe2.coordinator.serving.receipt import Receipt, receipt_of
from tests.coordinator.lives import LifeBench

CHAT = Header(id="req-1", created=1_700_000_000, model="m", is_chat=True)
TEXT = Header(id="req-1", created=1_700_000_000, model="m", is_chat=False)
PIECES = [TokenPiece("Hé", -0.5, (TokenAlternative("Ha", -1.5),)), TokenPiece("llo", -0.25)]
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def receipt(*, answered: bool = True) -> Receipt:
    life = LifeBench().admitted()
    if answered:
        life.done()
    return receipt_of(life.life)


def body(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def events(stream: bytes) -> list[Any]:
    """Returns the decoded `data:` lines of a stream; the end marker stays as it is."""
    assert stream.endswith(b"\n\n")
    lines = stream.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def stream(header: Header, *steps: list[TokenPiece], usage: bool = False, logprobs: bool = False) -> list[Any]:
    writer = ChunkWriter(header, include_usage=usage, with_logprobs=logprobs)
    return events(b"".join(writer.tokens(step) for step in steps) + writer.end("stop", receipt()))


def without_receipt(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name != "moe2"}


def strict(kind: type[BaseModel], value: dict[str, Any]) -> Any:
    """Validates a value by the SDK's own type, without its leniency."""
    return kind.model_validate(value, strict=True)


# --- Whole responses --------------------------------------------------------------------------------------------------


def test_a_chat_completion_is_openais() -> None:
    """A chat completion equals OpenAI's key by key, with the receipt beside them."""
    answer = body(full_response(CHAT, [choice_of(CHAT, PIECES, "stop", with_logprobs=False)], receipt()))
    assert answer.pop("moe2")["request_id"] == "req-1"
    assert answer == {
        "id": "chatcmpl-req-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Héllo", "refusal": None},
                "logprobs": None,
            }
        ],
        "usage": USAGE,
    }
    strict(ChatCompletion, answer)


def test_a_text_completion_is_openais() -> None:
    """A text completion equals OpenAI's key by key."""
    answer = body(full_response(TEXT, [choice_of(TEXT, PIECES, "length", with_logprobs=False)], receipt()))
    assert without_receipt(answer) == {
        "id": "cmpl-req-1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "length", "text": "Héllo", "logprobs": None}],
        "usage": USAGE,
    }
    strict(Completion, answer)


def test_a_chats_logprobs_are_openais() -> None:
    """A chat's log-probabilities list each token with its bytes and alternatives."""
    answer = body(full_response(CHAT, [choice_of(CHAT, PIECES, "stop", with_logprobs=True)], receipt()))
    assert answer["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "Hé",
                "logprob": -0.5,
                "bytes": [72, 195, 169],
                "top_logprobs": [{"token": "Ha", "logprob": -1.5, "bytes": [72, 97]}],
            },
            {"token": "llo", "logprob": -0.25, "bytes": [108, 108, 111], "top_logprobs": []},
        ],
        "refusal": None,
    }
    strict(ChatCompletion, answer)


def test_a_completions_logprobs_are_openais() -> None:
    """A text completion's log-probabilities are parallel lists, with offsets into the text."""
    answer = body(full_response(TEXT, [choice_of(TEXT, PIECES, "stop", with_logprobs=True)], receipt()))
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Hé", "llo"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Ha": -1.5, "Hé": -0.5}, {"llo": -0.25}],
        "text_offset": [0, 2],
    }
    strict(Completion, answer)


HALVES = (
    TokenPiece("", -2.0, (TokenAlternative("<|end|>", -1.0, None), TokenAlternative("\ufffd", -2.0, "c3")), hex="c3"),
    TokenPiece("é", -4.0, (TokenAlternative("\ufffd", -3.0, "a8"), TokenAlternative("\ufffd", -4.0, "a9")), hex="a9"),
)


def test_a_part_of_a_character_has_its_own_bytes() -> None:
    """A control token has a name and no bytes."""
    scored = logprobs_of(CHAT, HALVES)["content"]
    assert [(each["token"], each["bytes"]) for each in scored] == [(r"\xc3", [0xC3]), (r"\xa9", [0xA9])]
    assert [(each["token"], each["bytes"]) for each in scored[0]["top_logprobs"]] == [
        ("<|end|>", None),
        (r"\xc3", [0xC3]),
    ]


def test_tokens_of_a_completion_do_not_share_a_key() -> None:
    """Parts of characters are named by their bytes, and so is the second token of the same text."""
    scored = logprobs_of(TEXT, HALVES)
    assert scored["tokens"] == [r"bytes:\xc3", r"bytes:\xa9"]
    assert scored["top_logprobs"] == [
        {"<|end|>": -1.0, r"bytes:\xc3": -2.0},
        {r"bytes:\xa8": -3.0, r"bytes:\xa9": -4.0},
    ]
    twice = (TokenPiece("\n", -1.0, tuple(TokenAlternative("\n", -value) for value in (1.0, 2.0, 3.0))),)
    [found] = logprobs_of(TEXT, twice)["top_logprobs"]
    assert (len(found), found["\n"], found[r"bytes:\x0a"]) == (3, -1.0, -2.0)


def test_a_control_token_that_was_drawn_has_its_name() -> None:
    """It has no text; in a completion the likelihood of what was drawn stands beside those of the likelier ones."""
    piece = TokenPiece("", -3.0, (TokenAlternative("a", -1.0),), name="<|im_start|>")
    [token] = logprobs_of(CHAT, [piece])["content"]
    assert (token["token"], token["bytes"]) == ("<|im_start|>", None)
    scored = logprobs_of(TEXT, [piece])
    assert scored["tokens"] == ["<|im_start|>"]
    assert scored["top_logprobs"] == [{"a": -1.0, "<|im_start|>": -3.0}]


def test_usage_is_null_where_tokens_are_not_known() -> None:
    """Usage is null where tokens are not known, never zero."""
    assert usage_of(receipt()) == USAGE
    assert usage_of(receipt(answered=False)) is None


# --- Streams ----------------------------------------------------------------------------------------------------------


def chunk(header: Header, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": header.response_id,
        "object": "chat.completion.chunk" if header.is_chat else "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
    }


def test_a_chats_stream_is_openais() -> None:
    """A chat's stream has the role first, then deltas, the reason and the end marker."""
    chunks = stream(CHAT, [TokenPiece("Hé")], [TokenPiece("l"), TokenPiece("lo")])
    assert chunks[-1] == "[DONE]"
    assert [without_receipt(found) for found in chunks[:-1]] == [
        chunk(CHAT, {"delta": {"role": "assistant", "content": ""}}),
        chunk(CHAT, {"delta": {"content": "Hé"}}),
        chunk(CHAT, {"delta": {"content": "llo"}}),
        chunk(CHAT, {"delta": {}, "finish_reason": "stop"}),
    ]
    for found in chunks[:-1]:
        strict(ChatCompletionChunk, found)


def test_a_completions_stream_is_openais() -> None:
    """A text completion's stream has the texts, then the reason."""
    chunks = stream(TEXT, [TokenPiece("Hé")])
    assert [without_receipt(found) for found in chunks[:-1]] == [
        chunk(TEXT, {"text": "Hé"}),
        chunk(TEXT, {"text": "", "finish_reason": "stop"}),
    ]


@pytest.mark.parametrize("header", [CHAT, TEXT])
def test_usage_comes_in_a_chunk_of_its_own(header: Header) -> None:
    """Usage comes after the reason in a chunk without choices; all other chunks say null."""
    chunks = stream(header, [TokenPiece("x")], usage=True)[:-1]
    assert [found["usage"] for found in chunks] == [None] * (len(chunks) - 1) + [USAGE]
    assert [bool(found["choices"]) for found in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_usage_is_not_mentioned_where_nobody_asked() -> None:
    """Chunks have no usage where it was not asked for, as with OpenAI."""
    assert all("usage" not in found for found in stream(CHAT, [TokenPiece("x")])[:-1])


@pytest.mark.parametrize("usage", [True, False])
def test_the_receipt_is_in_the_last_chunk_only(usage: bool) -> None:
    """The receipt is in the last chunk, with or without a usage chunk."""
    chunks = stream(CHAT, [TokenPiece("x")], usage=usage)[:-1]
    assert ["moe2" in found for found in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["moe2"] == body(receipt())


def test_an_empty_answer_still_has_role_and_reason() -> None:
    """The stream of an empty answer still has the role and the reason."""
    role, reason, end = stream(CHAT)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert reason["choices"][0]["finish_reason"] == "stop"
    assert end == "[DONE]"


def test_tokens_without_text_make_no_chunk() -> None:
    """Tokens without text make no chunk unless log-probabilities were asked for."""
    quiet = ChunkWriter(CHAT, include_usage=False, with_logprobs=False)
    assert quiet.tokens([TokenPiece("")]) == b""
    scored = ChunkWriter(CHAT, include_usage=False, with_logprobs=True)
    assert events(scored.tokens([TokenPiece("", -0.5)]))[-1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5


def test_a_chats_streamed_logprobs_are_those_of_its_chunk() -> None:
    """Each token's log-probability is streamed once, with its chunk."""
    chunks = stream(CHAT, PIECES[:1], PIECES[1:], logprobs=True)
    tokens = [
        scored["token"]
        for found in chunks[:-1]
        for scored in (found["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert tokens == ["Hé", "llo"]
    for found in chunks[:-1]:
        strict(ChatCompletionChunk, found)


def test_a_completions_streamed_offsets_are_into_the_whole_text() -> None:
    """Streamed offsets count from the beginning of the text, not of the chunk."""
    chunks = stream(TEXT, PIECES[:1], PIECES[1:], PIECES, logprobs=True)
    assert [found["choices"][0]["logprobs"]["text_offset"] for found in chunks[:3]] == [[0], [2], [5, 7]]


@pytest.mark.slow
@given(st.lists(st.lists(st.text(), max_size=3), max_size=5), st.booleans(), st.booleans(), st.text(), st.booleans())
def test_any_text_survives_the_stream(
    steps: list[list[str]], is_chat: bool, usage: bool, model: str, logprobs: bool
) -> None:
    """Any text survives being streamed in any steps."""
    header = Header(id="x", created=1, model=model, is_chat=is_chat)
    pieces = [[TokenPiece(text, -0.5) for text in step] for step in steps]
    *chunks, end = stream(header, *pieces, usage=usage, logprobs=logprobs)
    assert end == "[DONE]"
    choices = [found["choices"][0] for found in chunks if found["choices"]]
    texts = [choice["delta"].get("content", "") if is_chat else choice["text"] for choice in choices]
    assert "".join(texts) == "".join(text for step in steps for text in step)
    assert {found["model"] for found in chunks} == {model}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_openais() -> None:
    """An error has OpenAI's four keys, null where there is nothing to say."""
    assert invalid("No.").body() == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}
    }
    assert unsupported("n", hint="Only 1 is accepted.").body()["error"] == {
        "message": "Unsupported parameter: 'n'. Only 1 is accepted.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "unsupported_parameter",
    }


def test_an_error_in_a_stream_is_an_event_of_its_own() -> None:
    """An error in a stream is an event that the SDK raises, without an end marker."""
    assert events(ChunkWriter.error(invalid("No.").body())) == [invalid("No.").body()]


@pytest.mark.parametrize(
    ("code", "status", "kind", "shown", "retry"),
    [
        ("context_exceeded", 400, "invalid_request_error", "context_length_exceeded", False),
        ("invalid_request", 400, "invalid_request_error", "invalid_request", False),
        ("no_chat_template", 400, "invalid_request_error", "no_chat_template", False),
        ("overloaded", 429, "rate_limit_error", "overloaded", True),
        ("queue_full", 429, "rate_limit_error", "overloaded", True),
        ("internal", 500, "server_error", "internal", False),
        ("engine_crashed", 502, "server_error", "engine_crashed", True),
        ("crash_suspected", 422, "invalid_request_error", "crash_suspected", False),
        ("agent_lost", 502, "server_error", "agent_lost", True),
        ("no_live_expert", 503, "server_error", "no_live_expert", True),
        ("fleet_capped", 503, "server_error", "fleet_capped", True),
        ("fleet_cap_infeasible", 503, "server_error", "fleet_cap_infeasible", False),
        ("stopping", 503, "server_error", "stopping", True),
        ("deadline_exceeded", 504, "timeout_error", "deadline_exceeded", False),
    ],
)
def test_each_failure_has_its_status(code: str, status: int, kind: str, shown: str, retry: bool) -> None:
    """Each failure has its own status, a Retry-After where a retry can help, and the receipt."""
    error = error_of(Failed(code, "Why."), receipt())
    assert isinstance(error, ApiError)
    assert (error.status, error.kind, error.code, error.message) == (status, kind, shown, "Why.")
    assert (error.retry_after_s is not None) == retry
    assert body(error.body())["moe2"]["request_id"] == "req-1"
