"""The bodies of Ollama's API: their types, and the chat or text completion that asks for the same. PURE.

The shapes are those of https://github.com/ollama/ollama/blob/main/docs/api.md. What completions have, too (sampling,
tools, structured answers), is checked in one place: `body.parse`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from moe2.common.generation import MAX_ALTERNATIVES, Sampling
from moe2.coordinator.http.body.embeddings import MAX_DIMENSIONS, MAX_TEXTS
from moe2.coordinator.http.body.neutral import Idle, idle, only
from moe2.coordinator.http.body.requests import MAX_STOPS, MAX_TOOLS, Closed, OfferedTool, Text
from moe2.coordinator.http.errors import invalid, unsupported

_NO_IMAGES = {"refusal": "Models here read text alone."}
Images: TypeAlias = Annotated[Annotated[list[str], Meta(max_length=0, extra=_NO_IMAGES)] | None, Meta(extra=_NO_IMAGES)]
Format: TypeAlias = Annotated[
    Literal["json", ""] | dict[str, Any], Meta(extra={"must": 'be "json" or a JSON schema, which is an object'})
]
Think: TypeAlias = Annotated[
    bool | Literal["low", "medium", "high"], Meta(extra={"must": 'be a boolean, or "low", "medium" or "high"'})
]
Neutral: TypeAlias = Annotated[float, Meta(ge=1, le=1, extra={"must": "be 1, which changes nothing"})] | None
KeepAlive: TypeAlias = Annotated[str | float | None, idle()]
"""How long a model stays in memory is each host's own affair."""
Wanted: TypeAlias = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/Wish"})]
ModelName: TypeAlias = Annotated[str, Meta(min_length=1, extra={"hint": '"moe2" lets the coordinator choose.'})]


class Options(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an answer is written. What concerns the host that runs the model changes nothing: each host has its own."""

    top_k: Annotated[int, Meta(ge=-1, le=1_000_000, description="0 and -1 set no limit.")] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**63 - 1, description="-1 and -2 set no limit.")] | None = None
    stop: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_STOPS)]
        | None
    ) = None
    typical_p: Neutral = None
    tfs_z: Neutral = None
    mirostat: Annotated[int, Meta(ge=0, le=0, extra={"must": "be 0, which changes nothing"})] | None = None
    mirostat_tau: Idle = None
    mirostat_eta: Idle = None
    repeat_last_n: Idle = None
    penalize_newline: Idle = None
    num_ctx: Idle = None
    num_keep: Idle = None
    num_batch: Idle = None
    num_gpu: Idle = None
    main_gpu: Idle = None
    num_thread: Idle = None
    low_vram: Idle = None
    f16_kv: Idle = None
    numa: Idle = None
    use_mmap: Idle = None
    use_mlock: Idle = None
    vocab_only: Idle = None
    logits_all: Idle = None
    embedding_only: Idle = None


class CalledFunction(Closed, frozen=True, kw_only=True):
    """The function that a call names, with its arguments."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    index: Any = None


class Called(Closed, frozen=True, kw_only=True):
    """A call of a tool in an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class Turn(Closed, frozen=True, kw_only=True):
    """A message. tool_name: of a tool's message, the tool whose result it is; `name` is its older name."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | None = None
    thinking: Text | None = None
    images: Images = None
    tool_calls: list[Called] | None = None
    tool_name: Text | None = None
    name: Text | None = None
    tool_call_id: Text | None = None


class _Asked(Closed, frozen=True, kw_only=True):
    """What both ways to ask for an answer have in common."""

    model: ModelName
    format: Format | None = None
    options: Options | None = None
    stream: bool = True
    think: Think | None = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    truncate: Idle = None
    shift: Idle = None
    moe2: Wanted | None = None


class OllamaChatRequest(_Asked, frozen=True, kw_only=True):
    """The body of `POST /api/chat`."""

    messages: list[Turn] = msgspec.field(default_factory=list)
    tools: Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] | None = None


class OllamaGenerateRequest(_Asked, frozen=True, kw_only=True):
    """The body of `POST /api/generate`. raw: the prompt is no conversation, but a text to go on with."""

    prompt: Text = ""
    system: Text | None = None
    raw: bool = False
    suffix: Text | None = None
    images: Images = None
    template: Annotated[Any, only("")] = None
    context: Annotated[Any, only([])] = None


class OllamaEmbedRequest(Closed, frozen=True, kw_only=True):
    """The body of `POST /api/embed`."""

    model: ModelName
    input: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_TEXTS)]
    )
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    truncate: Idle = None
    options: Idle = None
    keep_alive: KeepAlive = None
    moe2: Wanted | None = None


class OllamaEmbeddingsRequest(Closed, frozen=True, kw_only=True):
    """The body of `POST /api/embeddings`, which is what `/api/embed` was before."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1)]
    options: Idle = None
    keep_alive: KeepAlive = None
    moe2: Wanted | None = None


class OllamaModelRequest(Closed, frozen=True, kw_only=True):
    """The body of requests about a model. `name` is an older name of `model`."""

    model: str = ""
    name: str = ""
    verbose: Idle = None
    insecure: Idle = None
    stream: bool = True
    system: Idle = None
    template: Idle = None
    options: Idle = None

    @property
    def meant(self) -> str:
        """The model that is asked about."""
        return self.model or self.name


_OPTION_NAMES = {"max_tokens": "options.num_predict"} | {
    name: f"options.{name}" for name in (*Sampling.__struct_fields__, "stop")
}
COMPLETION_NAMES = {
    "response_format.json_schema.schema": "format",
    "response_format.schema": "format",
    "response_format": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs.enable_thinking": "think",
    **_OPTION_NAMES,
}
"""What the parameters of completions are called here, longer names first."""


def chat_fields(request: OllamaChatRequest) -> dict[str, Any]:
    """Returns the fields of the chat completion that asks for the same."""
    chat = _common(request)
    chat["messages"] = _messages(request.messages)
    if request.tools:
        chat["tools"] = msgspec.to_builtins(request.tools)
    return chat | _thinking(request.think) | _logprobs(request)


def generate_fields(request: OllamaGenerateRequest) -> dict[str, Any]:
    """Returns the fields of the completion that asks for the same: of a text where it is raw or has a suffix, else of a
    chat."""
    fields = _common(request)
    if is_text(request):
        for name, value in (("system", request.system), ("think", request.think)):
            if value:
                raise unsupported(name, hint="It needs a conversation: leave out 'raw' and 'suffix'.")
        fields["prompt"] = request.prompt
        # A text completion has a limit of its own where it says nothing.
        fields.setdefault("max_tokens", None)
        if request.suffix:
            fields["suffix"] = request.suffix
        if request.logprobs:
            fields["logprobs"] = request.top_logprobs or 0
        return fields
    system = [{"role": "system", "content": request.system}] if request.system else []
    fields["messages"] = [*system, {"role": "user", "content": request.prompt}]
    return fields | _thinking(request.think) | _logprobs(request)


def is_text(request: OllamaGenerateRequest) -> bool:
    """Whether the prompt is a text to go on with, and no conversation."""
    return request.raw or bool(request.suffix)


def _common(request: _Asked) -> dict[str, Any]:
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    fields: dict[str, Any] = {"model": request.model, "stream": request.stream}
    if request.moe2 is not None:
        fields["moe2"] = request.moe2
    if isinstance(request.format, dict):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.format}}
    elif request.format:
        fields["response_format"] = {"type": "json_object"}
    options = request.options or Options()
    drawn = {name: getattr(options, name) for name in Sampling.__struct_fields__}
    fields |= {name: value for name, value in drawn.items() if value not in (None, {})}
    if options.num_predict is not None:
        fields["max_tokens"] = max(options.num_predict, -1)
    if options.stop:
        fields["stop"] = options.stop
    return fields


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, str):
        return {"reasoning_effort": think}
    return {"chat_template_kwargs": {"enable_thinking": True}} if think else {"reasoning_effort": "none"}


def _logprobs(request: _Asked) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0} if request.logprobs else {}


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Returns the messages of a chat completion. Calls have no ids here: a result answers the first call of its tool
    that has none yet, or else the first one."""
    open_calls: deque[tuple[str, str]] = deque()
    messages = []
    for place, turn in enumerate(turns):
        _check_role(turn, f"messages[{place}]")
        message: dict[str, Any] = {"role": turn.role, "content": turn.content or ""}
        if turn.name and turn.role != "tool":
            message["name"] = turn.name
        if turn.role == "assistant":
            calls = [_call(call, f"call_{place}_{nth}") for nth, call in enumerate(turn.tool_calls or ())]
            open_calls.extend((call["id"], call["function"]["name"]) for call in calls)
            if calls:
                message["tool_calls"] = calls
            if turn.thinking:
                message["reasoning_content"] = turn.thinking
        elif turn.role == "tool":
            message["tool_call_id"] = turn.tool_call_id or _answered(open_calls, turn.tool_name or turn.name, place)
        messages.append(message)
    return messages


def _check_role(turn: Turn, where: str) -> None:
    """Raises `ApiError` (400) for what a message says that has no place in its role's."""
    for role, names in (("assistant", ("thinking", "tool_calls")), ("tool", ("tool_name", "tool_call_id"))):
        for name in names:
            if turn.role != role and getattr(turn, name):
                raise unsupported(f"{where}.{name}", hint=f"Only messages of the role {role!r} have it.")


def _call(call: Called, made_id: str) -> dict[str, Any]:
    function: Mapping[str, Any] = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or made_id, "type": "function", "function": function}


def _answered(calls: deque[tuple[str, str]], name: str | None, place: int) -> str:
    """Returns the id of the call that a tool's message answers, and takes it off those that are open."""
    if not calls:
        return f"call_{place}"
    found = next((call for call in calls if call[1] == name), calls[0])
    calls.remove(found)
    return found[0]
