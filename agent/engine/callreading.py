"""PURE: finds the calls in a model's text, whatever form it writes them in, and writes them as Hermes models do.

What only looks like a call (a body that cannot be read, a tool that nobody offered) stays the text that it is.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from moe2.agent.engine.callform import CallForm, Style
from moe2.agent.engine.structure.kinds import kinds_of
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import Tool
from moe2.common.textstream import HeldPieces, begun

Call: TypeAlias = tuple[str, dict[str, Any]]
"""A tool's name and the arguments."""
MAX_PYTHON_CHARACTERS = 65_536
"""Longer calls in Python are not read: its parser takes memory in proportion, many times over."""
_NAME = re.compile(r"(?:functions\.)?([A-Za-z0-9_.-]+)")
_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENTS_KEYS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()


class CallTranslator:
    """Reads one answer piece by piece; what it returns has each call between <tool_call> tags, as JSON.

    form: the form in which the model writes calls. tools: those that the answer may call.
    """

    def __init__(self, form: CallForm, tools: Sequence[Tool]) -> None:
        self._form = form
        self._tools = {tool.name: _schema(tool) for tool in tools}
        self._held = HeldPieces()
        self._begins_whole = not form.begins or form.style is Style.RECIPIENTS
        """A call is told from text where the answer begins, and nowhere else."""
        self._is_text = False

    def feed(self, piece: TokenPiece) -> list[TokenPiece]:
        """Takes in a piece; returns those that are final now."""
        self._held.add(piece)
        found: list[TokenPiece] = []
        if self._form.style is Style.RECIPIENTS:
            self._read_recipients(found)
        elif self._begins_whole:
            self._read_whole(found)
        else:
            while self._read_marked(found):
                pass
        return found

    def finish(self) -> list[TokenPiece]:
        """Ends the answer; returns what was held back, as calls or as text."""
        text, form = self._held.text, self._form
        if form.style is Style.RECIPIENTS:
            found: list[TokenPiece] = []
            self._end_recipient(found, len(text), 0)
            return found
        at = 0 if self._begins_whole else text.find(form.begins)
        if at < 0 or self._is_text:
            return list(self._held.take(len(text)))
        return self._said(at, len(text))

    def _read_whole(self, found: list[TokenPiece]) -> None:
        """Holds an answer that may be a call as a whole until its end."""
        text = self._held.text.lstrip()
        if not self._is_text and text and not text.startswith("["):
            self._is_text = True
        if self._is_text:
            found += self._held.take(len(self._held.text))

    def _read_marked(self, found: list[TokenPiece]) -> bool:
        """Takes what is final. True where there may be more behind it."""
        text, form = self._held.text, self._form
        at = text.find(form.begins)
        if at < 0:
            found += self._held.take(self._held.uncut(len(text) - begun(text, form.begins)))
            return False
        end = text.find(form.ends, at + len(form.begins)) if form.ends else -1
        if end < 0:
            found += self._held.take(self._held.uncut(at))
            return False
        found += self._said(at, end + len(form.ends))
        return True

    def _said(self, at: int, end: int) -> list[TokenPiece]:
        """Takes the text up to `end`, of which what begins at `at` may be calls."""
        calls = read_calls(self._form, self._held.text[at:end], self._tools)
        if calls is None:
            return list(self._held.take(end))
        before = list(self._held.take(at))
        self._held.drop(end - at)
        return [*before, TokenPiece(canonical(calls))]

    def _read_recipients(self, found: list[TokenPiece]) -> None:
        while True:
            text = self._held.text
            if not self._is_text and text.removeprefix(">>>").startswith("all\n"):
                self._held.drop(text.index("all\n") + len("all\n"))
                self._is_text = True
                continue
            at = text.find(">>>", 0 if self._is_text else 1)
            if at >= 0:
                self._end_recipient(found, at, len(">>>"))
                continue
            if self._is_text:
                found += self._held.take(self._held.uncut(len(text) - begun(text, ">>>")))
            return

    def _end_recipient(self, found: list[TokenPiece], end: int, mark: int) -> None:
        """Takes the message that ends at `end`, and drops the mark behind it."""
        message = self._held.text[:end]
        calls = None if self._is_text else read_calls(self._form, message, self._tools)
        if calls is None:
            found += self._held.take(end)
        else:
            self._held.drop(end)
            found.append(TokenPiece(canonical(calls)))
        self._held.drop(mark)
        self._is_text = False


def canonical(calls: Iterable[Call]) -> str:
    """Returns calls as Hermes models write them."""
    return "\n".join(
        "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"
        for name, arguments in calls
    )


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
    name = next((entry[key] for key in _NAME_KEYS if key in entry), None)
    arguments: Any = next((entry[key] for key in _ARGUMENTS_KEYS if key in entry), {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str):
        raise ValueError("no name")
    return name, arguments


def _named(form: CallForm, body: str) -> list[Call]:
    head, neck, tail = form.head.strip(), form.neck.strip().removeprefix(":0"), form.tail.strip()
    calls = []
    while body:
        body = body.removeprefix(head.removesuffix("functions.")).lstrip()
        if neck:
            written, found, body = body.partition(neck)
        else:
            written, found, body = body.partition("\n")
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


def _with_parameters(form: CallForm, body: str, tools: Mapping[str, Any]) -> list[Call]:
    before, between, behind = (mark.strip() for mark in form.parameter)
    key_end = re.compile(r"\s*".join(map(re.escape, between.split("\n"))))
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
            arguments[key] = _value(value, key, schema)
            body = body.lstrip()
        calls.append((name, arguments))
        if tail and not body.startswith(tail) and body:
            raise ValueError("no end")
        body = body.removeprefix(tail).lstrip() if tail else ""
    return calls


def _value(written: str, key: str, schema: Any) -> Any:
    """Returns an argument's value. A text stands as it is; anything else is JSON."""
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
        if not isinstance(node, ast.Call) or any(word.arg is None for word in node.keywords):
            raise ValueError("no call with named arguments")
        name = ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "call":
            # Llama's own tools: `NAME.call(query="...")`.
            name = ast.unparse(node.func.value)
        if node.args:
            # The schema is one that single arguments cannot say.
            [given] = map(_literal, node.args)
        else:
            given = {str(word.arg): _literal(word.value) for word in node.keywords}
        calls.append((name, given))
    return calls


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


def _schema(tool: Tool) -> Any:
    try:
        return json.loads(tool.parameters)
    except (ValueError, RecursionError):
        return {}
