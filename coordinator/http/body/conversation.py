"""The messages of a chat request, converted to moe2's own messages. PURE."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from typing import Any

import msgspec

from moe2.common.link.prompts import ChatMessage, ToolCall
from moe2.coordinator.http.body.customtools import INPUT
from moe2.coordinator.http.body.requests import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    DeveloperMessage,
    FunctionMessage,
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
    FunctionMessage: "tool",
}
"""The roles that chat templates know. "developer" is what older models call "system"."""
_EMPTY: tuple[Any, ...] = (None, [], {}, "")
PART_BREAK = "\n"
"""What stands between the text parts of one message, as llama-server and vLLM have it."""
_CALL_ID_CHARACTERS = 9
_ALPHABET = string.digits + string.ascii_letters


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
    """Converts the messages of a body. Raises `ApiError` (400) for a call that names nothing."""
    return tuple(_message(message, index) for index, message in enumerate(messages))


def split_begun(messages: tuple[ChatMessage, ...]) -> tuple[tuple[ChatMessage, ...], str]:
    """Returns a conversation, and how the answer to it begins: what an assistant's message at its end says.

    Raises `ApiError` (400) for a last message that cannot be continued.
    """
    *before, last = messages
    if not before or last.role != "assistant" or last.tool_calls or not last.content:
        return messages, ""
    if last.reasoning_content is not None:
        where = f"messages[{len(before)}].reasoning_content"
        raise invalid(f"'{where}' does not go with a last message that is to be continued; leave it out.", param=where)
    return tuple(before), last.content


def call_id_for_templates(call_id: str) -> str:
    """Returns a call's id as the strictest chat templates want it: nine letters or digits, the same for the same id."""
    if len(call_id) == _CALL_ID_CHARACTERS and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest())
    characters = []
    for _ in range(_CALL_ID_CHARACTERS):
        number, place = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[place])
    return "".join(characters)


def _message(message: Message, index: int) -> ChatMessage:
    texts = _texts(message)
    call_id = None
    if isinstance(message, ToolMessage):
        call_id = call_id_for_templates(message.tool_call_id)
    elif isinstance(message, FunctionMessage):
        call_id = _legacy_id(message.name)
    return ChatMessage(
        role=_ROLES[type(message)],
        content=PART_BREAK.join(texts),
        name=message.name,
        tool_calls=_calls(message, f"messages[{index}]") if isinstance(message, AssistantMessage) else (),
        tool_call_id=call_id,
        parts=texts if len(texts) > 1 else (),
        reasoning_content=_reasoning(message, f"messages[{index}]") if isinstance(message, AssistantMessage) else None,
    )


def _legacy_id(name: str) -> str:
    """Returns the id of a call in its older form, which has none: its result names the function alone."""
    return call_id_for_templates(f"function_call {name}")


def _texts(message: Message) -> tuple[str, ...]:
    """Returns the texts of a message's content, in their order."""
    content = message.content
    texts = (content,) if isinstance(content, str) else tuple(part.words for part in content or ())
    if isinstance(message, AssistantMessage) and message.refusal is not None:
        return (*(text for text in texts if text), message.refusal)
    return texts


def _reasoning(message: AssistantMessage, where: str) -> str | None:
    """Returns what the model thought, under either of its names. Refuses two that differ: one would be dropped."""
    one, other = message.reasoning_content, message.reasoning
    if one is not None and other is not None and one != other:
        text = f"'{where}.reasoning' and '{where}.reasoning_content' are not the same; send one of them."
        raise invalid(text, param=f"{where}.reasoning")
    return other if one is None else one


def _calls(message: AssistantMessage, where: str) -> tuple[ToolCall, ...]:
    calls = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ())]
    if (older := message.function_call) is not None:
        calls.append(ToolCall(id=_legacy_id(older.name), name=older.name, arguments=_arguments(older)))
    return tuple(calls)


def _call(call: CalledTool, where: str) -> ToolCall:
    call_id = call_id_for_templates(call.id)
    if call.custom is not None and call.function is not None:
        raise invalid(f"Set '{where}.function' or '{where}.custom', not both.", param=f"{where}.custom")
    if call.custom is not None:
        arguments = msgspec.json.encode({INPUT: call.custom.input}).decode()
        return ToolCall(id=call_id, name=call.custom.name, arguments=arguments)
    if call.function is None:
        raise invalid(f"'{where}.{call.type}' is required: an object.", param=f"{where}.{call.type}")
    return ToolCall(id=call_id, name=call.function.name, arguments=_arguments(call.function))


def _arguments(called: CalledFunction) -> str:
    """Returns a call's arguments as JSON text; some clients send "" where there are none, or the object itself."""
    if isinstance(called.arguments, str):
        return called.arguments if called.arguments.strip() else "{}"
    return msgspec.json.encode(called.arguments).decode()
