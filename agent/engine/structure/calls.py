"""PURE: the grammar of an answer that is text or calls of tools, as the model likes, where a call keeps to rules.

The grammar takes any text until a call begins: at the <tool_call> tag of models that write one, else where an answer
begins with a call's JSON object, or with a list of them. From there to the call's end it is the tool's schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from moe2.agent.engine.structure.toolcall import call_schema, parameters_of
from moe2.common.generation import ToolRules
from moe2.common.link.messages import Tool

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_JSON = "%json"
_SPACE = "WS: /[ \\t\\r\\n]{0,4}/\n"


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that an answer may call. arguments: the JSON schema of a call's arguments, as JSON text."""

    name: str
    arguments: str


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """The calls that an answer may make.

    parallel: it may make several. tagged: each stands between <tool_call> tags.
    """

    tools: tuple[OfferedTool, ...]
    parallel: bool
    tagged: bool


def calls_of(tools: Sequence[Tool], rules: ToolRules, *, tagged: bool) -> Calls:
    """Returns the calls that an answer under such rules may make. Raises `RequestError` for parameters that are no
    JSON."""
    offered = tuple(
        OfferedTool(
            name=tool.name,
            arguments=json.dumps(
                parameters_of(tool) if tool.name in rules.strict else _ANY_ARGUMENTS, ensure_ascii=False
            ),
        )
        for tool in tools
    )
    return Calls(tools=offered, parallel=rules.parallel, tagged=tagged)


def lark_of_calls(
    calls: Calls, arguments: Mapping[str, Any], answer: str | None, *, written: Callable[[Any], str]
) -> str:
    """Returns a Lark grammar of text or calls.

    arguments: the schema of each tool's arguments, by its name. answer: what the text follows, in Lark; None for any.
    written: writes a JSON schema in Lark.
    """
    call = written(call_schema(arguments))
    if answer is not None and (calls.tagged or answer.startswith(_JSON)):
        return _beside_form(calls, call, answer)
    if calls.tagged:
        return _after_tag(calls, call)
    return _by_beginning(calls, call, {name: written(schema) for name, schema in arguments.items()}, answer)


def _beside_form(calls: Calls, call: str, answer: str) -> str:
    """The answer has a form of its own, which a call takes the place of."""
    one = '"<tool_call>" WS call WS "</tool_call>"' if calls.tagged else "call"
    several = "one (WS one)*" if calls.parallel and calls.tagged else "one"
    return f"start: answer | {several}\none: {one}\ncall: {call}\nanswer: {answer}\n{_SPACE}"


def _after_tag(calls: Calls, call: str) -> str:
    start = "(text_and_tag call_and_end)* TEXT" if calls.parallel else "TEXT | text_and_tag call_and_end"
    return (
        f'start: {start}\ntext_and_tag[lazy]: TEXT "<tool_call>"\ncall_and_end: WS call WS "</tool_call>"\n'
        f"call: {call}\nTEXT: /(.|\\n)*/\n{_SPACE}"
    )


def _by_beginning(calls: Calls, call: str, arguments: Mapping[str, str], answer: str | None) -> str:
    """A call is the whole answer: its object, or a list of them, with the tool's name first."""
    rules = []
    begins = []
    for place, (name, schema) in enumerate(arguments.items()):
        opening = rf'\{{\s*"name"\s*:\s*"{_literal(name)}"\s*,\s*"(arguments|parameters)"\s*:'
        body = f"WS args_{place} WS"
        rules += [
            f"args_{place}: {schema}",
            f"one_{place}_head[lazy]: /\\s*{opening}/",
            f'one_{place}: one_{place}_head {body} "}}" WS',
        ]
        begins.append(f"one_{place}")
        if calls.parallel:
            rules += [
                f"list_{place}_head[lazy]: /\\s*\\[\\s*{opening}/",
                f'list_{place}: list_{place}_head {body} "}}" (WS "," WS call)* WS "]" WS',
            ]
            begins.append(f"list_{place}")
    names = "|".join(map(_literal, arguments))
    # What would be read as a call, and is written in another order or for another tool's name, is no text.
    calls_alike = rf'\s*(\[\s*)?\{{\s*("(arguments|parameters)"|"name"\s*:\s*"({names})")(.|\n)*'
    rules += [f"TEXT: /(.|\\n)*/ & ~/{calls_alike}/", f"call: {call}", f"answer: {answer or 'TEXT'}"]
    return f"start: answer | {' | '.join(begins)}\n" + "\n".join(rules) + f"\n{_SPACE}"


def _literal(name: str) -> str:
    """Returns a regular expression of a name as JSON writes it."""
    written = json.dumps(name)[1:-1]
    return "".join(letter if letter.isalnum() else rf"\x{{{ord(letter):x}}}" for letter in written)
