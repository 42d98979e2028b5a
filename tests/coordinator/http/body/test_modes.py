"""The parameters `moe2.mode` and `moe2.choices`: what goes together, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.http.body.modes import MAX_CHOICES
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError

TOOLS = [{"type": "function", "function": {"name": "f"}}]
COLOURS = ["red", "blue"]


def chat(moe2: dict[str, Any] | None = None, **fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "moe2": moe2 or {}, **fields}
    return parse_chat(json.dumps(body).encode())


def refused(moe2: dict[str, Any], **fields: Any) -> str | None:
    """Returns the parameter that the refusal names; None if the body is accepted."""
    with pytest.raises(ApiError) as raised:
        chat(moe2, **fields)
    assert raised.value.status == 400
    return raised.value.param


def schema(rules: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": rules}}


def choices_of(call: Call) -> tuple[str, ...]:
    return call.ballot.choices if call.ballot else ()


# --- Choices ----------------------------------------------------------------------------------------------------------


def test_choices_are_a_ballot_and_a_grammar() -> None:
    """Choices are a ballot and a grammar, so that one expert alone also answers with one of them."""
    call = chat({"choices": ["red", 'a "quoted"\n€']})
    assert choices_of(call) == ("red", 'a "quoted"\n€')
    assert call.generation.grammar == 'root ::= "red" | "a \\"quoted\\"\\n€"'
    assert call.modes == {Mode.ROUTE, Mode.VOTE, Mode.RANK, Mode.CONSENSUS}


def test_choices_go_with_completions() -> None:
    """A text completion may have choices as well."""
    body = {"model": "m", "prompt": "The sky is", "moe2": {"choices": [" blue", " red"]}}
    assert choices_of(parse_completion(json.dumps(body).encode())) == (" blue", " red")


@pytest.mark.parametrize(
    ("rules", "texts"),
    [
        ({"enum": ["yes", "no"]}, ('"yes"', '"no"')),
        ({"type": "string", "enum": ["ä", "b"]}, ('"ä"', '"b"')),
        ({"enum": [1, 2.5, True]}, ("1", "2.5", "true")),
        (
            {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
            ('{"a": "x"}', '{"a": "y"}'),
        ),
        ({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}, ()),
        ({"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {}}, "required": ["a", "b"]}, ()),
        ({"type": "string", "enum": ["a", "b"], "minLength": 2}, ()),
        ({"type": "string"}, ()),
        ({"enum": ["only"]}, ()),
        ({}, ()),
    ],
)
def test_an_enum_is_a_ballot_of_documents(rules: Any, texts: tuple[str, ...]) -> None:
    """A schema that allows nothing but its values is a ballot; any other is a grammar."""
    call = chat(response_format=schema(rules))
    assert choices_of(call) == texts
    assert (Mode.VOTE in call.modes) == bool(texts)
    assert call.structured_by == "response_format"


@pytest.mark.parametrize(
    "choices",
    [
        [],
        ["a"],
        ["a", "a"],
        ["a", ""],
        ["a", "b\0"],
        "ab",
        [1, 2],
        ["x" * 5000, "y"],
        [str(n) for n in range(MAX_CHOICES + 1)],
    ],
)
def test_choices_are_two_or_more_different_texts(choices: Any) -> None:
    """Choices that are too few, too many, too long or equal are refused."""
    assert (refused({"choices": choices}) or "").startswith("moe2.choices")


def test_length_normalisation_needs_choices() -> None:
    """Length normalisation without choices is refused, as it says how they are compared."""
    assert chat({"choices": COLOURS, "length_normalised": True}).ballot is not None
    assert refused({"length_normalised": True}) == "moe2.length_normalised"


def test_choices_go_with_no_other_form() -> None:
    """Choices together with another form of the answer are refused."""
    assert refused({"choices": COLOURS}, grammar='root ::= "x"') == "moe2.choices"
    assert refused({"choices": COLOURS}, response_format={"type": "json_object"}) == "moe2.choices"
    assert refused({"choices": COLOURS}, tools=TOOLS) == "moe2.choices"


# --- Modes ------------------------------------------------------------------------------------------------------------


def test_a_vote_needs_something_to_vote_on() -> None:
    """A vote without choices or an enum is refused."""
    assert refused({"mode": "vote"}) == "moe2.mode"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"top_k": 4},
        {"min_p": 0.1},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"repeat_penalty": 1.1},
        {"logit_bias": {"1": 1}},
        {"stop": ["x"]},
    ],
)
def test_what_a_vote_cannot_honour_is_refused(fields: dict[str, Any]) -> None:
    """A parameter that a vote cannot honour is refused; where the mode is left open, one expert answers."""
    assert refused({"mode": "vote", "choices": COLOURS}, **fields) == next(iter(fields))
    assert Mode.VOTE not in chat({"choices": COLOURS}, **fields).modes


def test_a_vote_takes_what_changes_nothing() -> None:
    """A vote accepts parameters that change nothing for it, such as temperature 0 and a seed."""
    assert chat({"mode": "vote", "choices": COLOURS}, temperature=0, seed=1, max_tokens=5, stream=True)


@pytest.mark.parametrize("mode", ["vote", "rank", "mix"])
def test_tools_are_one_experts(mode: str) -> None:
    """A panel is refused for a request with tools."""
    assert refused({"mode": mode}, tools=TOOLS) == "tools"


def test_a_mix_follows_no_grammar() -> None:
    """A mix is refused with a grammar and with raised tokens, and accepted with ruled-out ones."""
    assert refused({"mode": "mix"}, response_format={"type": "json_object"}) == "response_format"
    assert refused({"mode": "mix"}, grammar='root ::= "x"') == "grammar"
    assert refused({"mode": "mix", "choices": COLOURS}) == "moe2.choices"
    assert refused({"mode": "mix"}, logit_bias={"1": 5}) == "logit_bias"
    assert refused({"mode": "mix"}, repeat_penalty=1.1) == "repeat_penalty"
    assert Mode.MIX in chat({"mode": "mix"}, logit_bias={"1": -100}, logprobs=True, stop=["x"], stream=True).modes


def test_a_ranking_takes_forms_and_streams() -> None:
    """A ranking accepts a form and a stream."""
    call = chat({"mode": "rank"}, response_format={"type": "json_object"}, stream=True, logprobs=True)
    assert Mode.RANK in call.modes


def test_an_unknown_mode_is_refused() -> None:
    """An unknown mode is refused by its name."""
    assert refused({"mode": "debate"}) == "moe2.mode"
