"""Finds the tool calls in a model's text as it streams in, and shows them in the shapes of clients. PURE.

Two forms are understood: `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them after some text (what
Hermes and Qwen models write), and an answer that as a whole is such an object or a list of them (with "parameters" in
the place of "arguments", too, as Llama models write it). What only looks like a call (no valid JSON, no tool of that
name) stays text: nothing is lost. A call whose name is known and whose arguments have begun is one, however it goes on:
its arguments are handed on as they come, as the model writes them.

Clients are shown calls of functions, of custom tools, and as `function_call`, which OpenAI had before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from moe2.common.jsonspan import JsonSpan
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.common.textstream import HeldPieces
from moe2.coordinator.http.body.tools import INPUT

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ARGUMENTS = ("arguments", "parameters")

_BEGUN = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""A call up to its arguments, which is all that has to be known before these may go out."""
_OUTER_END = re.compile(r"\s*\}?\s*")


@dataclass(frozen=True)
class CallBegun:
    """A call begins: its tool is known. Its arguments follow, then the whole call."""

    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of the call that has begun: the next characters of their JSON text."""

    text: str


Found: TypeAlias = tuple[TokenPiece, ...] | CallBegun | CallArguments | ToolCall
"""What is final of an answer: tokens of its text, with their log-probabilities, or of a call its beginning, its
arguments in parts, and at its end the whole."""


def told(call: ToolCall) -> tuple[CallBegun | CallArguments | ToolCall, ...]:
    """Returns a call that is known as a whole in the parts in which all calls are told."""
    return CallBegun(call.id, call.name), CallArguments(call.arguments), call


@dataclass
class _Open:
    """The call whose arguments are coming in. is_tagged: a closing tag is to follow."""

    id: str
    name: str
    is_tagged: bool
    span: JsonSpan = field(default_factory=JsonSpan)
    arguments: list[str] = field(default_factory=list)

    @property
    def call(self) -> ToolCall:
        return ToolCall(id=self.id, name=self.name, arguments="".join(self.arguments))


class CallReader:
    """Reads one answer piece by piece and separates its tool calls from its text.

    names: the tools that the answer may call. ids: the text with which the ids of the calls begin. most_calls: a call
    beyond so many is left out; None sets no limit.
    """

    def __init__(self, names: Collection[str], *, ids: str, most_calls: int | None = None) -> None:
        self._names = names
        self._most_calls = most_calls
        self._ids = ids
        self._held = HeldPieces()
        self._begun = False
        self._open: _Open | None = None
        self._is_closing = False
        """The arguments of the open call have ended, what is around them has not."""
        self._is_scored = False
        """Tokens have log-probabilities, which cut ones would lose."""
        self.n_calls = 0

    def feed(self, pieces: Iterable[TokenPiece]) -> list[Found]:
        """Takes in more of the answer; returns the text and the calls that have become final, in their order."""
        for piece in pieces:
            self._is_scored = self._is_scored or piece.logprob is not None
            self._held.add(piece)
        found: list[Found] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[Found]:
        """Ends the answer; returns what was still held back, as calls or as text."""
        found: list[Found] = []
        if self._open is not None:
            if not self._is_closing:
                # The answer was cut off in its midst.
                found.append(self._open.call)
            elif not (self._open.is_tagged and (self._behind().startswith(",") or _CLOSE.startswith(self._behind()))):
                self._held.drop(len(self._held.text) - len(self._behind()))
                self._say(found, len(self._held.text))
            return found
        held = self._held.text
        if not self._begun and (calls := self._calls(held)) is not None:
            return [part for call in calls for part in told(call)]
        opened = held.find(_OPEN)
        # The end of the answer may have been the end of the call.
        if opened >= 0 and (calls := self._calls(held[opened + len(_OPEN) :])) is not None:
            self._say_call(found, calls, opened, len(held))
        else:
            self._say(found, len(held))
        return found

    def _step(self, found: list[Found]) -> bool:
        """Takes what is final now. True where there may be more behind it."""
        if self._open is not None:
            return self._close(self._open) if self._is_closing else self._go_on(self._open, found)
        if not self._begun and self._begin(found, 0, 0, is_tagged=False):
            return True
        opened = self._held.text.find(_OPEN)
        start = opened + len(_OPEN)
        if opened >= 0 and self._begin(found, opened, start, is_tagged=True):
            return True
        if opened >= 0 and (closed := self._held.text.find(_CLOSE, opened)) >= 0:
            end = closed + len(_CLOSE)
            calls = self._calls(self._held.text[start:closed])
            if calls is None:
                self._say(found, end)
            else:
                self._say_call(found, calls, opened, end)
            self._begun = True
            return True
        safe = self._undecided_from()
        self._say(found, self._held.uncut(safe) if self._is_scored else safe)
        return False

    def _begin(self, found: list[Found], opened: int, start: int, *, is_tagged: bool) -> bool:
        """Begins a call whose tool is known and whose arguments come next; False where there is none (yet)."""
        match = _BEGUN.match(self._held.text, start)
        if match is None or (self._most_calls is not None and self.n_calls >= self._most_calls):
            return False
        try:
            name = msgspec.json.decode(match[1], type=str)
        except (msgspec.DecodeError, UnicodeError):
            return False
        if name not in self._names:
            return False
        self._take_text(found, opened, match.end())
        self._open = _Open(self._next_id(), name, is_tagged)
        self._begun = True
        found.append(CallBegun(self._open.id, name))
        return True

    def _go_on(self, call: _Open, found: list[Found]) -> bool:
        """Hands on more of the open call's arguments. True where these have ended."""
        text, count = call.span.feed(self._held.text)
        self._held.drop(count)
        if text:
            call.arguments.append(text)
            found.append(CallArguments(text))
        if call.span.is_over:
            self._is_closing = True
            found.append(call.call)
        return self._is_closing

    def _behind(self) -> str:
        """Returns what is held behind the end of the open call's own object."""
        return _OUTER_END.sub("", self._held.text, count=1)

    def _close(self, call: _Open) -> bool:
        """Drops what is around the open call's arguments. True where that has ended."""
        held, rest = self._held.text, self._behind()
        outer = len(held) - len(rest)
        if not rest or (call.is_tagged and _CLOSE.startswith(rest) and rest != _CLOSE):
            return False
        if call.is_tagged and rest.startswith(","):
            # The call has further fields, which say nothing.
            closed = held.find(_CLOSE)
            if closed < 0:
                return False
            outer = closed + len(_CLOSE)
        elif call.is_tagged and rest.startswith(_CLOSE):
            outer += len(_CLOSE)
        self._held.drop(outer)
        self._open, self._is_closing = None, False
        return True

    def _say(self, found: list[Found], count: int) -> None:
        """Moves the first characters that are held to `found`, except for mere white space after a call."""
        is_shown = bool(self._held.text[:count].strip()) or not self.n_calls
        pieces = tuple(self._held.take(count))
        if pieces and is_shown:
            found.append(pieces)

    def _take_text(self, found: list[Found], opened: int, end: int) -> None:
        """Takes the text up to `end`; what is before a call goes to `found`, without the white space at its end."""
        before = len(self._held.text[:opened].rstrip())
        if before:
            found.append(tuple(self._held.take(before)))
        self._held.drop(end - before)

    def _say_call(self, found: list[Found], calls: Sequence[ToolCall], opened: int, end: int) -> None:
        """Adds calls to `found`, behind the text before them."""
        self._take_text(found, opened, end)
        for call in calls:
            found += told(call)

    def _next_id(self) -> str:
        number, self.n_calls = self.n_calls, self.n_calls + 1
        return f"call_{self._ids}_{number}"

    def _undecided_from(self) -> int:
        """Returns the index in the held text from which on it may still become, or belong to, a call."""
        held = self._held.text
        if not self._begun:
            first = held.lstrip()[:1]
            if not first or first in "{[":
                return 0
            self._begun = True
        opened = held.find(_OPEN)
        if opened >= 0:
            return len(held[:opened].rstrip())
        for length in range(min(len(_OPEN) - 1, len(held)), 0, -1):
            if held.endswith(_OPEN[:length]):
                return len(held[:-length].rstrip())
        return len(held.rstrip())

    def _calls(self, text: str) -> list[ToolCall] | None:
        """Returns the calls that a JSON text stands for, but for those beyond the limit; None where it is no call."""
        try:
            content = msgspec.json.decode(text.strip())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        entries = content if isinstance(content, list) else [content]
        read = [self._call(entry) for entry in entries]
        calls = [call for call in read if call is not None]
        if len(calls) < len(read) or not calls:
            return None
        if self._most_calls is not None:
            calls = calls[: self._most_calls - self.n_calls]
        return [ToolCall(id=self._next_id(), name=name, arguments=arguments) for name, arguments in calls]

    def _call(self, entry: Any) -> tuple[str, str] | None:
        """Returns the name and the arguments (as JSON text) of one call; None if it calls no known tool."""
        if not isinstance(entry, dict):
            return None
        name = entry.get("name")
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments: Any = next((entry[key] for key in _ARGUMENTS if key in entry), {})
        if isinstance(arguments, str):
            # Some models write the arguments as JSON text, as OpenAI's own shape has them.
            try:
                arguments = msgspec.json.decode(arguments)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        return name, msgspec.json.encode(arguments).decode()


class InputReader:
    """Reads an answer that as a whole is the input of one custom tool.

    name: the tool. ids: the text with which the id of the call begins.
    """

    def __init__(self, name: str, *, ids: str) -> None:
        self._name = name
        self._ids = ids
        self._texts: list[str] = []
        self.n_calls = 1

    def feed(self, pieces: Iterable[TokenPiece]) -> list[Found]:
        """Takes in more of the answer; nothing of it is final before its end."""
        self._texts += [piece.text for piece in pieces]
        return []

    def finish(self) -> list[Found]:
        """Ends the answer; returns the call."""
        arguments = msgspec.json.encode({INPUT: "".join(self._texts)}).decode()
        return list(told(ToolCall(id=f"call_{self._ids}_0", name=self._name, arguments=arguments)))


def input_of(call: ToolCall) -> str:
    """Returns the text that a custom tool is called with; what a model wrote in another form is given as it stands."""
    try:
        arguments = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return call.arguments
    texts = [arguments.get(INPUT), *arguments.values()] if isinstance(arguments, dict) else [arguments]
    return next((text for text in texts if isinstance(text, str)), call.arguments)


def arguments_object(call: ToolCall) -> dict[str, Any]:
    """Returns a call's arguments as an object; those that are none, as the answer was cut off in them, as a text."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {"arguments": call.arguments}


class CallShapes:
    """Writes the calls of one answer as its client reads them.

    is_legacy: the request named `functions`, so that the answer has one `function_call`. custom: names of the custom
    tools, whose calls have an input that is text.
    """

    def __init__(self, *, is_legacy: bool = False, custom: frozenset[str] = frozenset()) -> None:
        self._is_legacy = is_legacy
        self._custom = custom
        self._n_calls = 0
        self._name = ""

    def reason(self, reason: str) -> str:
        """Returns a finish reason as the client knows it."""
        return "function_call" if self._is_legacy and reason == "tool_calls" else reason

    def message_fields(self, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """Returns the fields of a message that tell its calls, of which there is at least one."""
        if self._is_legacy:
            return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
        return {"tool_calls": [self._object(call) for call in calls]}

    def deltas(self, part: CallBegun | CallArguments | ToolCall) -> list[dict[str, Any]]:
        """Returns the deltas of a stream for a part of a call: first its name, then its arguments as they come.

        The input of a custom tool comes whole, as it is a text within these arguments.
        """
        match part:
            case CallBegun(id=call_id, name=name):
                self._name = name
                self._n_calls += 1
                return [self._delta(self._object(ToolCall(id=call_id, name=name, arguments="")))]
            case CallArguments(text=text):
                return [] if self._name in self._custom else [self._delta({"function": {"arguments": text}})]
            case ToolCall():
                return [self._delta({"custom": {"input": input_of(part)}})] if self._name in self._custom else []

    def _delta(self, call: dict[str, Any]) -> dict[str, Any]:
        if self._is_legacy:
            return {"function_call": call["function"]}
        return {"tool_calls": [{"index": self._n_calls - 1, **call}]}

    def _object(self, call: ToolCall) -> dict[str, Any]:
        if call.name in self._custom:
            text = input_of(call) if call.arguments else ""
            return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": text}}
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
