"""PURE: reads a text that is whole as calls, in the form in which its model writes them.

What only looks like a call (a body that cannot be read, a tool that nobody offered) is none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from moe2.agent.engine.calls.forms import CallForm, Style
from moe2.agent.engine.calls.kinds import kinds_of

Call: TypeAlias = tuple[str, dict[str, Any]]
"""A tool's name and the arguments."""
MAX_PYTHON_CHARACTERS = 65_536
"""Longer calls in Python are not read: its parser takes memory in proportion, many times over."""
_NAME = re.compile(r"(?:functions\.)?([A-Za-z0-9_.-]+)")
_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENTS_KEYS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()


def read_calls(form: CallForm, text: str, tools: Mapping[str, Any]) -> list[Call] | None:
    """Returns the calls that a text is, from its first mark on; None where it is no call of these tools.

    tools: the schema of each tool's arguments, by its name.
    """
    body = text.strip().removeprefix(form.opening.strip()).removesuffix(form.closing.strip() or "\0").strip()
    try:
        match form.style:
            case Style.OBJECTS:
                calls = _objects(body.removesuffix("<|/tool_call|>"))
            case Style.NAMED | Style.RECIPIENTS:
                calls = _named(form, body)
            case Style.PARAMETERS:
                calls = _with_parameters(form, body, tools)
            case Style.PYTHON:
                calls = _python(body)
            case Style.CHANNELS:
                return None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    known = all(name in tools and isinstance(arguments, dict) for name, arguments in calls)
    return calls if calls and known else None


def _objects(body: str) -> list[Call]:
    """JSON objects or lists of them, one after another, also with a semicolon between two as Llama writes it."""
    if body and body[0] not in "[{":
        return _python(f"[{body}]")
    entries: list[Any] = []
    while body:
        value, end = _DECODER.raw_decode(body)
        entries += value if isinstance(value, list) else [value]
        body = body[end:].lstrip(" \t\r\n;,")
    return [_entry(entry) for entry in entries]


def _entry(entry: Any) -> Call:
    if not isinstance(entry, dict):
        raise ValueError("no call")
    name = _named_by(entry)
    arguments: Any = next((entry[key] for key in _ARGUMENTS_KEYS if key in entry), {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str):
        raise ValueError("no name")
    return name, arguments


def _named_by(entry: Mapping[str, Any]) -> Any:
    return next((entry[key] for key in _NAME_KEYS if key in entry), None)


def name_in(members: str) -> Any:
    """Returns the tool's name among an object's members, each with a comma behind it; None where there is none."""
    try:
        return _named_by(json.loads("{" + members.rstrip().removesuffix(",") + "}"))
    except (ValueError, RecursionError):
        return None


def marks_of_named(form: CallForm) -> tuple[str, str]:
    """Returns what is before the name of a call, and between that and its arguments, in a form of the style `NAMED`."""
    return form.head.strip().removesuffix("functions."), form.neck.strip().removeprefix(":0") or "\n"


def _named(form: CallForm, body: str) -> list[Call]:
    (head, neck), tail = marks_of_named(form), form.tail.strip()
    calls = []
    while body:
        body = body.removeprefix(head).lstrip()
        written, found, body = body.partition(neck)
        name = _NAME.match(written.strip())
        if name is None or not found:
            raise ValueError("no name")
        arguments, end = _DECODER.raw_decode(body := body.lstrip())
        calls.append((name[1], arguments))
        body = body[end:].lstrip()
        if tail.startswith(body):
            break
        body = body.removeprefix(tail).lstrip()
    return calls


def key_end_of(form: CallForm) -> re.Pattern[str]:
    """Returns what is between an argument's name and its value, in a form of the style `PARAMETERS`."""
    return re.compile(r"\s*".join(map(re.escape, form.parameter[1].strip().split("\n"))))


def _with_parameters(form: CallForm, body: str, tools: Mapping[str, Any]) -> list[Call]:
    before, _, behind = (mark.strip() for mark in form.parameter)
    key_end = key_end_of(form)
    head, neck, tail = form.head.strip(), form.neck.strip(), form.tail.strip()
    calls: list[Call] = []
    while body:
        if not body.startswith(head):
            raise ValueError("no call")
        body = body[len(head) :]
        edges = [at for mark in (neck or "\n", before) if (at := body.find(mark)) >= 0]
        edge = min(edges, default=len(body))
        name = body[:edge].strip()
        body = body[edge:].removeprefix(neck).lstrip()
        schema = tools.get(name)
        arguments: dict[str, Any] = {}
        if body.startswith("{"):
            # The schema is one that single arguments cannot say.
            arguments, end = _DECODER.raw_decode(body)
            body = body[end:].lstrip()
        while body.startswith(before):
            found = key_end.search(body)
            if found is None:
                raise ValueError("no value")
            key, body = body[len(before) : found.start()].strip(), body[found.end() :]
            value, _, body = body.partition(behind)
            arguments[key] = parameter_value(value, key, schema)
            body = body.lstrip()
        calls.append((name, arguments))
        if tail and not body.startswith(tail) and body:
            raise ValueError("no end")
        body = body.removeprefix(tail).lstrip() if tail else ""
    return calls


def parameter_value(written: str, key: str, schema: Any) -> Any:
    """Returns the value of an argument that stands between marks. A text is as it is; anything else is JSON."""
    text = written.removeprefix("\n").removesuffix("\n")
    kinds = kinds_of(schema, key)
    if kinds.is_text:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if text.strip() in ("True", "False", "None"):
            return {"True": True, "False": False, "None": None}[text.strip()]
        return text
    return value if kinds.allow(value) else text


def _python(body: str) -> list[Call]:
    """Calls as Python has them, with arguments by their names. Literals may be JSON's."""
    if len(body) > MAX_PYTHON_CHARACTERS:
        raise ValueError("too long")
    tree = ast.parse(body.strip(), mode="eval").body
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            raise ValueError("no call")
        name = ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "call":
            # Llama's own tools: `NAME.call(query="...")`.
            name = ast.unparse(node.func.value)
        calls.append((name, _given(node)))
    return calls


def _given(call: ast.Call) -> dict[str, Any]:
    if call.args:
        # The schema is one that single arguments cannot say.
        [given] = map(_literal, call.args)
        if not isinstance(given, dict) or call.keywords:
            raise ValueError("no named arguments")
        return given
    if any(word.arg is None for word in call.keywords):
        raise ValueError("no named arguments")
    return {str(word.arg): _literal(word.value) for word in call.keywords}


def python_arguments(written: str) -> dict[str, Any]:
    """Returns arguments as Python has them in a call. Raises `ValueError` or `SyntaxError` for what is none."""
    [(_, given)] = _python(f"f({written})")
    return given


_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
    raise ValueError("no literal")


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise ValueError("no key")
    return node.value
