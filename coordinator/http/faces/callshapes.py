"""The shapes in which clients are shown calls: of functions, of custom tools, and as `function_call`. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.tools import INPUT
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun


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
