"""OpenAI's custom tools, whose input is a text: of any form, or of one that a grammar tells. PURE.

To the model such a tool is a function with one argument, a text. A regular expression becomes the pattern of that
text, and holds as the schema of a strict function does. A Lark grammar holds where the tool is the only one that may
be called and one must be: then the whole answer is its input.
"""

from __future__ import annotations

from typing import Any

from moe2.common.link.prompts import Tool
from moe2.coordinator.http.body.requests import MAX_STRUCTURE_BYTES, GrammarFormat, OfferedCustom
from moe2.coordinator.http.errors import invalid

INPUT = "input"
"""The argument that carries a custom tool's text."""


def grammar_of(custom: OfferedCustom) -> GrammarFormat | None:
    """Returns the grammar of a custom tool's input; None where it is any text."""
    return custom.format if isinstance(custom.format, GrammarFormat) else None


def function_of(custom: OfferedCustom, where: str) -> tuple[Tool, dict[str, Any]]:
    """Returns a custom tool as the model is offered it, but for its parameters, and the schema of these.

    where: the parameter that has it. Raises `ApiError` (400) for a grammar that is too long.
    """
    text: dict[str, Any] = {"type": "string"}
    described = custom.description or ""
    if (form := grammar_of(custom)) is not None:
        grammar = form.grammar
        if len(grammar.definition.encode()) > MAX_STRUCTURE_BYTES:
            raise invalid(f"'{where}.format' has more than {MAX_STRUCTURE_BYTES} bytes.", param=f"{where}.format")
        if grammar.syntax == "regex":
            text["pattern"] = f"^(?:{grammar.definition})$"
        kind = "Lark grammar" if grammar.syntax == "lark" else "regular expression"
        described = f"{described}\nThe {INPUT} follows this {kind}:\n{grammar.definition}".strip()
    schema = {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}
    return Tool(name=custom.name, description=described or None), schema
