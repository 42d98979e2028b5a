"""The structs of request bodies: types, bounds and remedies of every parameter. PURE.

The parser, the errors that it answers with and the OpenAPI document all come from these structs (`decode`, `openapi`).
`Meta.extra` says what types cannot: "noun" is a better name of what is accepted; "must" is the wording for a parameter
that is blamed as a whole, whatever is wrong inside of it; "refusal" is the wording for a parameter that is not
supported; "hint" is a remedy that is added; "only" lists the values that change nothing; "idle" marks a parameter that
is accepted and changes nothing, and lists the values of which that need not be said.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from moe2.common.generation import MAX_ALTERNATIVES, GrammarSyntax, TokenId
from moe2.coordinator.http.body.neutral import Idle, LlamaServerDefaults, idle, only

MAX_CHOICES = 16
"""The largest `n`."""
MAX_PROMPTS = 128
"""The largest number of prompts of one body, and of prompts times `n`."""
MAX_PROMPT_IDS = 1_048_576
"""The largest number of token ids of one prompt."""
MAX_STOPS = 16
MAX_COMPLETION_LOGPROBS = 5
MAX_TOOLS = 128
MAX_STRUCTURE_BYTES = 65_536
STRUCTURE_SCHEMA = {"description": f"A JSON schema of at most {MAX_STRUCTURE_BYTES} bytes."}


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
AnswerTokens: TypeAlias = Annotated[
    int, Meta(ge=-1, le=2**63 - 1, extra={"must": "be a number of tokens, from 1; -1 or null sets no limit"})
]
"""A limit of an answer's length. One beyond what an expert's context leaves is no error: the context is the limit."""
JsonSchema: TypeAlias = Annotated[
    dict[str, Any], Meta(extra={"must": "be a JSON schema, which is an object"}, extra_json_schema=STRUCTURE_SCHEMA)
]


class Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object of a body. A field that it does not have is refused by name, never dropped."""


# --- Messages ---------------------------------------------------------------------------------------------------------


class TextPart(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A part of a message's content. `cache_control` changes nothing: beginnings are always looked for in caches."""

    text: Text
    cache_control: Idle = None

    @property
    def words(self) -> str:
        """What the part says."""
        return self.text


class RefusalPart(Closed, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A part of an assistant's earlier answer that declined to answer."""

    refusal: Text

    @property
    def words(self) -> str:
        """What the part says."""
        return self.refusal


_ONLY_TEXT = "Only parts of type 'text' are accepted."
Content: TypeAlias = Annotated[
    Text | list[Annotated[TextPart, Meta(extra={"refusal": _ONLY_TEXT})]],
    Meta(extra={"noun": "a string or a list of text parts"}),
]
SpokenContent: TypeAlias = Annotated[
    Text | list[Annotated[TextPart | RefusalPart, Meta(extra={"refusal": _ONLY_TEXT})]],
    Meta(extra={"noun": "a string or a list of text parts"}),
]


class CalledFunction(Closed, frozen=True, kw_only=True):
    """The function that a tool call names, with its arguments as JSON text."""

    name: FullText
    arguments: Annotated[Text | dict[str, Any], Meta(extra={"noun": "JSON text, or an object"})] = "{}"
    parsed_arguments: Idle = None


class CalledCustom(Closed, frozen=True, kw_only=True):
    """The custom tool that a call names, with its input."""

    name: FullText
    input: Text = ""


class CalledTool(Closed, frozen=True, kw_only=True):
    """A call of a function or a custom tool in an assistant's message, as the SDK returned it, with its `index`."""

    id: FullText
    function: CalledFunction | None = None
    custom: CalledCustom | None = None
    type: Literal["function", "custom"] = "function"
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
    """An earlier answer; none of its parts need be there.

    reasoning_content, by its other name `reasoning`: what a reasoning model thought before it answered. refusal: what
    it said where it declined to answer. function_call: the older form of a call. The last five are what frameworks and
    SDKs keep beside an answer and send back.
    """

    content: SpokenContent | None = None
    name: Text | None = None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    refusal: Text | None = None
    function_call: CalledFunction | None = None
    annotations: Idle = None
    parsed: Idle = None
    provider_specific_fields: Idle = None
    reasoning_details: Idle = None
    thinking_blocks: Idle = None


class FunctionMessage(Closed, frozen=True, kw_only=True, tag_field="role", tag="function"):
    """The result of a call in its older form, `function_call`. name: the function that was called."""

    name: FullText
    content: Content | None = None


class ToolMessage(Closed, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """The result of a tool call. tool_call_id: the call that it answers."""

    tool_call_id: FullText
    content: Content | None = None
    name: Text | None = None


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage

# --- Tools and forms --------------------------------------------------------------------------------------------------


class OfferedFunction(Closed, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class OfferedTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function among the tools that the model may call."""

    function: OfferedFunction
    cache_control: Idle = None


class Grammar(Closed, frozen=True, kw_only=True):
    """A grammar of a custom tool's input."""

    syntax: Literal["lark", "regex"]
    definition: FullText


class AnyText(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A format that leaves the form of a custom tool's input free."""


class GrammarFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="grammar"):
    """A format that a custom tool's input has."""

    grammar: Grammar


class OfferedCustom(Closed, frozen=True, kw_only=True):
    """A custom tool: it takes a text."""

    name: Name
    description: Text | None = None
    format: AnyText | GrammarFormat | None = None


class OfferedCustomTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """A custom tool among the tools that the model may call."""

    custom: OfferedCustom
    cache_control: Idle = None


AnyTool: TypeAlias = OfferedTool | OfferedCustomTool


class ChosenFunction(Closed, frozen=True, kw_only=True):
    """The name of the function, or of the custom tool, that the model must call."""

    name: str


class ChosenTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The function that the model must call."""

    function: ChosenFunction


class ChosenCustomTool(Closed, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """The custom tool that the model must call."""

    custom: ChosenFunction


class AllowedList(Closed, frozen=True, kw_only=True):
    """Tools of which the model may call one ("auto") or must ("required")."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool | ChosenCustomTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Closed, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Those of the tools that may be called in this answer."""

    allowed_tools: AllowedList


ToolChoice: TypeAlias = Annotated[
    Literal["auto", "none", "required", "any"] | ChosenTool | ChosenCustomTool | AllowedTools,
    Meta(extra={"must": 'be "auto", "none", "required", a tool by its type and name, or a list of allowed tools'}),
]
"""Which tools may be called. "any" is another name of "required"."""


class TextFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A response format that leaves the answer's form free."""


class JsonObjectFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """A response format that makes the answer a JSON object, and one that follows `schema` where that is given."""

    schema: JsonSchema | None = None


class NamedSchema(Closed, frozen=True, kw_only=True):
    """A JSON schema with its name. The answer follows it with or without `strict`."""

    name: str | None = None
    description: Annotated[str | None, idle()] = None
    schema: JsonSchema | None = None
    strict: bool | None = None


class JsonSchemaFormat(Closed, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """A response format that makes the answer follow a JSON schema, given as OpenAI has it or as llama-server does."""

    json_schema: NamedSchema | None = None
    schema: JsonSchema | None = None


class StreamOptions(Closed, frozen=True, kw_only=True):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, idle(False)] = None
    continuous_usage_stats: bool | None = None


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TemplateKwargs: TypeAlias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$(?!\n)")], Any],
    Meta(extra={"must": "be an object whose keys are names of the chat template's variables"}),
]

# --- Bodies -----------------------------------------------------------------------------------------------------------


class CommonRequest(LlamaServerDefaults, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that both of OpenAI's routes have, including those of `Sampling`."""

    model: Annotated[
        str,
        Meta(
            description="A model's name, an expert's key, or \"moe2\", as where it is empty: the coordinator chooses.",
            extra={"hint": '"moe2" lets the coordinator choose.'},
        ),
    ] = ""
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000, description="0 and -1 set no limit.")] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.5, le=2, description="Another name of `repeat_penalty`.")] | None = (
        None
    )
    max_tokens: AnswerTokens | None = None
    n_predict: Annotated[AnswerTokens, Meta(description="Another name of `max_tokens`.")] | None = None
    stop: Annotated[
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_STOPS)]
        | None,
        Meta(extra={"must": f"be a non-empty string or a list of at most {MAX_STOPS} such"}),
    ] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
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
    cache_prompt: bool = True
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    best_of: Annotated[Any, only(1)] = None
    suffix: Annotated[Any, only("", why="A gap between two texts is filled on /v1/completions.")] = None
    modalities: Annotated[Any, only(["text"])] = None
    metadata: Annotated[dict[str, Any] | None, idle({})] = None
    prompt_cache_key: Annotated[str | None, idle()] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, idle({})] = None
    prompt_cache_retention: Annotated[str | None, idle()] = None
    safety_identifier: Annotated[str | None, idle()] = None
    service_tier: Annotated[str | None, idle("auto", "default")] = None
    store: Annotated[bool | None, idle(False)] = None
    user: Annotated[str | None, idle()] = None
    verbosity: Annotated[Literal["low", "medium", "high"] | None, idle("medium")] = None


class ChatRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: AnswerTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    tools: Annotated[list[AnyTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    functions: (
        Annotated[list[OfferedFunction], Meta(max_length=MAX_TOOLS, description="What `tools` was before.")] | None
    ) = None
    function_call: Annotated[
        Literal["auto", "none"] | ChosenFunction | None,
        Meta(extra={"must": 'be "auto", "none" or an object with the name of a function'}),
    ] = None
    parallel_tool_calls: bool | None = None
    echo: Annotated[Any, only(False)] = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    prediction: Annotated[dict[str, Any] | None, idle()] = None


class TextRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Text
        | Annotated[
            list[Text | TokenId | Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_PROMPT_IDS)]],
            Meta(min_length=1, max_length=MAX_PROMPT_IDS),
        ],
        Meta(extra={"must": f"be a string, a list of token ids, or a list of at most {MAX_PROMPTS} of either"}),
    ]
    suffix: Annotated[Text, Meta(description="What follows the gap behind `prompt` that is to be filled.")] = ""
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None


class FeedbackRequest(Closed, frozen=True, kw_only=True):
    """The body of `POST /v1/moe2/feedback`."""

    request_id: Annotated[str, Meta(min_length=1, extra={"hint": "It is the x-request-id of an answer."})]
    score: Annotated[float, Meta(ge=0, le=1)]
