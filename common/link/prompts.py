"""What an expert is asked to answer: a conversation with its tools, or text. Frozen values, no behaviour.

The rules of `moe2.common.link.messages` hold for them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from moe2.common.generation import TokenId, since


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the client offers. parameters: its JSON schema, as JSON text."""

    name: str
    description: str | None = None
    parameters: str = "{}"


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call that an assistant's message made. arguments: JSON text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation.

    content: its text; empty where an assistant's message has only calls. parts: the texts that `content` is joined of,
    with a line's end between two, where the client sent several; a template that wants parts gets these.
    reasoning_content: what an assistant's message had between its thinking marks. tool_calls: of an assistant's
    message. tool_call_id: which call a tool's message answers. Ids of calls are nine letters or digits, as the
    strictest templates want them.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    parts: tuple[str, ...] = ()
    reasoning_content: Annotated[str | None, Meta(extra=since(4))] = None


class ChatPrompt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="chat"):
    """A conversation; the expert applies its model's own chat template, which also writes down the tools.

    template_kwargs: further variables of the template, such as `enable_thinking`, as the JSON text of an object.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    template_kwargs: Annotated[str, Meta(extra=since(4))] = "{}"


class TextPrompt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="text"):
    """Text to continue as it stands. tokens: the ids of its tokens in the expert's vocabulary, where these are given;
    then `text` is empty. suffix: what follows the gap that is to be filled; empty where nothing does."""

    text: str
    tokens: Annotated[tuple[TokenId, ...], Meta(extra=since(4))] = ()
    suffix: Annotated[str, Meta(extra=since(4))] = ""
