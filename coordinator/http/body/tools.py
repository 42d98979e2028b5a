"""The parameters for tools and for the answer's form: `tools`, `tool_choice`, `response_format`, `grammar`. PURE.

`functions` and `function_call`, which OpenAI had before, are read as `tools` and `tool_choice`. A custom tool, whose
input is a text, is to the model a function with one argument. A regular expression becomes the pattern of that text,
and holds as the schema of a strict function does. A Lark grammar holds where the tool is the only one that may be
called and one must be: then the whole answer is its input.

Only the expert's own parser can tell whether a schema is usable or a grammar valid; it is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from moe2.common.generation import Generation, ToolRules
from moe2.common.link.prompts import Tool
from moe2.coordinator.http.body.requests import (
    MAX_STRUCTURE_BYTES,
    AllowedTools,
    AnyTool,
    ChatRequest,
    ChosenCustomTool,
    ChosenFunction,
    ChosenTool,
    CommonRequest,
    Grammar,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    OfferedCustom,
    OfferedFunction,
    OfferedTool,
    TextFormat,
)
from moe2.coordinator.http.errors import invalid, quoted, unsupported

FREE_FORM = Generation()
Choice: TypeAlias = str | ChosenTool | ChosenCustomTool | AllowedTools | None
INPUT = "input"
"""The argument that carries a custom tool's text."""


class Structure(msgspec.Struct, frozen=True):
    """The form that an answer must have."""

    param: str | None = None
    """The request's parameter that asked for the form; None where it is free."""
    form: Generation = FREE_FORM


FREE = Structure()


class Offered(msgspec.Struct, frozen=True):
    """The tools of a request, and how their calls are to be shown.

    tools: those that the model is to see. structure: the form that its answer must have. is_legacy: they were given as
    `functions`. custom: names of the custom tools. input_of: the custom tool of which the whole answer is the input;
    None where calls are to be found in the answer. left_out: parameters that change nothing.
    """

    tools: tuple[Tool, ...] = ()
    structure: Structure = FREE
    is_legacy: bool = False
    custom: frozenset[str] = frozenset()
    input_of: str | None = None
    left_out: tuple[str, ...] = ()


def offered_by(body: ChatRequest) -> Offered:
    """Returns the tools that a body offers. Raises `ApiError` (400), which names the parameter."""
    listed, choice, is_legacy = _listed(body)
    if not listed and choice is None:
        return Offered(structure=structure_of(body))
    allowed, choice = _allowed(listed, choice)
    tools, grammars = _tools(allowed, "functions" if is_legacy else "tools")
    custom = frozenset(each.custom.name for each in allowed if not isinstance(each, OfferedTool))
    forced = _forced(choice, tuple(tool.name for tool in tools))
    form = structure_of(body)
    if forced is None:
        return Offered(structure=form)
    # A grammar that cannot be kept beside other answers is told to the model, and to the client.
    lark = [name for name, grammar in grammars.items() if grammar.syntax == "lark"]
    if not forced:
        left_out = ("tools[].custom.format",) if lark else ()
        return Offered(tools, _optional(body, allowed, form), is_legacy, custom, left_out=left_out)
    if body.grammar is not None:
        raise unsupported("grammar", hint="Together with 'tools' it needs 'tool_choice': \"none\" or \"auto\".")
    if len(forced) == 1 and forced[0] in lark:
        grammar = Generation(grammar=grammars[forced[0]].definition, grammar_syntax="lark")
        return Offered(tools, Structure("tools", grammar), custom=custom, input_of=forced[0])
    # An answer that is a call has no text that `response_format` could be about.
    left_out = ("tools[].custom.format",) if set(lark) & set(forced) else ()
    return Offered(tools, Structure("tools", Generation(forced_tools=forced)), is_legacy, custom, left_out=left_out)


def _listed(body: ChatRequest) -> tuple[Sequence[AnyTool], Choice, bool]:
    """Returns the tools of a body, which of them are to be called, and whether they have their older names."""
    if body.functions is None and body.function_call is None:
        return body.tools or (), body.tool_choice, False
    if body.tools is not None or body.tool_choice is not None:
        raise invalid("Set 'tools' or 'functions', not both.", param="functions")
    choice: Choice = None
    if isinstance(body.function_call, ChosenFunction):
        choice = ChosenTool(function=body.function_call)
    elif body.function_call is not None:
        choice = body.function_call
    return [OfferedTool(function=function) for function in body.functions or ()], choice, True


def _allowed(tools: Sequence[AnyTool], choice: Choice) -> tuple[Sequence[AnyTool], Choice]:
    """Returns the tools that may be called in this answer, and the choice among them."""
    if not isinstance(choice, AllowedTools):
        return tools, choice
    names = {_chosen_name(each) for each in choice.allowed_tools.tools}
    if unknown := sorted(names - {_name(tool) for tool in tools}):
        raise invalid(f"'tool_choice' allows {quoted(unknown[0])}, which is not among 'tools'.", param="tool_choice")
    return [tool for tool in tools if _name(tool) in names], choice.allowed_tools.mode


def _name(tool: AnyTool) -> str:
    return tool.function.name if isinstance(tool, OfferedTool) else tool.custom.name


def _chosen_name(choice: ChosenTool | ChosenCustomTool) -> str:
    return choice.function.name if isinstance(choice, ChosenTool) else choice.custom.name


def _optional(body: ChatRequest, tools: Sequence[AnyTool], form: Structure) -> Structure:
    """Returns the form of an answer that may call tools, but need not: what of it is no call has the form asked for."""
    strict = tuple(_name(tool) for tool in tools if _is_strict(tool))
    is_parallel = body.parallel_tool_calls is not False
    if form is FREE and not strict and is_parallel:
        return FREE
    rules = ToolRules(strict=strict, parallel=is_parallel)
    return Structure("tools" if strict else form.param, msgspec.structs.replace(form.form, tool_rules=rules))


def _is_strict(tool: AnyTool) -> bool:
    """Whether a call of the tool keeps to its schema, as that of a custom tool does whose input has a pattern."""
    if isinstance(tool, OfferedTool):
        return bool(tool.function.strict)
    form = grammar_of(tool.custom)
    return form is not None and form.grammar.syntax == "regex"


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


def _tools(offered: Sequence[AnyTool], param: str) -> tuple[tuple[Tool, ...], dict[str, Grammar]]:
    """Returns tools as the model is offered them, and the grammars of custom ones by their names."""
    tools: dict[str, Tool] = {}
    grammars: dict[str, Grammar] = {}
    for index, tool in enumerate(offered):
        if isinstance(tool, OfferedTool):
            where = f"{param}[{index}].function" if param == "tools" else f"{param}[{index}]"
            made = _function(tool.function, f"{where}.parameters")
        else:
            plain, schema = function_of(tool.custom, f"{param}[{index}].custom")
            made = msgspec.structs.replace(plain, parameters=_schema(schema, f"{param}[{index}].custom.format"))
            if (form := grammar_of(tool.custom)) is not None:
                grammars[made.name] = form.grammar
        if made.name in tools:
            raise invalid(f"'{param}' has two functions of the same name.", param=param)
        tools[made.name] = made
    return tuple(tools.values()), grammars


def _function(function: OfferedFunction, where: str) -> Tool:
    parameters = _schema(function.parameters, where)
    return Tool(name=function.name, description=function.description, parameters=parameters)


def _forced(choice: Choice, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the tools of which one must be called: none where the model is free, None where it has no tools."""
    if choice is None or choice == "auto":
        return () if names else None
    if choice == "none":
        return None
    if not names:
        raise invalid("'tool_choice' needs 'tools' that the client runs.", param="tool_choice")
    if not isinstance(choice, ChosenTool | ChosenCustomTool):
        return names
    name = _chosen_name(choice)
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
            if schema not in (None, named.schema):
                text = "Set 'response_format.json_schema.schema' or 'response_format.schema', not both."
                raise invalid(text, param="response_format.schema")
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


def grammar_of(custom: OfferedCustom) -> GrammarFormat | None:
    """Returns the grammar of a custom tool's input; None where it is any text."""
    return custom.format if isinstance(custom.format, GrammarFormat) else None


def function_of(custom: OfferedCustom, where: str) -> tuple[Tool, dict[str, Any]]:
    """Returns a custom tool as the model is offered it, but for its parameters, and the schema of these.

    where: the parameter that has it. Raises `ApiError` (400) for a grammar that is too long.
    """
    text: dict[str, Any] = {"type": "string"}
    described = custom.description or ""
    if (form := grammar_of(custom)) is not None:
        grammar = form.grammar
        if len(grammar.definition.encode()) > MAX_STRUCTURE_BYTES:
            raise invalid(f"'{where}.format' has more than {MAX_STRUCTURE_BYTES} bytes.", param=f"{where}.format")
        if grammar.syntax == "regex":
            text["pattern"] = f"^(?:{grammar.definition})$"
        kind = "Lark grammar" if grammar.syntax == "lark" else "regular expression"
        described = f"{described}\nThe {INPUT} follows this {kind}:\n{grammar.definition}".strip()
    schema = {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}
    return Tool(name=custom.name, description=described or None), schema
