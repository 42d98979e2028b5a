"""How an answer is to be written: one frozen value, carried whole from a request's body to the decoder.

Each parameter stands here once, with its bounds and its default. The bodies of the API inherit them, the error that
refuses a value and the OpenAPI document are made from them, the wire and the pipe to the engine carry them, and both
ends refuse what is out of bounds. So bounds are part of the protocol: wider ones need a new `PROTOCOL_VERSION`, and a
parameter that is added names the first protocol that knows it (`since`).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

MAX_TOKENS = 2**31 - 1
MAX_ALTERNATIVES = 20
MAX_TOKEN_ID = 2**31 - 1
MAX_TOP_K = 1_000_000
"""The largest `top_k`, beyond every vocabulary: it cuts nothing."""

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
TokenCount: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
GrammarSyntax: TypeAlias = Literal["gbnf", "lark"]
ToolNames: TypeAlias = tuple[str, ...]
Bias: TypeAlias = Annotated[float, Meta(ge=-100, le=100)]

BIASES_TEXT = "map token ids (0 to 2^31 - 1) to values from -100 to 100"


def since(protocol: int) -> dict[str, int]:
    """Returns what a parameter's `Meta(extra=…)` says of the first protocol that knows it."""
    return {"since": protocol}


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is drawn. A value that is None leaves it to the model (see `completed`).

    temperature: 0 is greedy. top_p, min_p: 1 and 0 cut nothing. top_k: `MAX_TOP_K` cuts nothing. seed: None draws a
    fresh one. repeat_penalty: llama.cpp's: logits of tokens that the answer already has are divided by it, or
    multiplied with it where they are negative; 1 changes nothing.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repeat_penalty: Annotated[float, Meta(ge=0.5, le=2, extra=since(3))] | None = None
    logit_bias: Annotated[
        dict[TokenId, Bias],
        Meta(extra={"must": BIASES_TEXT}, extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
    ] = {}


class CompleteSampling(msgspec.Struct, frozen=True, kw_only=True):
    """A `Sampling` with nothing left open: what a sampler is made from.

    top_k: None cuts nothing. seed: None draws a fresh one.
    """

    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repeat_penalty: float
    seed: int | None
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]


USUAL_SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0)
"""What is drawn with where neither the client nor the model says anything: the defaults of llama.cpp's own server."""
NEUTRAL_SAMPLING = Sampling(temperature=1.0, top_k=MAX_TOP_K, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
"""What changes nothing about a model's own distribution."""
MODEL_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
"""The parameters for which a model can have defaults of its own."""


def overlaid(sampling: Sampling, defaults: Sampling) -> Sampling:
    """Returns the sampling with the values of `defaults` where it has none itself."""
    missing = {name: getattr(defaults, name) for name in MODEL_SAMPLING if getattr(sampling, name) is None}
    return msgspec.structs.replace(sampling, **missing) if missing else sampling


def completed(sampling: Sampling, defaults: Sampling) -> CompleteSampling:
    """Returns the sampling with nothing left open: with the values of `defaults`, else of `NEUTRAL_SAMPLING`."""
    values = msgspec.structs.asdict(overlaid(overlaid(sampling, defaults), NEUTRAL_SAMPLING))
    if values["top_k"] == MAX_TOP_K:
        values["top_k"] = None
    return CompleteSampling(**values)


class ToolRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rules that an answer keeps to which may call the prompt's tools, but need not.

    strict: names of the tools whose `parameters` the arguments of a call follow; those of others are any JSON object.
    parallel: False where the answer makes one call at most, and ends after it.
    """

    strict: ToolNames = ()
    parallel: bool = True


class Generation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What describes the text to be written, whoever writes it.

    max_tokens: None means until the context is full, and so does a number beyond what the context leaves. 0 writes
    nothing: the prompt is only read, as `echo` has it.
    logprobs: None for none, otherwise alternatives per token.
    json_schema: the answer is JSON that follows this schema, given as JSON text ("{}": any object). grammar: the answer
    follows this grammar, written in `grammar_syntax`. forced_tools: the answer is one call of one of these tools. At
    most one of the three.
    tool_rules: None where the model calls the prompt's tools as it likes, or has none. Else the answer is text, which
    follows `json_schema` or `grammar` where one is set, or calls of the prompt's tools, which keep to these rules.
    echo: the prompt's own tokens come before the answer, as pieces like its. With `logprobs` each has its
    log-probability after those before it; the first one's is None.
    thinking_budget_tokens: the most tokens between a reasoning model's thinking marks; None for no limit, 0 for none.
    cache_prompt: False where the prompt is read anew, whatever the expert has of it in its cache.
    """

    sampling: Sampling = Sampling()
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    stop: tuple[str, ...] = ()
    logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    json_schema: str | None = None
    grammar: str | None = None
    grammar_syntax: Annotated[GrammarSyntax, Meta(extra=since(3))] = "gbnf"
    forced_tools: ToolNames = ()
    tool_rules: Annotated[ToolRules | None, Meta(extra=since(4))] = None
    echo: Annotated[bool, Meta(extra=since(4))] = False
    thinking_budget_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS, extra=since(4))] | None = None
    cache_prompt: Annotated[bool, Meta(extra=since(4))] = True

    @property
    def only_counts(self) -> bool:
        """True where nothing is asked for but how long the prompt is."""
        return self.max_tokens == 0 and not self.echo

    @property
    def is_free(self) -> bool:
        """True where the answer may have any form."""
        is_bound = self.json_schema is not None or self.grammar is not None or self.tool_rules is not None
        return not is_bound and not self.forced_tools
