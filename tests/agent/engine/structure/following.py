"""Follows a constraint with one token for each byte, and no process."""

from __future__ import annotations

import json
from typing import Any

from moe2.agent.engine.structure.constraint import Constraint, Syntax
from moe2.agent.engine.structure.matcher import Compiler, Vocabulary

END = 256
BYTES = Vocabulary(texts=(*(bytes([byte]) for byte in range(256)), b""), ends=(END,))
COMPILER = Compiler(BYTES)


def allows(mask: bytes | None, token: int) -> bool:
    """May this token come next?"""
    return mask is not None and bool(mask[token // 8] >> token % 8 & 1)


def accepts(syntax: Syntax, source: str, text: str, *, tagged: bool = False) -> bool:
    """Can the whole text be an answer? Raises `GrammarError`."""
    matcher = COMPILER.compile(Constraint(syntax=syntax, source=source, tagged=tagged))
    for byte in text.encode():
        if not allows(matcher.mask(), byte):
            return False
        matcher.accept(byte)
    mask = matcher.mask()
    return mask is None or allows(mask, END)


def schema_accepts(schema: Any, text: str) -> bool:
    """Can the whole text be an answer that follows the schema?"""
    return accepts("json_schema", json.dumps(schema), text)
