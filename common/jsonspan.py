"""PURE: follows one JSON object in a text that comes in pieces, to its end, without waiting for that."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r'["\\{}\[\]<\x00-\x1f]')
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class JsonSpan:
    """Tells where a JSON object ends that begins with the first character it is fed, which is `{`.

    It counts brackets outside of strings and checks little else: a `<` there, which begins a mark, ends it, too. A
    line's end or another control character within a string, which small models write there, becomes an escape.
    depth: of objects and lists that are open already, where it begins within one.
    """

    def __init__(self, depth: int = 0) -> None:
        self.is_over = False
        """The object has ended; nothing may be fed any more."""
        self._depth = depth
        self._in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> tuple[str, int]:
        """Takes in more text; returns what of it belongs to the object, as JSON, and how many characters that were."""
        kept: list[str] = []
        at = 0
        while at < len(text) and not self.is_over:
            if self._is_escaped:
                # Whatever follows a backslash, a quote too, is no end.
                self._is_escaped = False
                kept.append(text[at] if text[at] >= " " else _escaped(text[at])[1:])
                at += 1
                continue
            found = _SPECIAL.search(text, at)
            end = len(text) if found is None else found.start()
            kept.append(text[at:end])
            at = end
            if found is not None and found[0] == "<" and not self._in_string:
                self.is_over = True
            elif found is not None:
                kept.append(self._special(found[0]))
                at += 1
        return "".join(kept), at

    def _special(self, character: str) -> str:
        """Notes a character that may change where the text stands; returns it as JSON has it."""
        if self._in_string:
            self._in_string = character != '"'
            self._is_escaped = character == "\\"
            return character if character >= " " else _escaped(character)
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_over = self._depth <= 0
        return character


def _escaped(character: str) -> str:
    return _ESCAPES.get(character, f"\\u{ord(character):04x}")
