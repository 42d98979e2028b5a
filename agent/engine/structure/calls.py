"""PURE: the grammar of an answer that is text or calls of tools, as the model likes, where a call keeps to rules.

The grammar takes any text until a call begins: at the <tool_call> tag of models that write one, else where an answer
begins with a call's JSON object, or with a list of them. From there to the call's end it is the tool's schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from moe2.agent.engine.calls.forms import BARE, BY_NAME, HERMES, Caller, CallForm, Style
from moe2.agent.engine.structure.formcalls import FormGrammar, literal
from moe2.agent.engine.structure.toolcall import arguments_of, call_schema, parameters_of
from moe2.common.generation import ToolRules
from moe2.common.link.prompts import Tool

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
LLAMA = "llama"
"""Models that write a call as the whole answer, or behind a mark where they are not held to rules."""
_JSON = "%json"
_SPACE = "WS: /[ \\t\\r\\n]{0,4}/\n"


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that an answer may call. arguments: the JSON schema of a call's arguments, as JSON text."""

    name: str
    arguments: str


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """The calls that an answer may make.

    parallel: it may make several. forced: it makes one at least, and has no text. form: the name of the form in which
    the model writes them (`moe2.agent.engine.calls.forms`). controls: marks of the form that are control tokens.
    """

    tools: tuple[OfferedTool, ...]
    parallel: bool
    forced: bool = False
    form: str = BARE.name
    controls: dict[str, int] = {}
    selectors: dict[str, tuple[int, ...]] = {}
    """Of a form whose calls stand apart from the answer: tokens that nobody writes, after which the grammar is that of
    a tool's arguments, by its name; where nothing selects a tool, it is that of the answer."""

    @property
    def tagged(self) -> bool:
        """Each stands between <tool_call> tags, as JSON."""
        return self.form == HERMES.name and not self.controls


def forced_calls(tools: Sequence[Tool], names: Sequence[str], caller: Caller) -> Calls:
    """Returns the one call that an answer has to be, of one of the tools with these names. Raises `RequestError` for an
    unknown name or parameters that are no JSON."""
    arguments = arguments_of(tools, names)
    offered = (
        OfferedTool(name=name, arguments=json.dumps(schema, ensure_ascii=False)) for name, schema in arguments.items()
    )
    return Calls(
        tools=tuple(offered), parallel=False, forced=True, form=caller.form.name, controls=dict(caller.controls)
    )


def calls_of(tools: Sequence[Tool], rules: ToolRules, caller: Caller) -> Calls:
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
    return Calls(tools=offered, parallel=rules.parallel, form=caller.form.name, controls=dict(caller.controls))


def selected_calls(tools: Sequence[Tool], rules: ToolRules, caller: Caller) -> Calls:
    """Returns the arguments of strict tools, for an answer whose calls stand apart from it.

    Raises `RequestError` for parameters that are no JSON.
    """
    arguments = arguments_of(tools, rules.strict)
    zero, one = caller.controls.values()
    width = max(1, (len(arguments) - 1).bit_length())
    selectors = {
        name: tuple(one if place >> bit & 1 else zero for bit in range(width)) for place, name in enumerate(arguments)
    }
    offered = (OfferedTool(name=name, arguments=json.dumps(schema)) for name, schema in arguments.items())
    return Calls(tools=tuple(offered), parallel=False, form=caller.form.name, selectors=selectors)


def lark_of_calls(
    calls: Calls, arguments: Mapping[str, Any], answer: str | None, *, written: Callable[[Any], str]
) -> str:
    """Returns a Lark grammar of text or calls.

    arguments: the schema of each tool's arguments, by its name. answer: what the text follows, in Lark; None for any.
    written: writes a JSON schema in Lark.
    """
    form = BY_NAME[calls.form]
    if calls.selectors:
        ways = [
            " ".join(f"<[{token}]>" for token in calls.selectors[name]) + f" {written(schema)}"
            for name, schema in arguments.items()
        ]
        return f"start: answer | {' | '.join(ways)}\nanswer: {answer or 'TEXT'}\nTEXT: /(.|\\n)*/\n"
    if (form.begins and form.name != LLAMA and not calls.tagged) or form.style is Style.PYTHON:
        return _in_form(calls, form, arguments, answer, written)
    call = written(call_schema(arguments, arguments_key=form.arguments_key))
    if answer is not None and (calls.tagged or answer.startswith(_JSON)):
        return _beside_form(calls, call, answer)
    if calls.tagged:
        return _after_tag(calls, call)
    return _by_beginning(calls, call, {name: written(schema) for name, schema in arguments.items()}, answer)


def _in_form(
    calls: Calls, form: CallForm, arguments: Mapping[str, Any], answer: str | None, written: Callable[[Any], str]
) -> str:
    """Calls begin at the form's first mark, or are the whole answer where it has none."""
    grammar = FormGrammar(form, calls.controls, arguments, calls.parallel, written)
    rest, rules = grammar.lark()
    mark = grammar.mark()
    text = "TEXT: /(.|\\n)*/"
    if form.style is Style.RECIPIENTS:
        start = 'calls | "all\\n" answer' + ("" if answer else ' | "all\\n" said calls')
        rules.append(f"said[lazy]: TEXT {mark}")
        if calls.forced:
            start = "calls"
    elif calls.forced:
        start = f"{mark} calls"
    elif not mark:
        start = "answer | calls"
        names = "|".join(map(literal, arguments))
        text += rf" & ~/\s*\[\s*({names})\((.|\n)*/"
    elif answer is not None:
        start = f"answer | {mark} calls"
    else:
        start = "(before calls)* TEXT" if calls.parallel else "TEXT | before calls"
        is_token = mark.startswith("<[")
        rules.append(f"before{'' if is_token else '[lazy]'}: TEXT {mark}")
    return "\n".join([f"start: {start}", f"calls: {rest}", *rules, f"answer: {answer or 'TEXT'}", text, _SPACE])


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
    return literal(json.dumps(name)[1:-1])
