"""The normal form of short texts, so that two ways to write one answer compare as equal. PURE."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x3001: ","}
_BEHIND_A_WORD = re.compile(r"(?<=\w)[+#]{1,2}(?!\w)")
"""What tells C++, C# and A+ from C and A."""


def normalised(text: str) -> str:
    """The text without case, punctuation, articles and surplus space, with characters in one encoding (NFKC)."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    kept = {place for found in _BEHIND_A_WORD.finditer(lowered) for place in range(*found.span())}
    plain = "".join(
        " " if place not in kept and unicodedata.category(character)[0] in "PS" else character
        for place, character in enumerate(lowered)
    )
    return " ".join(_ARTICLES.sub(" ", plain).split())


def narrow(text: str) -> str:
    """The text with the wide letters, digits and signs of East Asian scripts as ASCII has them."""
    return text.translate(_WIDE)
