"""The messages of a chat request, converted to moe2's own messages. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe2.common.link.messages import ChatMessage, ToolCall
from moe2.coordinator.http.body.requests import (
    AssistantMessage,
    Content,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from moe2.coordinator.http.errors import invalid

_ROLES: dict[type[Message], str] = {
    SystemMessage: "system",
    DeveloperMessage: "system",
    UserMessage: "user",
    AssistantMessage: "assistant",
    ToolMessage: "tool",
}
"""The roles that chat templates know. "developer" is what older models call "system"."""
_EMPTY: tuple[Any, ...] = (None, [], {}, "")


def without_empty_fields(messages: Any) -> Any:
    """Returns a body's messages without the empty fields that the SDK adds when an answer is sent back."""
    if not isinstance(messages, list):
        return messages
    kept = ("role", "content", "name")
    return [
        {name: part for name, part in message.items() if name in kept or part not in _EMPTY}
        if isinstance(message, dict)
        else message
        for message in messages
    ]


def messages_of(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Converts the messages of a body. Raises `ApiError` (400), which names a message that says nothing."""
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: Message, where: str) -> ChatMessage:
    calls = _calls(message) if isinstance(message, AssistantMessage) else ()
    if message.content is None and not calls:
        text = f"'{where}.content' must be a string or a list of text parts; only beside tool calls it may be missing."
        raise invalid(text, param=f"{where}.content")
    return ChatMessage(
        role=_ROLES[type(message)],
        content="" if message.content is None else _text(message.content),
        name=message.name,
        tool_calls=calls,
        tool_call_id=message.tool_call_id if isinstance(message, ToolMessage) else None,
    )


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _calls(message: AssistantMessage) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    )
