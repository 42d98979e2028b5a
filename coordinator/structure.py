"""What form an answer must have. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.messages import ChatPrompt, GrammarSyntax, TextPrompt


@dataclass(frozen=True)
class Structure:
    """At most one of the three is set (see `Submit`). param: the request's parameter that asked for it."""

    param: str | None = None
    json_schema: str | None = None
    grammar: str | None = None
    grammar_syntax: GrammarSyntax = "gbnf"
    forced_tools: tuple[str, ...] = ()


FREE = Structure()


def uses_tools(prompt: ChatPrompt | TextPrompt) -> bool:
    """True where only a model whose chat template has tools can read the prompt."""
    if isinstance(prompt, TextPrompt):
        return False
    return bool(prompt.tools) or any(message.tool_calls or message.role == "tool" for message in prompt.messages)
