"""Finds the tool calls in a model's text as it streams in. PURE.

Two forms are understood: `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them after some text (what
Hermes and Qwen models write), and an answer that as a whole is such an object or a list of them (with "parameters" in
the place of "arguments", too, as Llama models write it). What only looks like a call (no valid JSON, no tool of that
name) stays text: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

import msgspec

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.common.textstream import HeldPieces

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ARGUMENTS = ("arguments", "parameters")

Found: TypeAlias = tuple[TokenPiece, ...] | ToolCall
"""What is final of an answer: tokens of its text, with their log-probabilities, or a call."""


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
        self._is_scored = False
        """Tokens have log-probabilities, which cut ones would lose."""
        self.n_calls = 0

    def feed(self, pieces: Iterable[TokenPiece]) -> list[Found]:
        """Takes in more of the answer; returns the text and the calls that have become final, in their order."""
        for piece in pieces:
            self._is_scored = self._is_scored or piece.logprob is not None
            self._held.add(piece)
        found: list[Found] = []
        while (opened := self._held.text.find(_OPEN)) >= 0:
            closed = self._held.text.find(_CLOSE, opened)
            if closed < 0:
                break
            end = closed + len(_CLOSE)
            calls = self._calls(self._held.text[opened + len(_OPEN) : closed])
            if calls is None:
                self._say(found, end)
            else:
                self._say_call(found, calls, opened, end)
            self._begun = True
        safe = self._undecided_from()
        self._say(found, self._held.uncut(safe) if self._is_scored else safe)
        return found

    def finish(self) -> list[Found]:
        """Ends the answer; returns what was still held back, as calls or as text."""
        held = self._held.text
        found: list[Found] = []
        if not self._begun and (calls := self._calls(held)) is not None:
            return [*calls]
        opened = held.find(_OPEN)
        # The end of the answer may have been the end of the call.
        if opened >= 0 and (calls := self._calls(held[opened + len(_OPEN) :])) is not None:
            self._say_call(found, calls, opened, len(held))
        else:
            self._say(found, len(held))
        return found

    def _say(self, found: list[Found], count: int) -> None:
        """Moves the first characters that are held to `found`, except for mere white space after a call."""
        is_shown = bool(self._held.text[:count].strip()) or not self.n_calls
        pieces = tuple(self._held.take(count))
        if pieces and is_shown:
            found.append(pieces)

    def _say_call(self, found: list[Found], calls: list[ToolCall], opened: int, end: int) -> None:
        """Adds calls to `found`, behind the text before them without the white space that sets them off."""
        before = len(self._held.text[:opened].rstrip())
        if before:
            found.append(tuple(self._held.take(before)))
        self._held.drop(end - before)
        found += calls

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
        first, self.n_calls = self.n_calls, self.n_calls + len(calls)
        return [
            ToolCall(id=f"call_{self._ids}_{first + place}", name=name, arguments=arguments)
            for place, (name, arguments) in enumerate(calls)
        ]

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
