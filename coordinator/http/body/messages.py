"""The body of `POST /v1/messages`: its types, and the chat completion that asks for the same. PURE.

The shape is that of Anthropic's API, https://docs.anthropic.com/en/api/messages. What chat completions have, too
(tools, sampling, structured answers, the `moe2` object), is checked in one place: `body.parse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from moe2.common.generation import MAX_TOKENS, Sampling, TokenCount
from moe2.coordinator.http.body.neutral import Idle, idle
from moe2.coordinator.http.body.requests import MAX_STOPS, MAX_TOOLS, Closed, FullText, JsonSchema, Name, Text

# --- Blocks -----------------------------------------------------------------------------------------------------------


class TextBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A text. `cache_control` changes nothing: beginnings of prompts are always looked for in caches."""

    text: Text
    cache_control: Idle = None
    citations: Idle = None


class ToolUseBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool that an earlier answer made."""

    id: FullText
    name: FullText
    input: dict[str, Any]
    cache_control: Idle = None
    caller: Idle = None


class ToolResultBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """What a tool has returned. is_error: the model reads "Error: " before it."""

    tool_use_id: FullText
    content: Annotated[Text | list[TextBlock] | None, Meta(extra={"noun": "a string or a list of text blocks"})] = None
    is_error: bool = False
    cache_control: Idle = None


class ThinkingBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """What an earlier answer was thought out with. Nothing here is signed, so that signatures are not checked."""

    thinking: Text
    signature: Annotated[Text | None, idle("")] = None


class RedactedThinkingBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="redacted_thinking"):
    """Thinking that only its author could read: it is left out."""

    data: Idle = None


UserContent: TypeAlias = Annotated[
    Text | list[TextBlock | ToolResultBlock],
    Meta(extra={"noun": "a string or a list of text and tool_result blocks"}),
]
AssistantContent: TypeAlias = Annotated[
    Text | list[TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock],
    Meta(extra={"noun": "a string or a list of text, tool_use and thinking blocks"}),
]
SystemContent: TypeAlias = Annotated[Text | list[TextBlock], Meta(extra={"noun": "a string or a list of text blocks"})]


class UserTurn(Closed, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """What a person says, and what tools have returned."""

    content: UserContent


class AssistantTurn(Closed, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """An earlier answer. At the end of a conversation it is the beginning of the answer asked for."""

    content: AssistantContent


class SystemTurn(Closed, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """Instructions in the middle of a conversation."""

    content: SystemContent


Turn: TypeAlias = UserTurn | AssistantTurn | SystemTurn

# --- Tools and options ------------------------------------------------------------------------------------------------


class ClientTool(Closed, frozen=True, kw_only=True):
    """A tool that the model may call, and the client runs."""

    name: Name
    input_schema: JsonSchema
    type: Literal["custom"] = "custom"
    description: Text | None = None
    strict: bool | None = None
    cache_control: Idle = None
    input_examples: Idle = None
    eager_input_streaming: Idle = None


class AutoChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """The model calls tools as it likes."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="any"):
    """The model must call a tool."""

    disable_parallel_tool_use: bool | None = None


class OneChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="tool"):
    """The model must call this tool."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="none"):
    """The model must call no tool."""


class ThinkingOn(Closed, frozen=True, kw_only=True, tag_field="type", tag="enabled"):
    """The model may think for so many tokens."""

    budget_tokens: TokenCount
    display: Idle = None


class ThinkingOff(Closed, frozen=True, kw_only=True, tag_field="type", tag="disabled"):
    """The model is not to think, where its template can be told so."""


class ThinkingAdaptive(Closed, frozen=True, kw_only=True, tag_field="type", tag="adaptive"):
    """The model thinks as it likes."""

    display: Idle = None


class AnswerFormat(Closed, frozen=True, kw_only=True):
    """A JSON schema that the answer follows."""

    type: Literal["json_schema"]
    schema: JsonSchema


class OutputConfig(Closed, frozen=True, kw_only=True):
    """How the answer is to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: AnswerFormat | None = None


class Metadata(Closed, frozen=True, kw_only=True):
    """Facts about the request."""

    user_id: Annotated[str | None, idle()] = None


class CountRequest(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/messages/count_tokens`. What says how to draw tokens changes nothing here."""

    model: Annotated[str, Meta(min_length=1, extra={"hint": '"moe2" lets the coordinator choose.'})]
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: SystemContent | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000, description="0 and -1 set no limit.")] | None = None
    tools: Annotated[list[ClientTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | OneChoice | NoChoice | None = None
    thinking: ThinkingOn | ThinkingOff | ThinkingAdaptive | None = None
    output_config: OutputConfig | None = None
    moe2: Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/Wish"})] | None = None
    cache_control: Idle = None
    context_management: Idle = None
    speed: Annotated[str | None, idle("standard")] = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    stream: bool = False
    stop_sequences: (
        Annotated[
            list[Annotated[str, Meta(min_length=1)]],
            Meta(max_length=MAX_STOPS, extra={"must": f"be a list of at most {MAX_STOPS} non-empty strings"}),
        ]
        | None
    ) = None
    metadata: Metadata | None = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, idle("auto", "standard_only")] = None
    inference_geo: Annotated[str | None, idle()] = None


CHAT_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""What the parameters of a chat completion are called here, longer names first."""
_EFFORTS = {"max": "xhigh"}


def chat_fields(request: CountRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the chat completion that asks for the same.

    fields: the body's own, which tell what was set.
    """
    same = ("model", "stream", "moe2", *Sampling.__struct_fields__)
    chat = {name: fields[name] for name in same if name in fields}
    system = [] if request.system is None else [{"role": "system", "content": _content(request.system)}]
    chat["messages"] = [*system, *(message for turn in request.messages for message in _messages(turn))]
    if request.tools or request.tool_choice is not None:
        chat |= _tool_fields(request.tools or (), request.tool_choice)
    chat |= _thinking_fields(request, chat.get("moe2") or {})
    if request.output_config is not None and request.output_config.format is not None:
        schema = {"name": "answer", "schema": request.output_config.format.schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request, MessagesRequest):
        chat["max_tokens"] = min(request.max_tokens, MAX_TOKENS)
        if request.stop_sequences:
            chat["stop"] = request.stop_sequences
    return chat


def _tool_fields(
    tools: Sequence[ClientTool], choice: AutoChoice | AnyChoice | OneChoice | NoChoice | None
) -> dict[str, Any]:
    """Returns `tools`, `tool_choice` and `parallel_tool_calls` of a chat completion."""
    chat: dict[str, Any] = {"tools": [_function(tool) for tool in tools]}
    match choice:
        case AnyChoice():
            chat["tool_choice"] = "required"
        case OneChoice(name=name):
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case NoChoice():
            chat["tool_choice"] = "none"
    if not isinstance(choice, NoChoice | None) and choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False
    return chat


def _function(tool: ClientTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _thinking_fields(request: CountRequest, wish: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what bounds a reasoning model's thinking; what the `moe2` object says counts more."""
    match request.thinking:
        case ThinkingOff():
            return {"reasoning_effort": "none"}
        case ThinkingOn(budget_tokens=budget_tokens):
            chat: dict[str, Any] = {"moe2": {"thinking_budget_tokens": budget_tokens, **wish}}
        case _:
            chat = {}
    if request.output_config is not None and (effort := request.output_config.effort):
        chat["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return chat


# --- Turns as messages ------------------------------------------------------------------------------------------------


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """Returns the messages of a chat completion that one turn is. What tools return are messages of their own there."""
    match turn:
        case SystemTurn(content=content):
            return [{"role": "system", "content": _content(content)}]
        case AssistantTurn(content=content):
            return [{"role": "assistant", "content": content} if isinstance(content, str) else _answer(content)]
        case UserTurn(content=str() as text):
            return [{"role": "user", "content": text}]
        case UserTurn(content=content):
            texts = [block for block in content if isinstance(block, TextBlock)]
            results = [_result(block) for block in content if isinstance(block, ToolResultBlock)]
            # Results of a turn's calls come first: nothing may stand between a call and its result.
            return [*results, {"role": "user", "content": _content(texts)}] if texts or not results else results


def _answer(content: Sequence[TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock]) -> dict[str, Any]:
    """Returns the assistant's message that an earlier answer is."""
    answer: dict[str, Any] = {"role": "assistant"}
    texts = [block for block in content if isinstance(block, TextBlock)]
    if texts:
        answer["content"] = _content(texts)
    if thought := "".join(block.thinking for block in content if isinstance(block, ThinkingBlock)):
        answer["reasoning_content"] = thought
    if calls := [_call(block) for block in content if isinstance(block, ToolUseBlock)]:
        answer["tool_calls"] = calls
    return answer


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock) -> dict[str, Any]:
    content = "" if block.content is None else _content(block.content)
    if block.is_error:
        content = f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error:"}, *content]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _content(content: str | Sequence[TextBlock]) -> str | list[dict[str, str]]:
    return content if isinstance(content, str) else [{"type": "text", "text": block.text} for block in content]
