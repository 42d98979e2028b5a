"""Tool calls in a model's text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun, CallReader

WEATHER = '{"name": "weather", "arguments": {"city": "Köln"}}'
PARTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        WEATHER,
        '{"name": "nobody"}',
        " ",
        "\n",
        "<",
        "text",
        "{",
        "[",
        "<tool",
        "é",
        WEATHER[:-2],
        WEATHER[:-9],
        "}",
        '"',
        ", ",
    ]
)


def read(*texts: str) -> tuple[str, list[ToolCall]]:
    """Returns all text and all calls of an answer that came in these parts."""
    reader = CallReader({"weather", "time"}, ids="x")
    found = [part for text in texts for part in reader.feed([TokenPiece(text)])] + reader.finish()
    return (
        "".join(piece.text for part in found if isinstance(part, tuple) for piece in part),
        [part for part in found if isinstance(part, ToolCall)],
    )


@pytest.mark.parametrize(
    "answer",
    [
        f"<tool_call>\n{WEATHER}\n</tool_call>",
        f"\n<tool_call>{WEATHER}</tool_call>\n",
        f"<tool_call>{WEATHER}",
        WEATHER,
        f"  {WEATHER}\n",
        f"[{WEATHER}]",
        WEATHER.replace("arguments", "parameters"),
        json.dumps({"name": "weather", "arguments": '{"city": "Köln"}'}),
        f"<tool_call>{WEATHER[:-1]}</tool_call>",
        f"<tool_call>{WEATHER[:-1]}, 'id': 3}}</tool_call>",
        f"<tool_call>{WEATHER[:-1]}",
    ],
)
def test_each_form_of_a_call_is_found(answer: str) -> None:
    """Calls are found tagged, cut off, plain, in a list, with Llama's key, and with arguments as text."""
    text, calls = read(answer)
    assert text == ""
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "Köln"})]


def test_calls_may_follow_text_and_each_other() -> None:
    """Calls after text and after each other have different ids, and the white space around them is no text."""
    second = '{"name": "time", "arguments": {}}'
    answer = f"Let me see.\n<tool_call>{WEATHER}</tool_call>\n<tool_call>{second}</tool_call>\n"
    text, calls = read(answer)
    assert text == "Let me see."
    assert [(call.id, call.name) for call in calls] == [("call_x_0", "weather"), ("call_x_1", "time")]


@pytest.mark.parametrize(
    "answer",
    [
        "Just text.",
        "",
        '{"a": 1}',
        '{"name": "nobody", "arguments": {}}',
        '{"name": "weather", "arguments": 3}',
        '{"name": "weather", "arguments": "{"}',
        '<tool_call>{"name": ["weather"]}</tool_call>',
        f"[{WEATHER}, 1]",
        "[" * 100_000,
        " \n",
    ],
)
def test_what_only_looks_like_a_call_stays_text(answer: str) -> None:
    """Text that only looks like a call stays text, whole."""
    assert read(answer) == (answer, [])


def test_text_is_handed_on_as_soon_as_it_can_be_no_call() -> None:
    """Text is handed on as soon as it can be no call, so that a stream with tools is a stream."""
    reader = CallReader({"weather"}, ids="x")
    assert said(reader, TokenPiece("The ")) == "The"
    assert said(reader, TokenPiece("sky <")) == " sky"
    assert said(reader, TokenPiece("b>")) == " <b>"


def said(reader: CallReader, *pieces: TokenPiece) -> str:
    return "".join(piece.text for part in reader.feed(pieces) if isinstance(part, tuple) for piece in part)


def test_tokens_of_text_keep_their_log_probabilities() -> None:
    """Tokens of text come whole, with what is known of them; those of a call are no text, and have none."""
    reader = CallReader({"weather"}, ids="x")
    tokens = [TokenPiece("See ", -0.5), TokenPiece("<b> ", -0.25), TokenPiece("it.", -0.125), TokenPiece("\n", -1.0)]
    call = [TokenPiece(f"<tool_call>{WEATHER}", -2.0), TokenPiece("</tool_call>", -3.0)]
    found = [*reader.feed(tokens), *reader.feed(call), *reader.finish()]
    assert [piece for part in found if isinstance(part, tuple) for piece in part] == tokens[:3]
    assert isinstance(found[-1], ToolCall)


def test_arguments_come_as_they_are_written() -> None:
    """The name first, then each piece of the arguments, which add up to those of the whole call."""
    reader = CallReader({"weather"}, ids="x")
    texts = [
        "<tool",
        '_call>{"name": "weather", "argu',
        'ments": {"ci',
        'ty": "K\\"',
        "}\n",
        'ö"',
        " }",
        "}</tool_call>",
        "Bye",
    ]
    found = [reader.feed([TokenPiece(text)]) for text in texts]
    assert found[2] == [CallBegun("call_x_0", "weather"), CallArguments('{"ci')]
    arguments = '{"city": "K\\"}\\nö" }'
    assert "".join(part.text for parts in found for part in parts if isinstance(part, CallArguments)) == arguments
    assert found[6][-1] == ToolCall(id="call_x_0", name="weather", arguments=arguments)
    assert json.loads(arguments) == {"city": 'K"}\nö'}
    assert found[8] == [(TokenPiece("Bye"),)]


def test_a_call_that_is_cut_off_keeps_what_there_is() -> None:
    """An answer that ends within the arguments has a call with the beginning of these."""
    text, calls = read('<tool_call>{"name": "weather", "arguments": {"city": "K')
    assert (text, [call.arguments for call in calls]) == ("", ['{"city": "K'])


def test_text_behind_a_bare_call_is_text() -> None:
    """Nothing is lost of an answer that goes on after a call."""
    text, calls = read(f"{WEATHER}\nThat is it.")
    assert (text, len(calls)) == ("That is it.", 1)


@given(st.lists(PARTS, max_size=12), st.data())
def test_how_the_answer_is_cut_changes_nothing(parts: list[str], data: st.DataObject) -> None:
    """The result does not depend on where the answer is cut into tokens."""
    answer = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    edges = [0, *cuts, len(answer)]
    pieces = [answer[start:end] for start, end in itertools.pairwise(edges)]
    assert read(*pieces) == read(answer)


@given(st.lists(PARTS, max_size=12))
def test_an_answer_without_calls_is_its_own_text(parts: list[str]) -> None:
    """An answer without calls is read as its own text."""
    answer = "".join(parts)
    text, calls = read(answer)
    if not calls:
        assert text == answer


@pytest.mark.parametrize(
    "answer", [f"<tool_call>{WEATHER}</tool_call><tool_call>{WEATHER}</tool_call>", f"[{WEATHER}, {WEATHER}]"]
)
def test_a_call_beyond_the_limit_is_left_out(answer: str) -> None:
    """Where the client wants one call at most, a second one is neither a call nor text."""
    reader = CallReader({"weather"}, ids="x", most_calls=1)
    found = [*reader.feed([TokenPiece(answer)]), *reader.finish()]
    assert [type(part) for part in found] == [CallBegun, CallArguments, ToolCall]
    assert reader.n_calls == 1
