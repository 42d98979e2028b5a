"""PURE: a model's reasoning apart from its answer, by the marks that its chat template has around it.

Reasoning stands before the answer, between an opening mark and a closing one, such as <think> and </think>. Some
templates write the opening mark themselves, at the end of the prompt. gpt-oss writes every message into a channel with
a header of its own: what is in the channel "final" is the answer, a call has a recipient, and the rest is reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from moe2.common.jsonspan import JsonSpan
from moe2.common.link.messages import TokenPiece
from moe2.common.textstream import HeldPieces, begun

PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>thought", "<unused95>"),
)
"""Marks of models in the field, the most usual first."""
_SIMILAR = re.compile(r"</((?:[\w-]+:)?(?:think|thinking|thought|thoughts|reasoning|reason))>")
"""Closing marks that are written as the usual ones are."""
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_HARMONY_MARKS = (*_HARMONY, "<|constrain|>", "<|call|>", "<|return|>")
_FINAL = "<|start|>assistant<|channel|>final<|message|>"
_RECIPIENT = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


@dataclass(frozen=True)
class Marks:
    """The marks around a model's reasoning.

    tokens: the texts that are to be read even where they are control tokens. closing_text: what ends the reasoning
    when it has to end. is_harmony: the model writes gpt-oss's channels.
    """

    opening: str
    closing: str
    tokens: tuple[str, ...]
    closing_text: str
    is_harmony: bool = False

    @property
    def answer_text(self) -> str:
        """What is written where an answer is to begin without any reasoning, and none has begun."""
        return "<|channel|>final<|message|>" if self.is_harmony else ""

    def reader(self, begun: str = "") -> Channels:
        """Returns a reader for an answer. begun: its beginning, as the prompt has it already."""
        reader: Channels = _Harmony() if self.is_harmony else _Between(self)
        if begun:
            reader.feed(TokenPiece(begun))
            reader.began()
        return reader


@dataclass(frozen=True)
class Thinker:
    """The marks of one model's reasoning in its own tokens.

    spelled: the bytes of control tokens that are marks. opening, closing: what is written where reasoning is begun, or
    has to end.
    """

    marks: Marks
    spelled: Mapping[int, bytes]
    opening: tuple[int, ...]
    closing: tuple[int, ...]

    @classmethod
    def of(cls, marks: Marks, tokens_of: Callable[[str], list[int]]) -> Thinker:
        """Returns the thinker of a model. tokens_of: a text's tokens, control tokens among them."""
        alone = {text: tokens_of(text) for text in marks.tokens}
        return cls(
            marks,
            spelled={tokens[0]: text.encode() for text, tokens in alone.items() if len(tokens) == 1},
            opening=tuple(tokens_of(marks.opening)),
            closing=tuple(tokens_of(marks.closing_text)),
        )


HARMONY = Marks("<|channel|>analysis<|message|>", "<|end|>", _HARMONY_MARKS, "<|end|>" + _FINAL, is_harmony=True)


def marks_of(source: str, is_token: Callable[[str], bool]) -> Marks | None:
    """Returns the marks of a model's reasoning; None where it has none.

    source: the chat template. is_token: whether a text is a token of its own. A template that shows only the end of the
    reasoning counts, as many cut it out of earlier answers; so does a vocabulary that has both marks.
    """
    if all(mark in source for mark in _HARMONY[1:3]):
        return HARMONY
    similar = [(f"<{name}>", f"</{name}>") for name in _SIMILAR.findall(source)]
    for opening, closing in (*PAIRS, *similar):
        if closing in source:
            return _between(opening, closing)
    for opening, closing in PAIRS:
        if is_token(opening) and is_token(closing):
            return _between(opening, closing)
    return None


def _between(opening: str, closing: str) -> Marks:
    return Marks(opening, closing, (opening, closing), f"\n{closing}\n\n")


class Channels(Protocol):
    """Reads one answer, piece by piece, and says which part of it is reasoning."""

    is_reasoning: bool
    """The next token belongs to the reasoning."""
    is_answering: bool
    """The next token belongs to the answer, whatever it is; else reasoning or a mark may still come."""
    recipient: str | None
    """The tool of which the next token belongs to the arguments, where calls stand apart from the answer."""

    @property
    def may_end(self) -> bool:
        """The answer may end here: it is being written, or a call is."""

    def feed(self, piece: TokenPiece) -> list[TokenPiece]:
        """Takes in a piece; returns those that are final now, without marks, each with its channel."""

    def began(self) -> None:
        """What was fed until now stood in the prompt: the answer goes on from there."""

    def answer(self) -> None:
        """Has the answer begin here, whatever comes next."""

    def finish(self) -> list[TokenPiece]:
        """Ends the answer; returns what was held back."""


class _Between:
    """The reader for models whose reasoning stands before the answer, between two marks."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._held = HeldPieces()
        self._skips_space = False
        self.is_reasoning = False
        self.is_answering = False
        self.recipient: str | None = None

    @property
    def may_end(self) -> bool:
        return self.is_answering

    def feed(self, piece: TokenPiece) -> list[TokenPiece]:
        if self.is_answering:
            return [*self._held.take(len(self._held.text)), piece]
        self._held.add(piece)
        found: list[TokenPiece] = []
        while not self.is_answering and (self._end_reasoning(found) if self.is_reasoning else self._begin(found)):
            pass
        return found

    def began(self) -> None:
        # A prompt that has closed the reasoning, or begun the answer, leaves none to come.
        self._held = HeldPieces()
        self.is_answering = not self.is_reasoning
        self._skips_space = self.is_reasoning

    def answer(self) -> None:
        if self._skips_space:
            self._held.drop(len(self._held.text) - len(self._held.text.lstrip()))
        self.is_reasoning, self.is_answering = False, True

    def finish(self) -> list[TokenPiece]:
        held = len(self._held.text) if not self._skips_space or self._held.text.strip() else 0
        return list(self._held.take(held, is_reasoning=self.is_reasoning))

    def _begin(self, found: list[TokenPiece]) -> bool:
        """Looks whether reasoning begins here, or the answer. True where there is more to look at."""
        text = self._held.text
        words = text.lstrip()
        space = len(text) - len(words)
        if words.startswith(self._marks.opening):
            self._held.drop(space + len(self._marks.opening))
            self.is_reasoning = self._skips_space = True
            return True
        if self._marks.opening.startswith(words):
            return False
        if self._skips_space:
            self._held.drop(space)
        found += self._held.take(len(self._held.text), is_reasoning=False)
        self.is_answering = True
        return False

    def _end_reasoning(self, found: list[TokenPiece]) -> bool:
        """Takes what is reasoning for certain. True where it has ended."""
        if self._skips_space:
            self._held.drop(len(self._held.text) - len(self._held.text.lstrip()))
            self._skips_space = not self._held.text
        text = self._held.text
        at = text.find(self._marks.closing)
        if at < 0:
            # White space at the end may be that before the mark.
            open_from = len(text) - begun(text, self._marks.closing)
            found += self._held.take(self._held.uncut(len(text[:open_from].rstrip())), is_reasoning=True)
            return False
        found += self._held.take(len(text[:at].rstrip()), is_reasoning=True)
        self._held.drop(len(self._held.text) - len(text[at + len(self._marks.closing) :]))
        self.is_reasoning, self._skips_space = False, True
        return True


class _Harmony:
    """The reader for gpt-oss's channels. A call becomes what other models write, between <tool_call> tags."""

    def __init__(self) -> None:
        self._held = HeldPieces()
        self._in_header = True
        self._arguments = JsonSpan()
        """Those of the call that is being written, to tell whether they are whole."""
        self.recipient: str | None = None
        self.is_reasoning = False
        self.is_answering = False

    @property
    def may_end(self) -> bool:
        return self.is_answering or self.recipient is not None

    def feed(self, piece: TokenPiece) -> list[TokenPiece]:
        self._held.add(piece)
        found: list[TokenPiece] = []
        while self._read_header(found) if self._in_header else self._read_body(found):
            pass
        return found

    def began(self) -> None:
        # The prompt ends inside a header, or a body.
        if not self._in_header:
            self._held = HeldPieces()

    def answer(self) -> None:
        """Does nothing: an answer has a channel of its own."""

    def finish(self) -> list[TokenPiece]:
        if self._in_header:
            return []
        rest = self._take(len(self._held.text))
        # A call that is cut off stays open: its half is none.
        return [*rest, *self._end_call()] if self._arguments.is_over else rest

    def _read_header(self, found: list[TokenPiece]) -> bool:
        header, mark, _ = self._held.text.partition("<|message|>")
        if not mark:
            return False
        self._held.drop(len(header) + len(mark))
        self._in_header = False
        channel = header.rpartition("<|channel|>")[2].split("<|", 1)[0].strip()
        recipient = _RECIPIENT.search(header)
        if recipient is not None:
            self.recipient, self._arguments = recipient[1], JsonSpan()
            name = msgspec.json.encode(recipient[1]).decode()
            found.append(TokenPiece(f'<tool_call>\n{{"name": {name}, "arguments": '))
        self.is_reasoning = recipient is None and channel.startswith("analysis")
        self.is_answering = recipient is None and not self.is_reasoning
        return True

    def _read_body(self, found: list[TokenPiece]) -> bool:
        text = self._held.text
        ends = [(at, mark) for mark in ("<|end|>", "<|call|>", "<|return|>") if (at := text.find(mark)) >= 0]
        if not ends:
            open_from = len(text) - begun(text, "<|end|>", "<|call|>", "<|return|>")
            found += self._take(open_from)
            return False
        at, mark = min(ends)
        found += self._take(at)
        self._held.drop(len(mark))
        found += self._end_call()
        self._in_header, self.is_reasoning, self.is_answering = True, False, False
        return True

    def _take(self, count: int) -> list[TokenPiece]:
        """Takes the next characters of a message's body."""
        if self.recipient is not None:
            self._arguments.feed(self._held.text[:count])
        return list(self._held.take(count, is_reasoning=self.is_reasoning))

    def _end_call(self) -> list[TokenPiece]:
        was_call, self.recipient = self.recipient is not None, None
        return [TokenPiece("}\n</tool_call>")] if was_call else []
