"""The form of a forced tool call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.structure.toolcall import schema_of_call
from moe2.common.link.prompts import Tool

_NODE = {"$defs": {"leaf": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/leaf"}, "b": {"$ref": "#"}}}
_TOOLS = (Tool(name="tree", parameters=json.dumps(_NODE)), Tool(name="time"))


def test_one_forced_tool_is_one_object() -> None:
    """Its name is fixed, its arguments follow its schema."""
    schema = schema_of_call(_TOOLS, ["time"])
    assert schema["properties"]["name"] == {"const": "time"}
    assert schema["$defs"] == {"time": {"type": "object"}}


@pytest.mark.parametrize("more", [{"additionalProperties": True}, {"allOf": [{"minProperties": 1}]}])
def test_a_function_may_let_in_arguments_that_it_does_not_name(more: dict[str, Any]) -> None:
    """Where its schema says so, the call follows it as it stands."""
    parameters = {"type": "object", "properties": {"a": {}}, **more}
    tool = Tool(name="f", parameters=json.dumps(parameters))
    assert schema_of_call([tool], ["f"])["$defs"]["f"] == parameters


def test_a_call_has_only_the_arguments_that_its_function_names() -> None:
    """Where its schema does not say which others there may be."""
    tool = Tool(name="f", parameters='{"type": "object", "properties": {"a": {}}}')
    assert schema_of_call([tool], ["f"])["$defs"]["f"]["additionalProperties"] is False


def test_several_forced_tools_are_a_choice() -> None:
    """One call of any of them."""
    schema = schema_of_call(_TOOLS, ["tree", "time"])
    assert [entry["properties"]["name"]["const"] for entry in schema["anyOf"]] == ["tree", "time"]


def test_references_follow_their_schema() -> None:
    """A tool's schema is no document of its own any more."""
    moved = schema_of_call(_TOOLS, ["tree"])["$defs"]["tree"]
    assert moved["properties"] == {"a": {"$ref": "#/$defs/tree/$defs/leaf"}, "b": {"$ref": "#/$defs/tree"}}


def test_an_unknown_tool_cannot_be_forced() -> None:
    """The name is in the message."""
    with pytest.raises(RequestError, match="'nobody'"):
        schema_of_call(_TOOLS, ["nobody"])
