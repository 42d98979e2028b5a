"""The parser of request bodies: every parameter is honoured, or refused by its name. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError

from moe2.common.generation import MAX_TOKENS, MAX_TOP_K, Generation, Sampling
from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.coordinator.choosing.request import NO_WISH, Ballot, Demand, Mode, Wish, estimate_prompt_tokens
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.http.body.decode import convert, idle_parameters, json_object, without_unknown
from moe2.coordinator.http.body.embeddings import tokens_in
from moe2.coordinator.http.body.modes import ballot_of, modes_of
from moe2.coordinator.http.body.prompt import (
    messages_of,
    prompts_of,
    set_by,
    split_begun,
    thinking_of,
    without_empty_fields,
)
from moe2.coordinator.http.body.requests import MAX_PROMPTS, ChatRequest, CommonRequest, TextRequest
from moe2.coordinator.http.body.tools import Offered, Structure, offered_by, structure_of
from moe2.coordinator.http.errors import invalid, quoted, unsupported

B = TypeVar("B", bound=msgspec.Struct)

NO_HEADERS: Mapping[str, str] = {}
COMPLETION_TOKENS = 16
"""The default of `max_tokens` on OpenAI's older route, as documented."""
MAX_CHARACTERS_PER_TOKEN = 128
"""No vocabulary has a longer token: the longest ones known stand for 128 spaces."""


@dataclass(frozen=True)
class Reading:
    """How the settings have bodies read."""

    ignore_unknown: bool = False
    """Whether parameters that moe2 does not know are left out; else they are refused."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Models by the other names that clients may use for them."""


STRICT = Reading()
NOTHING_OFFERED = Offered()
_WISH_HEADERS = {f"x-moe2-{name.replace('_', '-')}": name for name in Wish.model_fields if name != "choices"}
"""The headers that a wish can come in, with the names of what they set."""
N_SEEDS = 2**32 - 1
"""llama.cpp's samplers take 32 bits, of which the highest value means "draw one"."""


class Call(msgspec.Struct, frozen=True):
    """A parsed request of either route."""

    model: str
    prompt: ChatPrompt | TextPrompt
    generation: Generation
    structured_by: str | None
    """The parameter that asked for the answer's form; None where the form is free."""
    stream: bool
    include_usage: bool
    wish: Wish
    modes: frozenset[Mode]
    """The modes that can serve the request."""
    ballot: Ballot | None
    """The choices that the answer is one of; None where it is not."""
    prefix: str = ""
    """How the answer begins: the client has this already."""
    more_prompts: tuple[TextPrompt, ...] = ()
    """The prompts after the first one, of a body that has several."""
    continuous_usage: bool = False
    """Whether each chunk of a stream tells the usage so far."""
    n: int = 1
    """The number of answers to each prompt."""
    repeats_prompt: bool = False
    """Whether the answer is shown behind its prompt, which the expert does not send."""
    texts: tuple[TextPrompt, ...] = ()
    """The texts that vectors are asked for; none where an answer is to be written."""
    vector_size: int | None = None
    """The length of the vectors; None for that which the model makes."""
    offered: Offered = NOTHING_OFFERED
    """The tools that the answer may call, and how its calls are shown."""
    ignored: tuple[str, ...] = ()
    """The parameters that changed nothing: those that moe2 accepts for clients' sake, and unknown ones."""
    variables: Mapping[str, str] = {}
    """The variables of the chat template that the request sets, each with the parameter that sets it."""

    def called(self, names: Mapping[str, str]) -> Call:
        """Returns the call with its parameters called as a face calls them. names: the face's, by the usual ones."""
        return replace(
            self,
            structured_by=self.structured_by and names.get(self.structured_by, self.structured_by),
            ignored=tuple(names.get(name, name) for name in self.ignored),
            variables={variable: names.get(name, name) for variable, name in self.variables.items()},
        )

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

    @property
    def n_choices(self) -> int:
        """The number of answers that the request asks for."""
        return (1 + len(self.more_prompts)) * self.n

    def demand(self) -> Demand:
        """Returns the estimated length of what is to be read and written."""
        if self.texts:
            lengths = [tokens_in(text) for text in self.texts]
            return Demand(sum(lengths), self.generation.max_tokens, longest_text_tokens=max(lengths))
        return Demand(self.prompt_tokens(), self.generation.max_tokens)

    def prompt_tokens(self) -> int:
        """Returns the estimated length of the prompt; that of given token ids is exact."""
        if isinstance(self.prompt, TextPrompt):
            ends = [self.prompt.suffix] if self.prompt.suffix else []
            if self.prompt.tokens:
                return len(self.prompt.tokens) + (estimate_prompt_tokens(ends) if ends else 0)
            return estimate_prompt_tokens([self.prompt.text, *ends])
        texts = [f"{tool.name}{tool.description or ''}{tool.parameters}" for tool in self.prompt.tools]
        if self.prefix:
            texts.append(self.prefix)
        for message in self.prompt.messages:
            thought = message.reasoning_content
            texts.append(message.content if thought is None else thought + message.content)
            texts += [f"{call.name}{call.arguments}" for call in message.tool_calls]
        return estimate_prompt_tokens(texts)

    def least_tokens(self) -> int:
        """Returns how many tokens the longest of the prompts has for certain, whatever the vocabulary is."""
        if not self.texts and not self.more_prompts:
            return _least_tokens(self.prompt)
        prompts: tuple[ChatPrompt | TextPrompt, ...] = self.texts or (self.prompt, *self.more_prompts)
        return max(map(_least_tokens, prompts))

    def choices(self) -> tuple[Call, ...]:
        """Returns a call for each answer, in the order of their index: all answers to the first prompt come first.

        They share the energy budget evenly. Answers to the same prompt have different seeds.
        """
        if self.n_choices == 1:
            return (self,)
        energy_j = self.wish.energy_budget_j
        share_j = None if energy_j is None else energy_j / self.n_choices
        wish = self.wish.model_copy(update={"energy_budget_j": share_j})
        return tuple(
            replace(self, prompt=prompt, generation=_reseeded(self.generation, nth), wish=wish, more_prompts=(), n=1)
            for prompt in (self.prompt, *self.more_prompts)
            for nth in range(self.n)
        )


def _least_tokens(prompt: ChatPrompt | TextPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        n_before = len(prompt.tokens) or len(prompt.text) // MAX_CHARACTERS_PER_TOKEN
        return n_before + len(prompt.suffix) // MAX_CHARACTERS_PER_TOKEN
    n_said = 0
    for message in prompt.messages:
        n_said += len(message.content) + len(message.reasoning_content or "")
    return n_said // MAX_CHARACTERS_PER_TOKEN


def parse_chat(body: bytes, headers: Mapping[str, str] = NO_HEADERS, reading: Reading = STRICT) -> Call:
    """Parses the body of `POST /v1/chat/completions`. Raises `ApiError` (400), which names the parameter."""
    return read_chat(json_object(body), headers, reading)


def read_chat(fields: dict[str, Any], headers: Mapping[str, str] = NO_HEADERS, reading: Reading = STRICT) -> Call:
    """Parses the fields of a chat completion, without those that are null. Raises `ApiError` (400), as `parse_chat`."""
    fields["messages"] = without_empty_fields(fields.get("messages", []))
    chat, ignored = read_struct(fields, ChatRequest, reading)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    offered = offered_by(chat)
    messages, prefix = split_begun(messages_of(chat.messages))
    kwargs, budget_tokens = thinking_of(chat.reasoning_effort, chat.chat_template_kwargs or {})
    call = _call(
        chat,
        ChatPrompt(messages=messages, tools=offered.tools, template_kwargs=kwargs),
        offered.structure,
        {
            "max_tokens": _limit(*_most_tokens(fields, ("max_completion_tokens", "max_tokens", "n_predict"))),
            "logprobs": (chat.top_logprobs or 0) if chat.logprobs else None,
            "thinking_budget_tokens": budget_tokens,
        },
        for_one="tools" if offered.tools else "messages" if prefix else None,
        fields=fields,
        headers=headers,
        reading=reading,
    )
    variables = set_by(chat.reasoning_effort, chat.chat_template_kwargs or {})
    return replace(call, prefix=prefix, offered=offered, ignored=(*ignored, *offered.left_out), variables=variables)


def parse_completion(body: bytes, headers: Mapping[str, str] = NO_HEADERS, reading: Reading = STRICT) -> Call:
    """Parses the body of `POST /v1/completions`. Raises `ApiError` (400), which names the parameter."""
    return read_completion(json_object(body, but_for="max_tokens"), headers, reading)


def read_completion(fields: dict[str, Any], headers: Mapping[str, str] = NO_HEADERS, reading: Reading = STRICT) -> Call:
    """Parses the fields of a text completion, of which only `max_tokens` may be null, for no limit. Raises `ApiError`
    (400), as `parse_completion`."""
    text, ignored = read_struct(fields, TextRequest, reading)
    prompt, *more = (replace(each, suffix=text.suffix) for each in prompts_of(text.prompt))
    if (1 + len(more)) * text.n > MAX_PROMPTS:
        raise invalid(f"'prompt' times 'n' must be at most {MAX_PROMPTS}.", param="n")
    if text.suffix and text.echo:
        raise unsupported("echo", hint="Together with 'suffix' it must be false.")
    max_tokens, name = _most_tokens(fields, ("max_tokens", "n_predict"))
    only_reads = max_tokens == 0 and text.echo
    # Only the expert knows the tokens of a prompt, and what given ids stand for.
    by_expert = text.echo and (text.logprobs is not None or bool(prompt.tokens) or only_reads)
    if name not in fields:
        max_tokens = COMPLETION_TOKENS
    call = _call(
        text,
        prompt,
        structure_of(text),
        {
            "max_tokens": 0
            if only_reads
            else _limit(max_tokens, name, hint=" With 'echo': true, 0 scores the prompt."),
            "logprobs": text.logprobs,
            "echo": by_expert,
        },
        for_one="echo" if text.echo else "suffix" if text.suffix else "prompt" if prompt.tokens else None,
        fields=fields,
        headers=headers,
        reading=reading,
    )
    return replace(call, more_prompts=tuple(more), repeats_prompt=text.echo and not by_expert, ignored=ignored)


def read_struct(fields: dict[str, Any], kind: type[B], reading: Reading) -> tuple[B, tuple[str, ...]]:
    """Returns a body as its struct, and which parameters change nothing. Unknown ones are taken out of `fields`."""
    unknown: tuple[str, ...] = ()
    if reading.ignore_unknown:
        kept, unknown = without_unknown(fields, kind)
        fields.clear()
        fields.update(kept)
    return convert(fields, kind), (*unknown, *idle_parameters(fields, kind))


def _most_tokens(fields: Mapping[str, Any], names: Sequence[str]) -> tuple[int | None, str]:
    """Returns the limit of an answer's tokens that a body sets by one of several names, and that name."""
    said = [name for name in names if fields.get(name) is not None]
    for name in said[1:]:
        if fields[name] != fields[said[0]]:
            raise invalid(f"Set '{said[0]}' or '{name}', not both.", param=name)
    name = said[0] if said else names[0]
    return fields.get(name), name


def _limit(tokens: int | None, param: str, *, hint: str = "") -> int | None:
    """Returns the limit of an answer's tokens that a body sets; None for none."""
    if tokens == 0:
        raise invalid(f"'{param}' must be at least 1; -1 or null sets no limit.{hint}", param=param)
    return None if tokens is None or tokens < 0 else min(tokens, MAX_TOKENS)


def _reseeded(generation: Generation, nth: int) -> Generation:
    """Returns the generation for the nth answer to one prompt: with the same seed all would be the same."""
    if generation.sampling.seed is None or nth == 0:
        return generation
    sampling = replace(generation.sampling, seed=(generation.sampling.seed + nth) % N_SEEDS)
    return replace(generation, sampling=sampling)


def _call(
    body: CommonRequest,
    prompt: ChatPrompt | TextPrompt,
    structure: Structure,
    more: Mapping[str, Any],
    *,
    for_one: str | None,
    fields: Mapping[str, Any],
    headers: Mapping[str, str],
    reading: Reading,
) -> Call:
    """Builds the parsed request.

    structure: the answer's form. more: what else the route says of its `Generation`. for_one: the parameter that only
    one expert alone can honour. fields: the body's own, which tell what was set.
    """
    options = body.stream_options
    if options is not None and not body.stream:
        raise invalid("'stream_options' needs 'stream': true.", param="stream_options")
    wish = wish_of(body.moe2 or {}, headers)
    has_tools = isinstance(prompt, ChatPrompt) and bool(prompt.tools)
    if has_tools and wish.choices is not None:
        raise unsupported("moe2.choices", hint="Together with 'tools' it needs 'tool_choice': \"none\".")
    ballot, structure = ballot_of(wish, structure)
    generation = replace(
        structure.form,
        sampling=_sampling(body),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        cache_prompt=body.cache_prompt,
        **more,
    )
    if wish.thinking_budget_tokens is not None:
        generation = replace(generation, thinking_budget_tokens=wish.thinking_budget_tokens)
    return Call(
        model=reading.aliases.get(body.model, body.model if body.model.strip() else ANY_MODEL[0]),
        prompt=prompt,
        generation=generation,
        structured_by=structure.param,
        stream=body.stream,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        wish=wish,
        modes=modes_of(fields, wish, generation, ballot, structured_by=structure.param, for_one=for_one),
        ballot=ballot,
        n=body.n,
    )


def _sampling(body: CommonRequest) -> Sampling:
    """Returns the part of a body that says how tokens are drawn."""
    drawn = {name: getattr(body, name) for name in Sampling.__struct_fields__}
    if body.top_k is not None and body.top_k <= 0:
        drawn["top_k"] = MAX_TOP_K
    if body.repetition_penalty is not None:
        if body.repeat_penalty not in (None, body.repetition_penalty):
            raise invalid("Set 'repeat_penalty' or 'repetition_penalty', not both.", param="repetition_penalty")
        drawn["repeat_penalty"] = body.repetition_penalty
    if body.seed is not None:
        drawn["seed"] = body.seed % N_SEEDS
    return Sampling(**drawn)


def wish_of(body: Mapping[str, Any], headers: Mapping[str, str]) -> Wish:
    """Returns the budgets from the body's `moe2` object, else from headers such as `x-moe2-energy-budget-j`."""
    wish = {name: headers[header] for header, name in _WISH_HEADERS.items() if header in headers}
    if body:
        wish |= {name: value for name, value in body.items() if value is not None}
    if not wish:
        return NO_WISH
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
