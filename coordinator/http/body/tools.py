"""The parameters for tools and for the answer's form: `tools`, `tool_choice`, `response_format`, `grammar`. PURE.

Only the expert's own parser can tell whether a schema is usable or a grammar valid; it is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from moe2.common.generation import Generation, ToolRules
from moe2.common.link.prompts import Tool
from moe2.coordinator.http.body.requests import (
    MAX_STRUCTURE_BYTES,
    ChatRequest,
    ChosenTool,
    CommonRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    OfferedTool,
    TextFormat,
)
from moe2.coordinator.http.errors import invalid, quoted, unsupported

FREE_FORM = Generation()


@dataclass(frozen=True)
class Structure:
    """The form that an answer must have."""

    param: str | None = None
    """The request's parameter that asked for the form; None where it is free."""
    form: Generation = FREE_FORM


FREE = Structure()


def tools_of(body: ChatRequest) -> tuple[tuple[Tool, ...], Structure]:
    """Returns the tools that the model is to see, and the form that its answer must have."""
    tools = _tools(body.tools or ())
    forced = _forced(body.tool_choice, tuple(tool.name for tool in tools))
    form = structure_of(body)
    if forced is None:
        return (), form
    if not forced:
        return tools, _optional(body, form)
    if body.grammar is not None:
        raise unsupported("grammar", hint="Together with 'tools' it needs 'tool_choice': \"none\" or \"auto\".")
    # An answer that is a call has no text that `response_format` could be about.
    return tools, Structure("tools", Generation(forced_tools=forced))


def _optional(body: ChatRequest, form: Structure) -> Structure:
    """Returns the form of an answer that may call tools, but need not: what of it is no call has the form asked for."""
    strict = tuple(tool.function.name for tool in body.tools or () if tool.function.strict)
    is_parallel = body.parallel_tool_calls is not False
    if form is FREE and not strict and is_parallel:
        return FREE
    rules = ToolRules(strict=strict, parallel=is_parallel)
    return Structure("tools" if strict else form.param, msgspec.structs.replace(form.form, tool_rules=rules))


def structure_of(body: CommonRequest) -> Structure:
    """Returns the form that `response_format` or `grammar` asks for."""
    schema = _response_schema(body.response_format)
    if body.grammar is None:
        if body.grammar_syntax is not None:
            raise invalid("'grammar_syntax' needs 'grammar'.", param="grammar_syntax")
        return FREE if schema is None else Structure("response_format", Generation(json_schema=schema))
    if schema is not None:
        raise invalid("Set 'response_format' or 'grammar', not both.", param="grammar")
    if not body.grammar.strip() or len(body.grammar.encode()) > MAX_STRUCTURE_BYTES:
        raise invalid(f"'grammar' must be a grammar of 1 to {MAX_STRUCTURE_BYTES} bytes.", param="grammar")
    return Structure("grammar", Generation(grammar=body.grammar, grammar_syntax=body.grammar_syntax or "gbnf"))


def _tools(offered: Sequence[OfferedTool]) -> tuple[Tool, ...]:
    tools = tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description,
            parameters=_schema(tool.function.parameters, f"tools[{index}].function.parameters"),
        )
        for index, tool in enumerate(offered)
    )
    if len({tool.name for tool in tools}) < len(tools):
        raise invalid("'tools' has two functions of the same name.", param="tools")
    return tools


def _forced(choice: str | ChosenTool | None, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the tools of which one must be called: none where the model is free, None where it has no tools."""
    if choice is None or choice == "auto":
        return () if names else None
    if choice == "none":
        return None
    if not names:
        raise invalid("'tool_choice' needs 'tools'.", param="tool_choice")
    if isinstance(choice, str):
        return names
    name = choice.function.name
    if name not in names:
        raise invalid(f"'tool_choice' names {quoted(name)}, which is not among 'tools'.", param="tool_choice")
    return (name,)


def _response_schema(chosen: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> str | None:
    """Returns the JSON schema that `response_format` asks for; None for text."""
    match chosen:
        case None | TextFormat():
            return None
        case JsonObjectFormat(schema=schema):
            return _schema(schema, "response_format.schema")
        case JsonSchemaFormat(json_schema=None, schema=None):
            raise invalid("'response_format.json_schema' is required: an object.", param="response_format.json_schema")
        case JsonSchemaFormat(json_schema=named, schema=schema):
            if named is None or named.schema is None:
                return _schema(schema, "response_format.schema")
            return _schema(named.schema, "response_format.json_schema.schema")


def _schema(schema: Mapping[str, Any] | None, where: str) -> str:
    """Returns a JSON schema as JSON text; no schema allows any object."""
    try:
        content = msgspec.json.encode(schema or {})
    except (RecursionError, msgspec.MsgspecError) as error:
        raise invalid(f"'{where}' cannot be used: {error}.", param=where) from None
    if len(content) > MAX_STRUCTURE_BYTES:
        raise invalid(f"'{where}' has more than {MAX_STRUCTURE_BYTES} bytes.", param=where)
    return content.decode()
