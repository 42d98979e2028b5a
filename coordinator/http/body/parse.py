"""The parser of request bodies: every parameter is honoured, or refused by its name. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from pydantic import ValidationError

from moe2.common.generation import Generation, Sampling
from moe2.common.link.messages import ChatPrompt, TextPrompt
from moe2.coordinator.choosing.request import Ballot, Mode, Wish
from moe2.coordinator.http.body.conversation import messages_of, without_empty_fields
from moe2.coordinator.http.body.decode import convert, json_object
from moe2.coordinator.http.body.modes import ballot_of, modes_of
from moe2.coordinator.http.body.requests import ChatRequest, CommonRequest, TextRequest
from moe2.coordinator.http.body.tools import Structure, structure_of, tools_of
from moe2.coordinator.http.errors import invalid, quoted, unsupported

NO_HEADERS: Mapping[str, str] = {}
COMPLETION_TOKENS = 16
"""The default of `max_tokens` on OpenAI's older route, as documented."""


@dataclass(frozen=True)
class Call:
    """A parsed request of either route."""

    model: str
    prompt: ChatPrompt | TextPrompt
    generation: Generation
    structured_by: str | None
    """The parameter that asked for the answer's form; None where the form is free."""
    stream: bool
    include_usage: bool
    user: str | None
    wish: Wish
    modes: frozenset[Mode]
    """The modes that can serve the request."""
    ballot: Ballot | None
    """The choices that the answer is one of; None where it is not."""

    @property
    def is_chat(self) -> bool:
        """True for a chat completion, False for a text completion."""
        return isinstance(self.prompt, ChatPrompt)

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities were asked for."""
        return self.generation.logprobs is not None

    @property
    def tool_names(self) -> frozenset[str]:
        """The tools that the answer may call."""
        return (
            frozenset(tool.name for tool in self.prompt.tools) if isinstance(self.prompt, ChatPrompt) else frozenset()
        )

    def prompt_texts(self) -> list[str]:
        """Returns everything that becomes tokens of the prompt; the last message comes last."""
        if isinstance(self.prompt, TextPrompt):
            return [self.prompt.text]
        tools = [f"{tool.name}{tool.description or ''}{tool.parameters}" for tool in self.prompt.tools]
        calls = [f"{call.name}{call.arguments}" for message in self.prompt.messages for call in message.tool_calls]
        return [*tools, *calls, *(message.content for message in self.prompt.messages)]


def parse_chat(body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Call:
    """Parses the body of `POST /v1/chat/completions`. Raises `ApiError` (400), which names the parameter."""
    return read_chat(json_object(body), headers)


def read_chat(fields: dict[str, Any], headers: Mapping[str, str]) -> Call:
    """Parses the fields of a chat completion; none is null. Raises `ApiError` (400), which names the parameter."""
    fields["messages"] = without_empty_fields(fields.get("messages", []))
    chat = convert(fields, ChatRequest)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    max_tokens, newer = chat.max_tokens, chat.max_completion_tokens
    if max_tokens is not None and newer is not None and max_tokens != newer:
        raise invalid("Set 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
    tools, structure = tools_of(chat)
    if tools and chat.logprobs:
        raise unsupported("logprobs", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    return _call(
        chat,
        ChatPrompt(messages=messages_of(chat.messages), tools=tools),
        structure,
        max_tokens=max_tokens if newer is None else newer,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        fields=fields,
        headers=headers,
    )


def parse_completion(body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Call:
    """Parses the body of `POST /v1/completions`. Raises `ApiError` (400), which names the parameter."""
    fields = json_object(body)
    text = convert(fields, TextRequest)
    return _call(
        text,
        TextPrompt(text=text.prompt if isinstance(text.prompt, str) else text.prompt[0]),
        structure_of(text),
        max_tokens=COMPLETION_TOKENS if text.max_tokens is None else text.max_tokens,
        logprobs=text.logprobs,
        fields=fields,
        headers=headers,
    )


def _call(
    body: CommonRequest,
    prompt: ChatPrompt | TextPrompt,
    structure: Structure,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    fields: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Call:
    """Builds the parsed request. fields: the body's own, which tell what was set."""
    wish = _wish(body.moe2 or {}, headers)
    has_tools = isinstance(prompt, ChatPrompt) and bool(prompt.tools)
    if has_tools and wish.choices is not None:
        raise unsupported("moe2.choices", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    ballot, structure = ballot_of(wish, structure)
    generation = msgspec.structs.replace(
        structure.form,
        sampling=_sampling(body),
        max_tokens=max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        logprobs=logprobs,
    )
    return Call(
        model=body.model,
        prompt=prompt,
        generation=generation,
        structured_by=structure.param,
        stream=body.stream,
        include_usage=_include_usage(body),
        user=body.user,
        wish=wish,
        modes=modes_of(fields, wish, generation, ballot, structured_by=structure.param, has_tools=has_tools),
        ballot=ballot,
    )


def _sampling(body: Sampling) -> Sampling:
    """Returns the part of a body that says how tokens are drawn."""
    sampling = Sampling(**{name: getattr(body, name) for name in Sampling.__struct_fields__})
    if sampling.seed is None:
        return sampling
    # llama.cpp's samplers take 32 bits, of which the highest value means "draw one".
    return msgspec.structs.replace(sampling, seed=sampling.seed % (2**32 - 1))


def _include_usage(body: CommonRequest) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise invalid("'stream_options' needs 'stream': true.", param="stream_options")
    return bool(body.stream_options.include_usage)


def _wish(body: Mapping[str, Any], headers: Mapping[str, str]) -> Wish:
    """Returns the budgets from the body's `moe2` object, else from headers such as `x-moe2-energy-budget-j`."""
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
