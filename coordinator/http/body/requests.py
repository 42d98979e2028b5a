"""The structs of request bodies: types, bounds and remedies of every parameter. PURE.

The parser, the errors that it answers with and the OpenAPI document all come from these structs (`decode`, `openapi`).
`Meta.extra` says what types cannot: "noun" is a better name of what is accepted; "must" is the wording for a parameter
that is blamed as a whole, whatever is wrong inside of it; "refusal" is the wording for a parameter that is not
supported; "hint" is a remedy that is added; "only" lists the values that change nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from moe2.common.generation import MAX_ALTERNATIVES, GrammarSyntax, Sampling, TokenCount

MAX_STOPS = 16
MAX_COMPLETION_LOGPROBS = 5
MAX_TOOLS = 128
MAX_STRUCTURE_BYTES = 65_536
STRUCTURE_SCHEMA = {"description": f"A JSON schema of at most {MAX_STRUCTURE_BYTES} bytes."}


def only(*values: Any) -> Meta:
    """Declares a parameter that is accepted only with these values, which change nothing.

    SDKs send some of them explicitly.
    """
    return Meta(extra={"only": values}, extra_json_schema={"enum": [*values, None]})


# NUL is refused by `decode`, in whole bodies. As a `Meta(pattern=…)` it would take longer, and msgspec 0.22 sometimes
# crashes at exit where a type is "a string with a pattern, or a list".
_NO_NUL = {"pattern": r"^[^\u0000]*$"}
Text: TypeAlias = Annotated[str, Meta(extra_json_schema=_NO_NUL)]
FullText: TypeAlias = Annotated[str, Meta(min_length=1, extra_json_schema=_NO_NUL)]
Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_.-]+$(?!\n)",  # to Python, $ also matches before a last line's end
        extra={"must": "be 1 to 64 letters, digits or _ . - characters"},
    ),
]
Function: TypeAlias = Literal["function"]
JsonSchema: TypeAlias = Annotated[
    dict[str, Any], Meta(extra={"must": "be a JSON schema, which is an object"}, extra_json_schema=STRUCTURE_SCHEMA)
]


class Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object of a body. A field that it does not have is refused by name, never dropped."""


# --- Messages ---------------------------------------------------------------------------------------------------------


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content. Fields beside the text, such as hints for a cache, change nothing."""

    type: Literal["text"]
    text: Text


Content: TypeAlias = Annotated[
    Text | list[Annotated[TextPart, Meta(extra={"refusal": "Only parts of type 'text' are accepted."})]],
    Meta(extra={"noun": "a string or a list of text parts"}),
]


class CalledFunction(Closed, frozen=True, kw_only=True):
    """The function that a tool call names, with its arguments as JSON text."""

    name: FullText
    arguments: FullText = "{}"


class CalledTool(Closed, frozen=True, kw_only=True):
    """A tool call in an assistant's message, as the SDK returned it, with its `index`."""

    id: FullText
    function: CalledFunction
    type: Function = "function"
    index: Any = None


class Spoken(Closed, frozen=True, kw_only=True, tag_field="role"):
    """The fields that all messages except an assistant's have."""

    content: Content
    name: Text | None = None


class SystemMessage(Spoken, frozen=True, kw_only=True, tag="system"):
    """The instructions that a conversation begins with."""


class DeveloperMessage(Spoken, frozen=True, kw_only=True, tag="developer"):
    """The instructions that a conversation begins with, by their newer name."""


class UserMessage(Spoken, frozen=True, kw_only=True, tag="user"):
    """A message from a person."""


class AssistantMessage(Closed, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """An earlier answer. Its content may be missing where it has tool calls."""

    content: Content | None = None
    name: Text | None = None
    tool_calls: list[CalledTool] | None = None


class ToolMessage(Spoken, frozen=True, kw_only=True, tag="tool"):
    """The result of a tool call. tool_call_id: the call that it answers."""

    tool_call_id: FullText


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage

# --- Tools and forms --------------------------------------------------------------------------------------------------


class OfferedFunction(Closed, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class OfferedTool(Closed, frozen=True, kw_only=True):
    """A tool that the model may call."""

    type: Function
    function: OfferedFunction


class ChosenFunction(Closed, frozen=True, kw_only=True):
    """The name of the function that the model must call."""

    name: str


class ChosenTool(Closed, frozen=True, kw_only=True):
    """The tool that the model must call."""

    type: Function
    function: ChosenFunction


ToolChoice: TypeAlias = Annotated[
    Literal["auto", "none", "required"] | ChosenTool,
    Meta(extra={"must": 'be "auto", "none", "required" or a function'}),
]


class TextFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A response format that leaves the answer's form free."""


class JsonObjectFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """A response format that makes the answer a JSON object."""


class NamedSchema(Closed, frozen=True, kw_only=True):
    """A JSON schema with its name. The answer follows it with or without `strict`."""

    name: str | None = None
    description: str | None = None
    schema: JsonSchema | None = None
    strict: bool | None = None


class JsonSchemaFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """A response format that makes the answer follow a JSON schema."""

    json_schema: NamedSchema


class StreamOptions(Closed, frozen=True, kw_only=True):
    """Options of a streamed answer."""

    include_usage: bool | None = None


# --- Bodies -----------------------------------------------------------------------------------------------------------


class CommonRequest(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that both of OpenAI's routes have, including those of `Sampling`."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            description="A model's name, an expert's key, or \"moe2\": the coordinator chooses.",
            extra={"hint": '"moe2" lets the coordinator choose.'},
        ),
    ]
    max_tokens: TokenCount | None = None
    stop: Annotated[
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_STOPS)]
        | None,
        Meta(extra={"must": f"be a non-empty string or a list of at most {MAX_STOPS} such"}),
    ] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    moe2: Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/Wish"})] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    grammar: (
        Annotated[
            FullText,
            Meta(description=f"What the answer follows, in `grammar_syntax`; at most {MAX_STRUCTURE_BYTES} bytes."),
        ]
        | None
    ) = None
    grammar_syntax: GrammarSyntax | None = None
    n: Annotated[Any, only(1)] = None
    best_of: Annotated[Any, only(1)] = None
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None
    store: Annotated[Any, only(False)] = None
    functions: Annotated[Any, only([])] = None
    modalities: Annotated[Any, only(["text"])] = None
    service_tier: Annotated[Any, only("auto", "default")] = None


class ChatRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class TextRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Text | Annotated[list[Text], Meta(min_length=1, max_length=1)],
        Meta(extra={"must": "be one string; send several prompts as several requests"}),
    ]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None


class FeedbackRequest(Closed, frozen=True, kw_only=True):
    """The body of `POST /v1/moe2/feedback`."""

    request_id: Annotated[str, Meta(min_length=1, extra={"hint": "It is the x-request-id of an answer."})]
    score: Annotated[float, Meta(ge=0, le=1)]
