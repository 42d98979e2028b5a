"""What the parser of request bodies refuses, and how it names what is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from moe2.coordinator.http.body.parse import parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from tests.coordinator.http.body.bodies import USER, chat, completion, refused

# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web_search_options", "audio", "tempratur"])
@pytest.mark.parametrize("parse", [chat, completion])
def test_unknown_parameters_are_refused_by_name(parse: Any, name: str) -> None:
    """Unknown parameters and typing errors are refused by name, never dropped."""
    error = refused(parse, **{name: "x"})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert repr(name) in error.message


@pytest.mark.parametrize("name", ["messages", "max_completion_tokens", "top_logprobs"])
def test_a_chats_parameters_are_unknown_to_completions(name: str) -> None:
    """Parameters of chats are refused for text completions."""
    assert refused(completion, **{name: 1}).param == name


def test_a_completions_prompt_is_unknown_to_chats() -> None:
    """A prompt is refused for chats."""
    assert refused(chat, prompt="x").param == "prompt"


WRONG: dict[str, list[Any]] = {
    "model": [7, ["m"]],
    "max_tokens": [0, -2, 1.5, "5", True, 2**64, []],
    "n": [0, 17, 1.5, "2", True],
    "temperature": [-0.1, 2.1, "warm", True, {}],
    "top_p": [-0.1, 1.1, "x", False],
    "top_k": [-2, 1.5, "x"],
    "store": [1, "yes"],
    "metadata": [[], "x"],
    "verbosity": ["loud", 3],
    "min_p": [-0.1, 1.1],
    "seed": [1.5, "x", 2**63, True],
    "frequency_penalty": [-2.1, 2.1, "x"],
    "presence_penalty": [-2.1, 2.1, "x"],
    "repeat_penalty": [0, 2.1, "x"],
    "logit_bias": [
        [],
        "x",
        {"a": 1},
        {"1": "x"},
        {"1": 101},
        {"-1": 1},
        {"1": None},
        {str(2**31): 1},
        {str(2**70): 1},
        {"1.5": 1},
    ],
    "stop": [7, "", [""], [7], {}, ["x"] * 17],
    "stream": [1, "true", []],
    "stream_options": [[], "x", {"include_usage": True}],
    "user": [7, []],
}


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values_are_refused_by_name(parse: Any, name: str, value: Any) -> None:
    """Wrong types and values out of range are refused by name."""
    error = refused(parse, **{name: value})
    assert error.param == name
    assert name in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"include_obfuscation": 7}}, "stream_options.include_obfuscation"),
        ({"echo": True}, "echo"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "model", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": 7}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "a", "name": "b\0"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}]},
            "messages[0].content[0].cache",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [7]}]}, "messages[0].tool_calls[0]"),
    ],
)
def test_a_chats_faults_are_named(fields: dict[str, Any], param: str) -> None:
    """Faults of a chat are named down to the message and the part."""
    assert refused(chat, **fields).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [[1], 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"echo": 1}, "echo"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_a_completions_faults_are_named(fields: dict[str, Any], param: str) -> None:
    """Prompts of two kinds, impossible token ids, too many prompts and NUL in a text completion are refused by name."""
    assert refused(completion, **fields).param == param


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b'{"a": NaN}', b"[" * 10_000, b'{"a": 1e999}', b'{"a": "\\ud800"}'],
)
def test_what_is_no_json_object_is_told(parse: Any, body: bytes) -> None:
    """A body that is broken, nested without end, or no object is refused."""
    with pytest.raises(ApiError) as raised:
        parse(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("name", ["tools", "tool_choice", "parallel_tool_calls"])
def test_tools_are_unknown_to_completions(name: str) -> None:
    """Tools are refused for text completions."""
    assert refused(completion, **{name: "x"}).param == name


@pytest.mark.parametrize("name", ["strict", "resume"])
def test_how_far_to_go_is_a_yes_or_no(name: str) -> None:
    """`strict` and `resume` are a yes or no, in the body or as a header; anything else names the parameter."""

    def asked(value: object, **headers: str) -> bool:
        body = {"model": "moe2", "messages": [{"role": "user", "content": "Hi"}], "moe2": {name: value}}
        return bool(getattr(parse_chat(msgspec.json.encode(body), headers).wish, name))

    assert asked(True)
    assert not asked(False)
    assert not asked(None)
    assert asked(None, **{f"x-moe2-{name}": "true"})
    with pytest.raises(ApiError) as caught:
        asked(7)
    assert caught.value.param == f"moe2.{name}"
