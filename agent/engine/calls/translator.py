"""PURE: finds the calls in a model's text, whatever form it writes them in, and writes them as Hermes models do.

Arguments go on as they come (`moe2.agent.engine.calls.arguments`). What only looks like a call (a body that cannot be
read, a tool that nobody offered) stays the text that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from moe2.agent.engine.calls.arguments import Arguments, begun_at
from moe2.agent.engine.calls.forms import CallForm, Style
from moe2.agent.engine.calls.reading import Call, read_calls
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import Tool
from moe2.common.textstream import HeldPieces, begun

_SPACE = " \t\r\n"
_GRANITE_END = "<|/tool_call|>"


class _Said:
    """The pieces that are final. They are joined where there would be more of them than tokens, which a coordinator
    counts; a part of a call is joined to what has no log-probability.

    room: how many there may be.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self.pieces: list[TokenPiece] = []

    def add(self, pieces: Iterable[TokenPiece]) -> None:
        """Adds text."""
        for piece in pieces:
            if self.pieces and len(self.pieces) >= self._room:
                self._join(piece.text)
            else:
                self.pieces.append(piece)

    def call(self, text: str) -> None:
        """Adds a part of a call."""
        if self.pieces and (self.pieces[-1].logprob is None or len(self.pieces) >= self._room):
            self._join(text)
        elif text:
            self.pieces.append(TokenPiece(text))

    def _join(self, text: str) -> None:
        if text:
            self.pieces[-1] = TokenPiece(self.pieces[-1].text + text)


class CallTranslator:
    """Reads one answer piece by piece; what it returns has each call between <tool_call> tags, as JSON.

    form: the form in which the model writes calls. tools: those that the answer may call.
    """

    def __init__(self, form: CallForm, tools: Sequence[Tool]) -> None:
        self._form = form
        self._tools = {tool.name: _schema(tool) for tool in tools}
        self._held = HeldPieces()
        self._is_whole = not form.begins or form.style is Style.RECIPIENTS
        """A call is told from text where the answer begins, and nowhere else."""
        self._is_text = False
        self._room = 0
        """How many more tokens than pieces there have been."""
        self._open: Arguments | None = None
        """Those of the call that is being written."""
        self._is_among_calls = False
        """A call has ended, and the mark behind all calls is still to come, or another call."""
        self._is_listed_whole = False
        """The list of calls has ended."""

    def feed(self, piece: TokenPiece) -> list[TokenPiece]:
        """Takes in a piece; returns those that are final now."""
        self._held.add(piece)
        said = _Said(self._room + 1)
        while self._step(said):
            pass
        self._room += 1 - len(said.pieces)
        return said.pieces

    def finish(self) -> list[TokenPiece]:
        """Ends the answer; returns what was held back, as calls or as text. A call that is cut off stays open."""
        said = _Said(self._room)
        if self._open is not None:
            said.call(self._open.finish())
            if self._open.is_over:
                self._end_call(said)
            return said.pieces
        text = self._held.text
        at = 0 if self._is_whole or self._is_among_calls else text.find(self._form.begins)
        if self._is_among_calls and any(mark.startswith(text.strip()) for mark in self._ends):
            return []
        if self._form.style is Style.RECIPIENTS and text == ">>>":
            return []
        if at < 0 or self._is_text:
            said.add(self._held.take(len(text)))
        else:
            self._say_whole(said, at, len(text))
        return said.pieces

    @property
    def _ends(self) -> tuple[str, ...]:
        """The marks that may stand behind a call."""
        form = self._form
        return tuple(mark for mark in (form.closing.strip(), form.tail.strip(), _GRANITE_END) if mark)

    def _step(self, said: _Said) -> bool:
        """Takes what is final now. True where there may be more behind it."""
        if self._open is not None:
            return self._go_on(self._open, said)
        if self._is_among_calls:
            return self._among_calls(said)
        if self._form.style is Style.RECIPIENTS:
            return self._recipient(said)
        if self._is_whole:
            return self._whole(said)
        return self._marked(said)

    def _go_on(self, call: Arguments, said: _Said) -> bool:
        text, count = call.feed(self._held.text)
        self._held.drop(count)
        said.call(text)
        if call.is_over:
            self._end_call(said)
        return call.is_over

    def _end_call(self, said: _Said) -> None:
        said.call("}\n</tool_call>")
        self._open = None
        self._is_among_calls = self._form.style is not Style.RECIPIENTS

    def _call_or_text(self, said: _Said, at: int, start: int) -> bool:
        """Takes the call that may begin at `start`, behind the mark at `at`: as it comes, else when it is whole."""
        text, ends = self._held.text, self._form.ends
        end = text.find(ends, start) if ends else -1
        call = begun_at(self._form, text, start, self._tools)
        if call is not None and (end < 0 or call.end <= end):
            said.add(self._held.take(at))
            self._held.drop(call.end - at)
            name = msgspec.json.encode(call.name).decode()
            said.call(f'<tool_call>\n{{"name": {name}, "arguments": ')
            self._open, self._is_among_calls, self._is_listed_whole = call.arguments, False, False
            return True
        if end < 0:
            said.add(self._held.take(self._held.uncut(at)))
            return False
        self._say_whole(said, at, end + len(ends))
        self._is_among_calls = False
        return True

    def _say_whole(self, said: _Said, at: int, end: int) -> None:
        """Takes the text up to `end`, of which what begins at `at` may be calls."""
        calls = read_calls(self._form, self._held.text[at:end], self._tools)
        if calls is None:
            said.add(self._held.take(end))
            return
        said.add(self._held.take(at))
        self._held.drop(end - at)
        said.call(canonical(calls))

    def _marked(self, said: _Said) -> bool:
        text, mark = self._held.text, self._form.begins
        at = text.find(mark)
        if at >= 0:
            return self._call_or_text(said, at, at + len(mark))
        said.add(self._held.take(self._held.uncut(len(text) - begun(text, mark))))
        return False

    def _whole(self, said: _Said) -> bool:
        """Holds an answer that may be a call as a whole until that is known."""
        text = self._held.text
        if not self._is_text and (not text.strip() or text.lstrip().startswith("[")):
            return self._call_or_text(said, 0, 0)
        self._is_text = True
        said.add(self._held.take(len(text)))
        return False

    def _among_calls(self, said: _Said) -> bool:
        """Drops what stands between calls, or behind the last one."""
        form = self._form
        is_listed = form.style in (Style.OBJECTS, Style.PYTHON)
        rest = self._held.text.lstrip(_SPACE + ",;" if is_listed else _SPACE)
        self._held.drop(len(self._held.text) - len(rest))
        marks = ("]", *self._ends) if is_listed else self._ends
        if (mark := next((mark for mark in marks if rest.startswith(mark)), None)) is not None:
            self._held.drop(len(mark))
            self._is_among_calls = mark != form.ends
            self._is_listed_whole = mark == "]"
            return True
        head = "" if is_listed else form.head.strip().removesuffix("functions.")
        if any(mark.startswith(rest) for mark in (*marks, head, form.begins)):
            return False
        if is_listed and not self._is_listed_whole and (rest[0] == "{" or form.style is Style.PYTHON):
            return self._call_or_text(said, 0, 0)
        if head and rest.startswith(head):
            return self._call_or_text(said, 0, 0)
        return self._behind_calls(said, rest)

    def _behind_calls(self, said: _Said, rest: str) -> bool:
        """Takes what is no call: text, or where the mark behind all calls is to come, what goes before that."""
        closing = self._form.closing.strip()
        if closing and not rest.startswith(self._form.begins):
            at = rest.find(closing)
            if at < 0:
                return False
            said.add(self._held.take(at))
            self._held.drop(len(closing))
        self._is_among_calls, self._is_text = False, self._is_whole
        return True

    def _recipient(self, said: _Said) -> bool:
        text = self._held.text
        if not self._is_text:
            if text.removeprefix(">>>").startswith("all\n"):
                self._held.drop(text.index("all\n") + len("all\n"))
                self._is_text = True
                return True
            at = text.find(">>>", 1)
            call = begun_at(self._form, text, 0, self._tools)
            if call is not None and (at < 0 or call.end <= at):
                return self._call_or_text(said, 0, 0)
            if at < 0:
                return False
            self._say_whole(said, 0, at)
        elif (at := text.find(">>>")) >= 0:
            said.add(self._held.take(at))
        else:
            said.add(self._held.take(self._held.uncut(len(text) - begun(text, ">>>"))))
            return False
        self._is_text = False
        return True


def canonical(calls: Iterable[Call]) -> str:
    """Returns calls as Hermes models write them."""
    return "\n".join(
        "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"
        for name, arguments in calls
    )


def _schema(tool: Tool) -> Any:
    try:
        return json.loads(tool.parameters)
    except (ValueError, RecursionError):
        return {}
