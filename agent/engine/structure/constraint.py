"""PURE: what form an answer must have, as the engine hands it to the process that compiles it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import msgspec

from moe2.agent.engine.calls.forms import HARMONY, HERMES, Caller
from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.structure.calls import LLAMA, Calls, calls_of, forced_calls, selected_calls
from moe2.agent.engine.structure.toolcall import schema_of_call
from moe2.common.errors import JobErrorCode
from moe2.common.generation import ToolRules
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatPrompt, Tool

MAX_SOURCE_BYTES = 262_144
"""The longest schema or grammar in UTF-8, the schemas of all forced tools together included."""

Syntax = Literal["text", "json_schema", "gbnf", "lark"]


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON schema (as JSON text), a GBNF grammar or a Lark grammar that the answer follows; "text" is any text.

    tagged: the answer is written between <tool_call> tags, each on a line of its own. calls: those that the answer may
    be instead, or make in its text.
    """

    syntax: Syntax
    source: str
    tagged: bool = False
    calls: Calls | None = None


class GrammarError(RequestError):
    """A grammar or schema that cannot be used."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, code=JobErrorCode.INVALID_GRAMMAR, remedy=remedy)


FREE = Constraint(syntax="text", source="")


def constraint_of(request: Submit, caller: Caller) -> Constraint | None:
    """The constraint that a request asks for, None where its answer is free. Raises `RequestError`.

    caller: how the model writes its calls.
    """
    if request.json_schema is not None:
        found = Constraint(syntax="json_schema", source=request.json_schema)
    elif request.forced_tools and isinstance(request.prompt, ChatPrompt):
        tools, names = request.prompt.tools, request.forced_tools
        if caller.is_read_as_it_stands or caller.form.name == LLAMA:
            schema = schema_of_call(tools, names, arguments_key=caller.form.arguments_key)
            source = json.dumps(schema, ensure_ascii=False)
            found = Constraint(syntax="json_schema", source=source, tagged=caller.form is HERMES)
        else:
            found = Constraint(syntax="text", source="", calls=forced_calls(tools, names, caller))
    elif request.grammar is not None:
        found = Constraint(syntax=request.grammar_syntax, source=request.grammar)
    else:
        found = FREE
    if request.tool_rules is not None and isinstance(request.prompt, ChatPrompt) and not request.forced_tools:
        calls = _optional_calls(request.prompt.tools, request.tool_rules, caller)
        if calls is not None:
            found = msgspec.structs.replace(found, calls=calls)
    if found == FREE:
        return None
    check_constraint(found)
    return found


def _optional_calls(tools: Sequence[Tool], rules: ToolRules, caller: Caller) -> Calls | None:
    """The calls that an answer may make; None where no grammar is followed in them."""
    if not tools:
        return None
    if caller.form is not HARMONY:
        return calls_of(tools, rules, caller)
    is_selectable = rules.strict and len(caller.controls) == len(HARMONY.controls)
    return selected_calls(tools, rules, caller) if is_selectable else None


def check_constraint(constraint: Constraint) -> None:
    """Raises `GrammarError` for texts that no parser should see."""
    if constraint.syntax != "text":
        check_source(constraint.source)
    schemas = [tool.arguments for tool in constraint.calls.tools] if constraint.calls else []
    for schema in schemas:
        check_source(schema)
    if sum(map(len, schemas)) > MAX_SOURCE_BYTES:
        raise GrammarError(
            f"The tools' parameters have more than {MAX_SOURCE_BYTES} bytes together.", remedy="Make them smaller."
        )


def check_source(source: str) -> None:
    """Raises `GrammarError` for a text that no parser should see."""
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        raise GrammarError(
            f"The grammar or schema has half a surrogate pair at character {error.start}.", remedy="Send valid Unicode."
        ) from error
    if size > MAX_SOURCE_BYTES:
        raise GrammarError(
            f"The grammar or schema has {size} bytes, more than {MAX_SOURCE_BYTES}.", remedy="Make it smaller."
        )
    if not source.strip():
        raise GrammarError("The grammar is empty.", remedy="Leave it out, or give it a rule to start from.")
    if "\0" in source:
        raise GrammarError("The grammar contains a NUL character.", remedy="Remove it.")
