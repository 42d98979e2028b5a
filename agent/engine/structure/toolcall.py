"""PURE: the JSON schema of a forced tool call.

A call is `{"name": NAME, "arguments": OBJECT}`; models whose template says so write it between <tool_call> tags (the
form that Hermes and Qwen models were trained on).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe2.agent.engine.prompt.request import invalid
from moe2.common.link.prompts import Tool

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_OPENING = frozenset(
    {"$ref", "additionalProperties", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"}
)
"""Keywords that may bring in arguments beyond a function's `properties`."""


def schema_of_call(tools: Sequence[Tool], names: Sequence[str], *, arguments_key: str = "arguments") -> dict[str, Any]:
    """The JSON schema of one call of one of the tools with these names (see `call_schema`).

    Raises `RequestError` for an unknown name or parameters that are no JSON.
    """
    return call_schema(arguments_of(tools, names), arguments_key=arguments_key)


def arguments_of(tools: Sequence[Tool], names: Sequence[str]) -> dict[str, Any]:
    """The schemas of the arguments of the tools with these names. Raises `RequestError` as `schema_of_call`."""
    known = {tool.name: tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise invalid(f"The tool {missing[0]!r} is to be called, but is not among the tools.")
    return {name: parameters_of(known[name]) for name in names}


def call_schema(
    arguments: Mapping[str, Any], *, name_key: str = "name", arguments_key: str = "arguments"
) -> dict[str, Any]:
    """The JSON schema of one call. arguments: the schema of each tool's arguments, by its name. name_key,
    arguments_key: the keys of the call's object."""
    definitions: dict[str, Any] = {}
    calls = []
    for name, schema in arguments.items():
        here = f"#/$defs/{name}"
        definitions[name] = moved(schema, here)
        calls.append(
            {
                "type": "object",
                "properties": {name_key: {"const": name}, arguments_key: {"$ref": here}},
                "required": [name_key, arguments_key],
                "additionalProperties": False,
            }
        )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": definitions}


def moved(node: Any, here: str) -> Any:
    """A schema that is no longer its document's root but lies at the pointer `here`: references to its own parts are
    changed accordingly."""
    if isinstance(node, dict):
        return {
            key: here + value[1:]
            if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
            else moved(value, here)
            for key, value in node.items()
        }
    return [moved(value, here) for value in node] if isinstance(node, list) else node


def parameters_of(tool: Tool) -> Any:
    """The JSON schema of a tool's arguments. Raises `RequestError` for parameters that are no JSON."""
    try:
        schema = json.loads(tool.parameters)
    except (ValueError, RecursionError) as error:
        raise invalid(f"The parameters of the tool {tool.name!r} are not valid JSON.") from error
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict) and not schema.keys() & _OPENING:
        # Of all that would be valid, a model is to write what the function says it takes.
        return {**schema, "additionalProperties": False}
    return schema or _ANY_ARGUMENTS
