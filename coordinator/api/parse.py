"""Request bodies to moe2's words. PURE. Every parameter is honoured or refused with its name, none is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from pydantic import ValidationError

from moe2.common.messages import ChatPrompt, Sampling, TextPrompt
from moe2.coordinator.api.conversation import messages_of
from moe2.coordinator.api.errors import invalid, quoted, refused, unsupported
from moe2.coordinator.api.fields import clean, flag, number, text_of
from moe2.coordinator.api.modes import ballot_of, modes_of
from moe2.coordinator.api.tools import structure_of, tools_of
from moe2.coordinator.ballot import Ballot
from moe2.coordinator.budgets import Mode, Wish
from moe2.coordinator.errors import ErrorCode
from moe2.coordinator.structure import Structure

NO_HEADERS: Mapping[str, str] = {}
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
MOST_COMPLETION_LOGPROBS = 5


@dataclass(frozen=True)
class Call:
    """A parsed request. logprobs: None for none, else the number of alternatives per token. modes: those that can serve
    it. ballot: the choices that its answer is one of.
    """

    model: str
    prompt: ChatPrompt | TextPrompt
    sampling: Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    stream: bool
    include_usage: bool
    user: str | None
    wish: Wish
    structure: Structure
    modes: frozenset[Mode]
    ballot: Ballot | None

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, ChatPrompt)

    @property
    def tool_names(self) -> frozenset[str]:
        """Tools that the answer may call."""
        return (
            frozenset(tool.name for tool in self.prompt.tools) if isinstance(self.prompt, ChatPrompt) else frozenset()
        )

    def prompt_texts(self) -> list[str]:
        """Everything that becomes tokens of the prompt; the last message comes last."""
        if isinstance(self.prompt, TextPrompt):
            return [self.prompt.text]
        tools = [f"{tool.name}{tool.description or ''}{tool.parameters}" for tool in self.prompt.tools]
        calls = [f"{call.name}{call.arguments}" for message in self.prompt.messages for call in message.tool_calls]
        return [*tools, *calls, *(message.content for message in self.prompt.messages)]


# Parameters that are accepted only with the value that changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "functions": ([],),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
_COMMON = {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "stop",
    "user",
    "logprobs",
    "moe2",
    "response_format",
    "grammar",
}
_SAMPLING = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
}
_TOOLS = {"tools", "tool_choice", "parallel_tool_calls"}
CHAT_FIELDS = _COMMON | _SAMPLING | _TOOLS | {"messages", "max_completion_tokens", "top_logprobs"}
TEXT_FIELDS = _COMMON | _SAMPLING | {"prompt"}


def parse_chat(body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Call:
    """`POST /v1/chat/completions`. Raises `ApiError` (400) naming the parameter."""
    fields = _fields(body, CHAT_FIELDS)
    wants_logprobs = flag(fields, "logprobs")
    top_logprobs = number(fields, "top_logprobs", int, 0, MOST_TOP_LOGPROBS)
    if top_logprobs is not None and not wants_logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    max_tokens = number(fields, "max_tokens", int, 1, 2**31 - 1)
    newer = number(fields, "max_completion_tokens", int, 1, 2**31 - 1)
    if max_tokens is not None and newer is not None and max_tokens != newer:
        raise invalid("Set 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
    tools, structure = tools_of(fields)
    if tools and wants_logprobs:
        raise unsupported("logprobs", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    return _call(
        fields,
        ChatPrompt(messages=messages_of(fields.get("messages")), tools=tools),
        structure,
        max_tokens=max_tokens if newer is None else newer,
        logprobs=(top_logprobs or 0) if wants_logprobs else None,
        headers=headers,
    )


def parse_completion(body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Call:
    """`POST /v1/completions`. Raises `ApiError` (400) naming the parameter."""
    fields = _fields(body, TEXT_FIELDS)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise invalid("'prompt' must be one string; send several prompts as several requests.", param="prompt")
    max_tokens = number(fields, "max_tokens", int, 1, 2**31 - 1)
    return _call(
        fields,
        TextPrompt(text=clean(prompt, "prompt")),
        structure_of(fields),
        # OpenAI's documented default of this older route.
        max_tokens=16 if max_tokens is None else max_tokens,
        logprobs=number(fields, "logprobs", int, 0, MOST_COMPLETION_LOGPROBS),
        headers=headers,
    )


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refused(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise refused(ErrorCode.INVALID_JSON, "The body must be a JSON object.")
    # OpenAI's clients and servers read an explicit null as "not set".
    fields = {name: value for name, value in content.items() if value is not None}
    for name, value in fields.items():
        if name in known:
            continue
        neutral = NEUTRAL.get(name)
        if neutral is None:
            raise unsupported(name)
        # By type as well: to Python, true equals 1.
        if not any(type(value) is type(accepted) and value == accepted for accepted in neutral):
            raise unsupported(name, hint=f"Only {neutral[0]!r} is accepted.")
    return fields


def _call(
    fields: Mapping[str, Any],
    prompt: ChatPrompt | TextPrompt,
    structure: Structure,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    headers: Mapping[str, str],
) -> Call:
    stream = flag(fields, "stream")
    sampling, wish = _sampling(fields), _wish(fields.get("moe2", {}), headers)
    has_tools = isinstance(prompt, ChatPrompt) and bool(prompt.tools)
    if has_tools and wish.choices is not None:
        raise unsupported("moe2.choices", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    ballot, structure = ballot_of(wish, structure)
    return Call(
        model=_model(fields),
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=_stop(fields.get("stop")),
        logprobs=logprobs,
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
        user=text_of(fields, "user"),
        wish=wish,
        structure=structure,
        modes=modes_of(
            fields,
            wish=wish,
            sampling=sampling,
            ballot=ballot,
            structure=structure,
            logprobs=logprobs,
            has_tools=has_tools,
        ),
        ballot=ballot,
    )


def _model(fields: Mapping[str, Any]) -> str:
    model = text_of(fields, "model")
    if not model:
        raise invalid("'model' is required; \"moe2\" lets the coordinator choose.", param="model")
    return model


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    return Sampling(
        temperature=_or(number(fields, "temperature", float, 0, 2), 1.0),
        top_p=_or(number(fields, "top_p", float, 0, 1), 1.0),
        top_k=number(fields, "top_k", int, 1, 1_000_000),
        min_p=number(fields, "min_p", float, 0, 1),
        seed=_seed(fields),
        frequency_penalty=_or(number(fields, "frequency_penalty", float, -2, 2), 0.0),
        presence_penalty=_or(number(fields, "presence_penalty", float, -2, 2), 0.0),
        logit_bias=_logit_bias(fields.get("logit_bias")),
    )


def _seed(fields: Mapping[str, Any]) -> int | None:
    seed = number(fields, "seed", int, -(2**63), 2**63 - 1)
    # llama.cpp's samplers take 32 bits, of which the highest value means "draw one".
    return None if seed is None else seed % (2**32 - 1)


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    try:
        biases = msgspec.convert(value, dict[int, float], strict=False)
    except msgspec.ValidationError as error:
        raise invalid(f"'logit_bias' must map token ids to numbers: {error}", param="logit_bias") from None
    if not all(-100 <= bias <= 100 for bias in biases.values()) or not all(0 <= token < 2**31 for token in biases):
        raise invalid("'logit_bias' maps token ids (0 to 2^31 - 1) to values from -100 to 100.", param="logit_bias")
    return biases


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid("'stop' must be a non-empty string or a list of such.", param="stop")
    if len(stops) > MOST_STOPS:
        raise invalid(f"'stop' takes at most {MOST_STOPS} strings.", param="stop")
    return tuple(stops)


def _include_usage(fields: Mapping[str, Any], *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("'stream_options' needs 'stream': true.", param="stream_options")
    if not isinstance(options, dict):
        raise invalid("'stream_options' must be an object.", param="stream_options")
    for name in options:
        if name != "include_usage":
            raise unsupported(f"stream_options.{name}")
    return flag(options, "include_usage")


def _wish(body: Any, headers: Mapping[str, str]) -> Wish:
    """Budgets from the body's `moe2` object, else from headers such as `x-moe2-energy-budget-j`."""
    if not isinstance(body, dict):
        raise invalid("'moe2' must be an object.", param="moe2")
    wish = {
        name: headers[header]
        for name in Wish.model_fields
        if name != "choices" and (header := f"x-moe2-{name.replace('_', '-')}") in headers
    }
    wish |= {name: value for name, value in body.items() if value is not None}
    for name, value in wish.items():
        # Pydantic would read true as 1.
        if isinstance(value, bool) and name in Wish.model_fields and not _takes_flag(name):
            raise invalid(f"'moe2.{name}' must not be a boolean.", param=f"moe2.{name}")
    try:
        return Wish.model_validate(wish)
    except ValidationError as error:
        fault = error.errors()[0]
        param = ".".join(("moe2", *(str(part) for part in fault["loc"])))
        if fault["type"] == "extra_forbidden":
            raise unsupported(param, hint=f"Known: {', '.join(Wish.model_fields)}.") from None
        raise invalid(f"'{param}': {fault['msg']} (got {quoted(fault['input'])}).", param=param) from None


def _takes_flag(name: str) -> bool:
    return bool in (Wish.model_fields[name].annotation, *get_args(Wish.model_fields[name].annotation))


def _or(value: Any, default: float) -> float:
    return default if value is None else value
