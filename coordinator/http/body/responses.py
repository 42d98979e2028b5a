"""The body of `POST /v1/responses`: its types, and the chat completion that asks for the same. PURE.

What both routes have (tools, structured answers, sampling, the `moe2` object) is checked in one place: the body becomes
the fields of a chat completion, which `body.parse` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from moe2.common.generation import MAX_ALTERNATIVES, Sampling
from moe2.coordinator.http.body.neutral import Idle, idle, only
from moe2.coordinator.http.body.parse import STRICT, Reading, read_struct
from moe2.coordinator.http.body.requests import (
    MAX_TOOLS,
    AnswerTokens,
    AnyText,
    Closed,
    Effort,
    FullText,
    JsonSchema,
    Name,
    Text,
)
from moe2.coordinator.http.errors import invalid

MAX_METADATA = 16
SEARCH_CALL = "web_search_call"
"""An item of earlier answers of others, by which nothing was said that the conversation would lack."""
SEARCHES = frozenset({"web_search", "web_search_preview", "web_search_preview_2025_03_11", "web_search_2025_08_26"})
"""Tools by which OpenAI searches the web; here nobody does."""
LOGPROBS = "message.output_text.logprobs"

# --- Items ------------------------------------------------------------------------------------------------------------


class InputText(Closed, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """A text of the user's. Hints for a cache change nothing: beginnings of prompts are always kept."""

    text: Text
    prompt_cache_breakpoint: Idle = None


class OutputText(Closed, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """A text of an earlier answer, as it was returned."""

    text: Text
    annotations: Annotated[list[Any] | None, idle([])] = None
    logprobs: Annotated[list[Any] | None, idle([])] = None


class Refusal(Closed, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal in an earlier answer."""

    refusal: Text


ItemContent: TypeAlias = Annotated[
    Text | list[InputText | OutputText | Refusal],
    Meta(extra={"noun": "a string or a list of text parts"}),
]


class MessageItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message of the conversation. Its `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: ItemContent
    id: Text | None = None
    status: Text | None = None
    phase: Annotated[Text | None, idle()] = None


class CallItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function that an earlier answer made."""

    call_id: FullText
    name: FullText
    arguments: Text
    id: Text | None = None
    status: Text | None = None
    namespace: Text | None = None


class CustomCallItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool that an earlier answer made."""

    call_id: FullText
    name: FullText
    input: Text
    id: Text | None = None
    status: Text | None = None
    namespace: Text | None = None


class CustomOutputItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom_tool_call_output"):
    """What a custom tool has returned."""

    call_id: FullText
    output: ItemContent
    id: Text | None = None
    name: Text | None = None
    status: Text | None = None


class CallOutputItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What a function has returned."""

    call_id: FullText
    output: ItemContent
    id: Text | None = None
    name: Text | None = None
    status: Text | None = None


class ReasoningText(Closed, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """What a model thought."""

    text: Text


class ReasoningItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What an earlier answer was thought out with."""

    summary: Annotated[list[Any] | None, idle([])] = None
    content: list[ReasoningText] | None = None
    encrypted_content: Annotated[Text | None, idle("")] = None
    id: Text | None = None
    status: Text | None = None


class ReferenceItem(Closed, frozen=True, kw_only=True, tag_field="type", tag="item_reference"):
    """An item of an earlier response that is kept here, by its id. Its `type` may be left out."""

    id: FullText


Item: TypeAlias = (
    MessageItem | CallItem | CallOutputItem | CustomCallItem | CustomOutputItem | ReasoningItem | ReferenceItem
)

# --- Tools and forms --------------------------------------------------------------------------------------------------


class FunctionTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function that the model may call. namespace: the group of functions that it was offered in."""

    name: Name
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None
    namespace: Text | None = None


class InputGrammar(Closed, frozen=True, kw_only=True, tag_field="type", tag="grammar"):
    """A grammar that the input of a custom tool follows."""

    syntax: Literal["lark", "regex"]
    definition: FullText


class CustomTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """A tool that the model may call with a text. namespace: the group of tools that it was offered in."""

    name: Name
    description: Text | None = None
    format: AnyText | InputGrammar | None = None
    namespace: Text | None = None


class NamedCustomTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """The custom tool that the model must call."""

    name: str


class NamedTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The function that the model must call."""

    name: str


class AllowedTools(Closed, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Those of the tools that may be called in this answer."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool | NamedCustomTool]


ResponseToolChoice: TypeAlias = Annotated[
    Literal["auto", "none", "required"] | NamedTool | NamedCustomTool | AllowedTools,
    Meta(extra={"must": 'be "auto", "none", "required", a tool by its type and name, or a list of allowed tools'}),
]


class PlainFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A format that leaves the answer's form free."""


class ObjectFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """A format that makes the answer a JSON object."""


class SchemaFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """A format that makes the answer follow a JSON schema, with or without `strict`."""

    schema: JsonSchema
    name: str | None = None
    description: Annotated[str | None, idle()] = None
    strict: bool | None = None


class TextOptions(Closed, frozen=True, kw_only=True):
    """How the answer's text is to be."""

    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Annotated[Literal["low", "medium", "high"] | None, idle("medium")] = None


class ReasoningOptions(Closed, frozen=True, kw_only=True):
    """How a reasoning model is to think."""

    effort: Effort | None = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, idle()] = None
    generate_summary: Annotated[Literal["auto", "concise", "detailed"] | None, idle()] = None


class ResponseStreamOptions(Closed, frozen=True, kw_only=True):
    """Options of a streamed answer."""

    include_obfuscation: Annotated[bool | None, idle(False)] = None


class ResponsesRequest(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/responses`."""

    model: Annotated[str, Meta(min_length=1, extra={"hint": '"moe2" lets the coordinator choose.'})]
    input: Annotated[
        FullText | Annotated[list[Item], Meta(min_length=1)],
        Meta(extra={"noun": "a string or a list of items, not empty"}),
    ]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: AnswerTokens | None = None
    text: TextOptions = TextOptions()
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] = msgspec.field(default_factory=list)
    tool_choice: ResponseToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Annotated[str, Meta(max_length=100)]] = msgspec.field(default_factory=list)
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=MAX_METADATA)] | None = None
    moe2: Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/Wish"})] | None = None
    max_tool_calls: Annotated[int | None, idle()] = None
    client_metadata: Annotated[dict[str, Any] | None, idle({})] = None
    user: Annotated[str | None, idle()] = None
    safety_identifier: Annotated[str | None, idle()] = None
    prompt_cache_key: Annotated[str | None, idle()] = None
    prompt_cache_retention: Annotated[str | None, idle()] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, idle({})] = None
    service_tier: Annotated[str | None, idle("auto", "default")] = None
    background: Annotated[Any, only(False)] = None
    truncation: Annotated[Literal["auto", "disabled"] | None, idle("disabled")] = None


CHAT_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "tools[].custom.format": "tools[].format",
    "logprobs": "top_logprobs",
    "reasoning_effort": "reasoning.effort",
}
"""What the parameters of a chat completion are called here, longer names first."""


def read_responses(fields: dict[str, Any], reading: Reading = STRICT) -> tuple[ResponsesRequest, tuple[str, ...]]:
    """Returns a body's fields as their struct, and the parameters that change nothing.

    Raises `ApiError` (400), which names the parameter that does not fit.
    """
    items = fields.get("input")
    left_out: dict[str, None] = {}
    if isinstance(items, list):
        kept = [item for item in items if not isinstance(item, dict) or item.get("type") != SEARCH_CALL]
        fields["input"] = [_typed(item) for item in kept]
        if len(kept) < len(items):
            left_out[f"input[{SEARCH_CALL}]"] = None
    if isinstance(wanted := fields.get("include"), list) and any(each != LOGPROBS for each in wanted):
        left_out["include"] = None
    if isinstance(tools := fields.get("tools"), list):
        fields["tools"] = list(_offered(tools, left_out))
    request, ignored = read_struct(fields, ResponsesRequest, reading)
    return request, (*ignored, *left_out)


def _offered(tools: Sequence[Any], left_out: dict[str, None]) -> Iterator[Any]:
    """Yields the tools that a model can be offered, those of a group one by one.

    Agents offer a search of the web by default, which the model need not use; it is added to `left_out`.
    """
    for tool in tools:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind in SEARCHES:
            left_out[f"tools[{kind}]"] = None
        elif kind == "namespace" and isinstance(tool.get("tools"), list):
            for inner in tool["tools"]:
                yield {**inner, "namespace": tool.get("name")} if isinstance(inner, dict) else inner
        else:
            yield tool


def _typed(item: Any) -> Any:
    """Returns an item with its type, which clients may leave out of messages and references."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return {**item, "type": "message" if "role" in item else "item_reference"}


def items_of(request: ResponsesRequest) -> tuple[Item, ...]:
    """Returns the request's own items; a text is a user's message."""
    if isinstance(request.input, str):
        return (MessageItem(role="user", content=request.input),)
    return tuple(request.input)


def chat_fields(request: ResponsesRequest, fields: Mapping[str, Any], conversation: Sequence[Item]) -> dict[str, Any]:
    """Returns the fields of the chat completion that asks for the same.

    fields: the body's own, which tell what was set. conversation: all items, those of earlier responses first, without
    references.
    """
    same = ("model", "stream", "moe2", *Sampling.__struct_fields__)
    chat = {name: fields[name] for name in same if name in fields}
    chat["messages"] = _messages(request.instructions, conversation)
    if request.max_output_tokens is not None:
        chat["max_tokens"] = request.max_output_tokens
    if request.tools or request.tool_choice != "auto":
        chat |= _tool_fields(request)
    if request.text.format is not None:
        chat["response_format"] = _format(request.text.format)
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    if request.top_logprobs is not None or LOGPROBS in request.include:
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    return chat


def _tool_fields(request: ResponsesRequest) -> dict[str, Any]:
    """Returns `tools`, `tool_choice` and `parallel_tool_calls` of a chat completion."""
    tools, choice = request.tools, request.tool_choice
    chosen: Any = choice
    if isinstance(choice, AllowedTools):
        allowed, known = {tool.name for tool in choice.tools}, {tool.name for tool in tools}
        if unknown := sorted(allowed - known):
            raise invalid(f"'tool_choice' allows {unknown[0]!r}, which is not among 'tools'.", param="tool_choice")
        tools, chosen = [tool for tool in tools if tool.name in allowed], choice.mode
    elif isinstance(choice, NamedTool | NamedCustomTool):
        kind = "function" if isinstance(choice, NamedTool) else "custom"
        chosen = {"type": kind, kind: {"name": choice.name}}
    chat = {"tools": [_chat_tool(tool) for tool in tools], "tool_choice": chosen}
    return chat if request.parallel_tool_calls is None else {**chat, "parallel_tool_calls": request.parallel_tool_calls}


def _chat_tool(tool: FunctionTool | CustomTool) -> dict[str, Any]:
    """Returns a tool as a chat completion offers it."""
    if isinstance(tool, FunctionTool):
        return {"type": "function", "function": _without_none(tool, "namespace")}
    custom = _without_none(tool, "namespace", "format")
    if isinstance(form := tool.format, InputGrammar):
        grammar = {"syntax": form.syntax, "definition": form.definition}
        custom["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": "custom", "custom": custom}


def _format(chosen: PlainFormat | ObjectFormat | SchemaFormat) -> dict[str, Any]:
    match chosen:
        case PlainFormat():
            return {"type": "text"}
        case ObjectFormat():
            return {"type": "json_object"}
        case SchemaFormat():
            return {"type": "json_schema", "json_schema": _without_none(chosen, "type", "description")}


def _without_none(struct: msgspec.Struct, *left_out: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(struct)
    return {name: value for name, value in fields.items() if value is not None and name not in left_out}


# --- Items as messages ------------------------------------------------------------------------------------------------


def _messages(instructions: str | None, conversation: Sequence[Item]) -> list[dict[str, Any]]:
    """Returns the messages of a chat completion.

    What one answer consisted of (reasoning, text, calls) is one assistant's message there. Instructions that stand
    together are one message, as many chat templates take a single one, at the beginning.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in conversation:
        match item:
            case MessageItem(role="assistant"):
                _answer(messages, "content")["content"] = _content(item.content)
            case MessageItem(role="user"):
                messages.append({"role": "user", "content": _content(item.content)})
            case MessageItem():
                _instruct(messages, _text(item.content))
            case CallItem():
                function = {"name": item.name, "arguments": item.arguments or "{}"}
                call = {"id": item.call_id, "type": "function", "function": function}
                _answer(messages, "").setdefault("tool_calls", []).append(call)
            case CustomCallItem():
                custom = {"name": item.name, "input": item.input}
                call = {"id": item.call_id, "type": "custom", "custom": custom}
                _answer(messages, "").setdefault("tool_calls", []).append(call)
            case CallOutputItem() | CustomOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
            case ReasoningItem():
                if thought := "".join(part.text for part in item.content or ()):
                    _answer(messages, "reasoning_content")["reasoning_content"] = thought
            case ReferenceItem():
                raise TypeError("references are resolved before")
    if not messages:
        raise invalid("'input' says nothing that could be answered.", param="input")
    return messages


def _answer(messages: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Returns the assistant's message that a part of an answer belongs to: the last one, unless it has that part."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or part in last or (part and "tool_calls" in last):
        messages.append({"role": "assistant"})
    return messages[-1]


def _instruct(messages: list[dict[str, Any]], text: str) -> None:
    """Adds instructions, to those that the conversation begins with where nothing else has been said yet."""
    if len(messages) == 1 and messages[0]["role"] == "system":
        messages[0]["content"] += f"\n\n{text}"
    else:
        messages.append({"role": "system", "content": text})


def _content(content: ItemContent) -> str | list[dict[str, str]]:
    return content if isinstance(content, str) else [{"type": "text", "text": _words(part)} for part in content]


def _text(content: ItemContent) -> str:
    return content if isinstance(content, str) else "\n".join(map(_words, content))


def _words(part: InputText | OutputText | Refusal) -> str:
    return part.refusal if isinstance(part, Refusal) else part.text
