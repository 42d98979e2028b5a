"""The parameters that offer tools or bind an answer's form: `tools`, `tool_choice`, `response_format`, `grammar`. PURE.

What only the expert's own parser can tell (is the schema usable, is the grammar valid) is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from moe2.common.messages import Tool
from moe2.coordinator.api.errors import invalid, quoted, unsupported
from moe2.coordinator.api.fields import clean, flag, object_of, text_of
from moe2.coordinator.structure import FREE, Structure

MOST_TOOLS = 128
MOST_STRUCTURE_BYTES = 65_536
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def tools_of(fields: Mapping[str, Any]) -> tuple[tuple[Tool, ...], Structure]:
    """(the tools that the model is to see, the form that its answer must have)."""
    tools = _tools(fields.get("tools"))
    forced = _forced(fields.get("tool_choice"), tuple(tool.name for tool in tools))
    form = structure_of(fields)
    if forced is None:
        if not tools and "parallel_tool_calls" in fields:
            raise invalid("'parallel_tool_calls' needs 'tools'.", param="parallel_tool_calls")
        return (), form
    if form is not FREE:
        raise unsupported(form.param or "", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    if not forced:
        _refuse_promises(fields)
        return tools, FREE
    return tools, Structure(param="tools", forced_tools=forced)


def structure_of(fields: Mapping[str, Any]) -> Structure:
    """What `response_format` and `grammar` ask for."""
    schema = _response_schema(fields.get("response_format"))
    grammar = text_of(fields, "grammar")
    if grammar is None:
        return FREE if schema is None else Structure(param="response_format", json_schema=schema)
    if schema is not None:
        raise invalid("Set 'response_format' or 'grammar', not both.", param="grammar")
    if not grammar.strip() or len(grammar.encode("utf-8", "replace")) > MOST_STRUCTURE_BYTES:
        raise invalid(f"'grammar' must be GBNF of 1 to {MOST_STRUCTURE_BYTES} bytes.", param="grammar")
    return Structure(param="grammar", grammar=clean(grammar, "grammar"))


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise invalid(f"'tools' must be a list of at most {MOST_TOOLS}.", param="tools")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))
    if len({tool.name for tool in tools}) < len(tools):
        raise invalid("'tools' has two functions of the same name.", param="tools")
    return tools


def _tool(value: Any, where: str) -> Tool:
    tool = object_of(value, where, {"type", "function"})
    if tool.get("type") != "function":
        raise unsupported(f"{where}.type", hint="Only 'function' is accepted.")
    where = f"{where}.function"
    function = object_of(tool.get("function"), where, {"name", "description", "parameters", "strict"})
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"'{where}.name' must be 1 to 64 letters, digits or _ . - characters.", param=f"{where}.name")
    if description is not None and not isinstance(description, str):
        raise invalid(f"'{where}.description' must be a string.", param=f"{where}.description")
    flag(function, "strict")
    return Tool(
        name=name,
        description=None if description is None else clean(description, f"{where}.description"),
        parameters=_schema(function.get("parameters", {}), f"{where}.parameters"),
    )


def _forced(choice: Any, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The tools of which one must be called; empty where the model is free to; None where there is nothing to call."""
    if choice is None or choice == "auto":
        return () if names else None
    if choice == "none":
        return None
    if not names:
        raise invalid("'tool_choice' needs 'tools'.", param="tool_choice")
    if choice == "required":
        return names
    if not isinstance(choice, dict):
        raise invalid('\'tool_choice\' must be "auto", "none", "required" or a function.', param="tool_choice")
    named = object_of(choice, "tool_choice", {"type", "function"})
    if named.get("type") != "function":
        raise unsupported("tool_choice.type", hint="Only 'function' is accepted.")
    name = object_of(named.get("function"), "tool_choice.function", {"name"}).get("name")
    if name not in names:
        raise invalid(f"'tool_choice' names {quoted(name)}, which is not among 'tools'.", param="tool_choice")
    return (name,)


def _refuse_promises(fields: Mapping[str, Any]) -> None:
    """Where the model is free to call or not, nothing makes it keep to a schema or to one call."""
    hint = "It needs 'tool_choice': \"required\" or a function."
    if not flag({"parallel_tool_calls": True, **fields}, "parallel_tool_calls"):
        raise unsupported("parallel_tool_calls", hint=hint)
    for index, tool in enumerate(fields["tools"]):
        if tool["function"].get("strict"):
            raise unsupported(f"tools[{index}].function.strict", hint=hint)


def _response_schema(value: Any) -> str | None:
    """The JSON schema that `response_format` asks for, None for text."""
    where = "response_format"
    if value is None:
        return None
    chosen = object_of(value, where, {"type", "json_schema"})
    kind = chosen.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid("'response_format.type' must be text, json_object or json_schema.", param=f"{where}.type")
    if kind != "json_schema":
        if "json_schema" in chosen:
            raise unsupported(f"{where}.json_schema", hint="It needs type 'json_schema'.")
        return None if kind == "text" else "{}"
    where = f"{where}.json_schema"
    named = object_of(chosen.get("json_schema"), where, {"name", "description", "schema", "strict"})
    for text in ("name", "description"):
        text_of(named, text)
    # With or without `strict` the answer follows the schema: a grammar knows no "perhaps".
    flag(named, "strict")
    return _schema(named.get("schema", {}), f"{where}.schema")


def _schema(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        raise invalid(f"'{where}' must be a JSON schema, which is an object.", param=where)
    try:
        content = msgspec.json.encode(value)
    except (RecursionError, msgspec.MsgspecError) as error:
        raise invalid(f"'{where}' cannot be used: {error}.", param=where) from None
    if len(content) > MOST_STRUCTURE_BYTES:
        raise invalid(f"'{where}' has more than {MOST_STRUCTURE_BYTES} bytes.", param=where)
    return clean(content.decode(), where)
