"""PURE: what somebody wrote never becomes a model's control tokens, wherever a chat template puts it.

A template sets messages between control tokens (<|im_start|>, <|im_end|>). A message that spells such a token out could
end its own turn and begin another one, as the system for instance. So each spelling is replaced by a mark before the
template runs; afterwards the text is cut at the marks, and what they stand for is tokenized as the plain characters
that it is. A text without a spelling goes through unchanged and in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Unicode keeps these for a process's own use: no text has them. One that has is quoted itself."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class Segment(NamedTuple):
    """A part of a prompt. `quoted`: its characters are no control tokens, whatever they spell."""

    text: str
    quoted: bool = False


class Quotation:
    """Marks the spellings of one model's control tokens."""

    def __init__(self, control_texts: Iterable[str]) -> None:
        # The longest first: one token's text may begin another's.
        self._spellings = sorted({_OPEN, *filter(None, control_texts)}, key=lambda text: (-len(text), text))

    def quote(self, written: Any) -> Any:
        """A JSON-like value with a mark in place of every spelling in its strings and keys."""
        if isinstance(written, str):
            return self._marked(written)
        if isinstance(written, dict):
            return {self.quote(key): self.quote(value) for key, value in written.items()}
        return [self.quote(value) for value in written] if isinstance(written, list) else written

    def segments(self, text: str) -> tuple[Segment, ...]:
        """A text with marks, cut at them; at least one segment."""
        parts = _MARK.split(text)
        segments = (
            # Every second part is a mark's number; only `quote` writes marks.
            Segment(self._spellings[int(part)], quoted=True) if place % 2 else Segment(part)
            for place, part in enumerate(parts)
        )
        return tuple(segment for segment in segments if segment.text) or (Segment(""),)

    def _marked(self, text: str) -> str:
        # A search for each is faster than one pattern for all: a vocabulary may have thousands, a text has hardly any.
        present = [spelling for spelling in self._spellings if spelling in text]
        if not present:
            return text
        places = {spelling: self._spellings.index(spelling) for spelling in present}
        pattern = "|".join(map(re.escape, present))
        return re.sub(pattern, lambda found: f"{_OPEN}{places[found.group()]}{_CLOSE}", text)
