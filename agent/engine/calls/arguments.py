"""PURE: a call of a tool as it is being written: where it begins, and its arguments as JSON, piece by piece.

Whoever waits for a call's end keeps the client waiting for as long as a file takes that the call writes. A call is
told from text once its tool's name and the beginning of its arguments are there; from then on what comes is theirs.
What is decided never depends on how much more of the text is there already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from moe2.agent.engine.calls.forms import CallForm, Style
from moe2.agent.engine.calls.kinds import Kinds, kinds_of
from moe2.agent.engine.calls.reading import (
    MAX_PYTHON_CHARACTERS,
    key_end_of,
    marks_of_named,
    name_in,
    parameter_value,
    python_arguments,
)
from moe2.common.jsonspan import JsonSpan
from moe2.common.textstream import begun

MAX_HEAD_CHARACTERS = 1024
"""A call whose beginning is longer is read when it is whole."""
# Python before 3.11.5 goes wrong where what is repeated possessively has alternatives or looks ahead (gh-106052 there).
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_MEMBER = rf"{_STRING}\s*+:\s*+(?:{_STRING}|[-+.0-9eE]++|true|false|null)\s*+,\s*+"
_ARGUMENTS = r'"(?:arguments|parameters)"'
_OBJECT = re.compile(rf"[\s,;\[]*+\{{\s*+((?:(?!{_ARGUMENTS}){_MEMBER})*){_ARGUMENTS}\s*+:\s*+(?=\{{)", re.DOTALL)
_NAME = r"([A-Za-z0-9_.-]++)"
_PYTHON = re.compile(r"[\s,\[]*+([A-Za-z_][A-Za-z0-9_.-]*+)\(")
_PYTHON_SPECIAL = re.compile(r"""["'\\(){}\[\],]""")


class Arguments(Protocol):
    """Reads the arguments of one call."""

    is_over: bool
    """The arguments have ended; what follows is around them."""

    def feed(self, text: str) -> tuple[str, int]:
        """Takes in the text that is there; returns more of the arguments' JSON, and how many characters are done with.
        The others are to come again, with more behind them."""

    def finish(self) -> str:
        """Ends the answer; returns the end of the arguments' JSON where they are whole, so that they are over."""


@dataclass(frozen=True)
class Begun:
    """A call that has begun. end: where its arguments come in the text."""

    name: str
    end: int
    arguments: Arguments


def begun_at(form: CallForm, text: str, start: int, tools: Mapping[str, Any]) -> Begun | None:
    """Returns the call that begins at `start` of a text; None where there is none, or not enough of it.

    tools: the schema of each tool's arguments, by its name.
    """
    limit = start + MAX_HEAD_CHARACTERS
    match form.style:
        case Style.OBJECTS:
            found = _OBJECT.match(text, start, limit)
            name = name_in(found[1]) if found else None
        case Style.PYTHON:
            found = _PYTHON.match(text, start, limit)
            name = found[1] if found else None
        case _:
            found = _head(form).match(text, start, limit)
            name = found[1] if found else None
    if found is None or not isinstance(name, str) or name not in tools:
        return None
    return Begun(name, found.end(), _READERS.get(form.style, _json_of)(form, tools[name]))


@cache
def _head(form: CallForm) -> re.Pattern[str]:
    """What is before the arguments of a call that begins with its name."""
    if form.style is Style.PARAMETERS:
        before, tail = form.parameter[0].strip(), (form.tail or form.closing).strip()
        neck = re.escape(form.neck.strip()) or r"\n"
        follows = rf"(?={re.escape(before)}|{re.escape(tail)}|\{{)"
        return re.compile(rf"\s*+{re.escape(form.head.strip())}\s*+{_NAME}[^\S\n]*+(?:{neck}\s*+{follows}|{follows})")
    head, neck = marks_of_named(form)
    name, neck = rf"(?:{re.escape(head)})?\s*+(?:functions\.)?{_NAME}", re.escape(neck)
    return re.compile(rf"\s*+{name}(?:(?!{neck}).)*{neck}\s*+(?=\{{)", re.DOTALL)


class JsonArguments:
    """Arguments that are written as a JSON object. is_inside: they stand in an object with the call's name."""

    def __init__(self, *, is_inside: bool) -> None:
        self.is_over = False
        self._span = JsonSpan()
        self._rest = JsonSpan(depth=1) if is_inside else None
        """What else the outer object has, which says nothing."""

    def feed(self, text: str) -> tuple[str, int]:
        said, count = ("", 0) if self._span.is_over else self._span.feed(text)
        if self._span.is_over and self._rest is not None:
            count += self._rest.feed(text[count:])[1]
        self.is_over = self._span.is_over and (self._rest is None or self._rest.is_over)
        return said, count

    def finish(self) -> str:
        self.is_over = self._span.is_over
        return ""


class MarkedArguments:
    """Arguments that stand between marks, one after another: a text as it is, anything else as JSON.

    schema: of all arguments, which tells what is a text.
    """

    def __init__(self, form: CallForm, schema: Any) -> None:
        self.is_over = False
        self._schema = schema
        self._before, _, self._behind = (mark.strip() for mark in form.parameter)
        self._key_end = key_end_of(form)
        self._ends = tuple(mark for mark in (form.tail.strip(), form.closing.strip()) if mark)
        self._n_said = 0
        self._object: JsonSpan | None = None
        self._key: str | None = None
        """The argument whose value is coming."""
        self._kinds = Kinds()
        self._in_text = False

    def feed(self, text: str) -> tuple[str, int]:
        said: list[str] = []
        at = 0
        while not self.is_over:
            more, count, is_waiting = self._step(text[at:])
            said.append(more)
            at += count
            if is_waiting:
                break
        return "".join(said), at

    def finish(self) -> str:
        if self.is_over or self._key is not None or self._object is not None:
            return ""
        return self._close()

    def _step(self, text: str) -> tuple[str, int, bool]:
        """Returns more JSON, how many characters are done with, and whether nothing more can be said yet."""
        if self._object is not None:
            said, count = self._object.feed(text)
            self.is_over = self._object.is_over
            return said, count, True
        if self._key is None:
            return self._between(text)
        if not self._kinds.is_text:
            return self._value(text, self._key)
        return self._text(text)

    def _between(self, text: str) -> tuple[str, int, bool]:
        rest = text.lstrip()
        space = len(text) - len(rest)
        if rest.startswith(self._before):
            found = self._key_end.search(rest)
            if found is None and not any(mark in rest for mark in self._ends):
                return "", 0, True
            if found is not None and not any(mark in rest[: found.start()] for mark in self._ends):
                self._key = rest[len(self._before) : found.start()].strip()
                self._kinds = kinds_of(self._schema, self._key)
                return self._said_before(json.dumps(self._key, ensure_ascii=False) + ": "), space + found.end(), False
        elif not rest or any(mark.startswith(rest) for mark in (self._before, *self._ends) if mark != rest):
            return "", 0, True
        elif rest.startswith("{") and not self._n_said:
            # The schema is one that single arguments cannot say.
            self._object = JsonSpan()
            return "", space, False
        return self._close(), 0, True

    def _said_before(self, text: str) -> str:
        self._n_said += 1
        return (", " if self._n_said > 1 else "{") + text

    def _close(self) -> str:
        self.is_over = True
        return "}" if self._n_said else "{}"

    def _value(self, text: str, key: str) -> tuple[str, int, bool]:
        """A value that is JSON, or may be; it is read when it is whole."""
        written, mark, _ = text.partition(self._behind)
        if not mark:
            return "", 0, True
        self._key = None
        value = parameter_value(written, key, self._schema)
        return json.dumps(value, ensure_ascii=False), len(written) + len(mark), False

    def _text(self, text: str) -> tuple[str, int, bool]:
        """A value that is a text. A line's end right behind the mark before it, and one before that behind it, are the
        form's own."""
        said, skipped = "", 0
        if not self._in_text:
            if not text:
                return "", 0, True
            self._in_text = True
            said, skipped = '"', int(text.startswith("\n"))
        text = text[skipped:]
        at = text.find(self._behind)
        if at < 0:
            count = len(text) - begun(text, self._behind, "\n" + self._behind)
            return said + _quoted(text[:count]), skipped + count, True
        self._key, self._in_text = None, False
        return said + _quoted(text[:at].removesuffix("\n")) + '"', skipped + at + len(self._behind), False


class PythonArguments:
    """Arguments as Python's calls have them, by their names: each is said when it is whole."""

    def __init__(self) -> None:
        self.is_over = False
        self._n_said = 0
        self._depth = 0
        self._quote = ""
        self._looked_to = 0

    def feed(self, text: str) -> tuple[str, int]:
        said: list[str] = []
        at = 0
        while not self.is_over and (end := self._end(text, at)) is not None:
            try:
                more = python_arguments(text[at:end])
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                # What cannot be read was no call, or no more of it.
                self.is_over = True
                said.append("}" if self._n_said else "{}")
                break
            for name, value in more.items():
                said.append(
                    f"{', ' if self._n_said else '{'}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
                )
                self._n_said += 1
            if text[end] == ")":
                self.is_over = True
                said.append("}" if self._n_said else "{}")
            at = self._looked_to = end + 1
        self._looked_to -= at
        return "".join(said), at

    def finish(self) -> str:
        return ""

    def _end(self, text: str, start: int) -> int | None:
        """Returns where the argument ends that begins at `start`: at a comma or at the call's end; None for not yet."""
        while (found := _PYTHON_SPECIAL.search(text, self._looked_to)) is not None:
            at, letter = found.start(), found[0]
            if letter in "\"'" or letter == "\\":
                width = self._string_mark(text, at)
                if width is None:
                    return None
                self._looked_to = at + width
            elif not self._quote and letter in ",)" and not self._depth:
                return at
            else:
                if not self._quote and letter != ",":
                    self._depth += 1 if letter in "([{" else -1
                self._looked_to = at + 1
        self._looked_to = len(text)
        if len(text) - start > MAX_PYTHON_CHARACTERS:
            # Its parser takes memory in proportion, many times over: this is no argument.
            return len(text) - 1
        return None

    def _string_mark(self, text: str, at: int) -> int | None:
        """Takes in a quote or a backslash; returns how many characters that are, and None where more has to be seen."""
        if text[at] == "\\":
            return 2 if at + 1 < len(text) else None
        marks = text[at : at + 3]
        triple = text[at] * 3
        if not self._quote:
            if len(marks) < 3 and triple.startswith(marks):
                return None
            self._quote = triple if marks == triple else text[at]
            return len(self._quote)
        if marks.startswith(self._quote):
            width, self._quote = len(self._quote), ""
            return width
        return None if len(marks) < len(self._quote) and self._quote.startswith(marks) else 1


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_of(form: CallForm, _: Any) -> Arguments:
    return JsonArguments(is_inside=form.style is Style.OBJECTS)


_READERS: Mapping[Style, Callable[[CallForm, Any], Arguments]] = {
    Style.PARAMETERS: MarkedArguments,
    Style.PYTHON: lambda _form, _schema: PythonArguments(),
}
