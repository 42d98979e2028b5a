"""The `messages` of a chat: roles, texts, tool calls and their answers. PURE."""

from __future__ import annotations

from typing import Any

from moe2.common.messages import ChatMessage, ToolCall
from moe2.coordinator.api.errors import invalid, unsupported
from moe2.coordinator.api.fields import clean, object_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_EMPTY: tuple[Any, ...] = (None, [], {}, "")
"""An assistant's message sent back as the SDK returned it carries empty fields."""


def messages_of(value: Any) -> tuple[ChatMessage, ...]:
    """Raises `ApiError` (400) naming the message and its field."""
    if not isinstance(value, list) or not value:
        raise invalid("'messages' must be a non-empty list.", param="messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: Any, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise invalid(f"'{where}' must be an object.", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"'{where}.role' must be one of {', '.join(ROLES)}.", param=f"{where}.role")
    known = {"role", "content", "name"}
    known |= {"tool_calls"} if role == "assistant" else {"tool_call_id"} if role == "tool" else set()
    for name, part in value.items():
        if name not in known and part not in _EMPTY:
            raise unsupported(f"{where}.{name}")
    calls = _calls(value.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    content = value.get("content")
    name = _text(value.get("name"), f"{where}.name")
    tool_call_id = _text(value.get("tool_call_id"), f"{where}.tool_call_id") if role == "tool" else None
    if role == "tool" and not tool_call_id:
        raise invalid(f"'{where}.tool_call_id' is required.", param=f"{where}.tool_call_id")
    return ChatMessage(
        role=ROLES[role],
        content="" if calls and content is None else _content(content, f"{where}.content"),
        name=name,
        tool_calls=calls,
        tool_call_id=tool_call_id,
    )


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return clean(value, where)
    if not isinstance(value, list):
        raise invalid(f"'{where}' must be a string or a list of text parts.", param=where)
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise unsupported(f"{where}[{index}]", hint="Only parts of type 'text' are accepted.")
        texts.append(clean(part["text"], where))
    return "".join(texts)


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if value in _EMPTY:
        return ()
    if not isinstance(value, list):
        raise invalid(f"'{where}' must be a list.", param=where)
    return tuple(_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _call(value: Any, where: str) -> ToolCall:
    call = object_of(value, where, {"id", "type", "function", "index"})
    if call.get("type", "function") != "function":
        raise unsupported(f"{where}.type", hint="Only 'function' is accepted.")
    function = object_of(call.get("function"), f"{where}.function", {"name", "arguments"})
    texts = {
        f"{where}.id": call.get("id"),
        f"{where}.function.name": function.get("name"),
        f"{where}.function.arguments": function.get("arguments", "{}"),
    }
    for place, text in texts.items():
        if not _text(text, place):
            raise invalid(f"'{place}' must be a non-empty string.", param=place)
    call_id, name, arguments = texts.values()
    return ToolCall(id=call_id, name=name, arguments=arguments)


def _text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid(f"'{where}' must be a string.", param=where)
    return clean(value, where)
