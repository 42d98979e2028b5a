"""What a request has the model read: the messages of a chat, or prompts, and what stands beside their words. PURE.

Beside the words stand token ids, variables of the chat template, and how much is thought.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from moe2.common.link.prompts import ChatMessage, TextPrompt, ToolCall
from moe2.common.link.reports import ExpertReport
from moe2.coordinator.http.body.requests import (
    MAX_PROMPTS,
    AssistantMessage,
    CalledFunction,
    CalledTool,
    DeveloperMessage,
    Effort,
    FunctionMessage,
    Message,
    Spoken,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from moe2.coordinator.http.body.tools import INPUT
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
MAX_KWARGS_BYTES = 16_384
RESERVED_VARIABLES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("bos_token", "eos_token", "raise_exception", "strftime_now", "range", "dict", "namespace", "lipsum"),
        *("cycler", "joiner"),
    }
)
"""The variables and functions of chat templates that are not the client's to set."""
THINKING_BUDGETS: dict[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""The most tokens of thinking for each `reasoning_effort`; None sets no limit."""
_SHOWN_EFFORTS: dict[str, str] = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""What a template is told that knows three efforts, for those that it does not know."""


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
    return tuple([_message(message, index) for index, message in enumerate(messages)])


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
    if isinstance(message, Spoken) and isinstance(message.content, str):
        # What most messages are.
        return ChatMessage(role=_ROLES[type(message)], content=message.content, name=message.name)
    texts = _texts(message)
    call_id, reasoning = None, None
    calls: tuple[ToolCall, ...] = ()
    if isinstance(message, AssistantMessage):
        where = f"messages[{index}]"
        calls, reasoning = _calls(message, where), _reasoning(message, where)
    elif isinstance(message, ToolMessage):
        call_id = call_id_for_templates(message.tool_call_id)
    elif isinstance(message, FunctionMessage):
        call_id = _legacy_id(message.name)
    return ChatMessage(
        role=_ROLES[type(message)],
        content=PART_BREAK.join(texts),
        name=message.name,
        tool_calls=calls,
        tool_call_id=call_id,
        parts=texts if len(texts) > 1 else (),
        reasoning_content=reasoning,
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


def prompts_of(prompt: str | Sequence[str | int | Sequence[int]]) -> tuple[TextPrompt, ...]:
    """Returns the prompts of a text completion: one, or as many as the list has. Raises `ApiError` (400).

    Each is a text, or the ids of its tokens. A list of numbers is one prompt.
    """
    if isinstance(prompt, str):
        return (TextPrompt(text=prompt),)
    if all(isinstance(each, int) for each in prompt):
        return (TextPrompt(text="", tokens=tuple(each for each in prompt if isinstance(each, int))),)
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"'prompt' must be a list of at most {MAX_PROMPTS} prompts.", param="prompt")
    if all(isinstance(each, str) for each in prompt):
        return tuple(TextPrompt(text=each) for each in prompt if isinstance(each, str))
    if all(isinstance(each, list) for each in prompt):
        return tuple(TextPrompt(text="", tokens=tuple(each)) for each in prompt if isinstance(each, list))
    raise invalid(
        "'prompt' must be a list of strings, of token ids, or of lists of token ids, not of both.", param="prompt"
    )


def thinking_of(effort: Effort | None, kwargs: Mapping[str, Any]) -> tuple[str, int | None]:
    """Returns the template's variables, as the JSON text of an object, and the most tokens of thinking.

    An effort becomes both: the variable `reasoning_effort` for templates that have it, `enable_thinking` where it is
    "none", and a limit for all others. What `kwargs` says itself is kept. Raises `ApiError` (400).
    """
    for name in kwargs:
        if name in RESERVED_VARIABLES:
            raise invalid(
                f"'chat_template_kwargs.{name}' is not the client's to set.", param=f"chat_template_kwargs.{name}"
            )
    if effort is None and not kwargs:
        return "{}", None
    variables = dict(kwargs)
    if effort is not None:
        variables = {"reasoning_effort": _SHOWN_EFFORTS.get(effort, effort), **variables}
        if effort == "none":
            variables = {"enable_thinking": False, **variables}
    try:
        content = msgspec.json.encode(variables)
    except (RecursionError, msgspec.MsgspecError) as error:
        raise invalid(f"'chat_template_kwargs' cannot be used: {error}.", param="chat_template_kwargs") from None
    if len(content) > MAX_KWARGS_BYTES:
        raise invalid(f"'chat_template_kwargs' has more than {MAX_KWARGS_BYTES} bytes.", param="chat_template_kwargs")
    return content.decode(), None if effort is None else THINKING_BUDGETS[effort]


def set_by(effort: Effort | None, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Returns the variables that `thinking_of` sets, each with the parameter that sets it."""
    variables = {name: f"chat_template_kwargs.{name}" for name in kwargs}
    if effort is not None:
        variables.setdefault("reasoning_effort", "reasoning_effort")
    if effort == "none":
        variables.setdefault("enable_thinking", "reasoning_effort")
    return variables


def idle_settings(variables: Mapping[str, str], reports: Sequence[ExpertReport], *, bounded: bool) -> tuple[str, ...]:
    """Returns the parameters whose variables no chat template of these experts has; none where one is not known.

    variables: each with the parameter that sets it. bounded: an effort bounds the thinking, too, of models that think.
    """
    known: set[str] = set()
    for report in reports:
        if report.template_variables is None:
            return ()
        known.update(report.template_variables)
        if bounded and report.supports_thinking is not False:
            known.add("reasoning_effort")
    used = {name for variable, name in variables.items() if variable in known}
    return tuple(dict.fromkeys(name for name in variables.values() if name not in used)) if reports else ()
