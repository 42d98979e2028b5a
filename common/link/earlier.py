"""What a peer of an earlier protocol is told instead of what it would not understand. PURE.

Fields that it does not know it ignores by itself. A new op or a new enum value it cannot read: it would drop a report
as a whole, or never answer a job. A parameter of an answer that it would ignore is not sent either: nothing that was
asked for is dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import inspect
from msgspec.structs import replace

from moe2.common.generation import NEUTRAL_SAMPLING, Generation, Sampling
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    ChatPrompt,
    ExpertReport,
    ExpertState,
    FollowJob,
    FromAgent,
    JobScored,
    NextTokens,
    Report,
    ScoreJob,
    Submit,
    TakeToken,
    TextPrompt,
    ToAgent,
)

OPS_SINCE: dict[type[Report | ToAgent | FromAgent], int] = {
    ScoreJob: 2,
    FollowJob: 2,
    TakeToken: 2,
    NextTokens: 2,
    JobScored: 2,
}
"""The first protocol that knows an op; 1 for all others."""
STATES_SINCE = {ExpertState.COLD: (2, ExpertState.LOADING)}
"""The first protocol that knows a state, and what the ones before it are told. `on_demand` tells the rest."""


def _since(info: inspect.Type) -> int:
    """The first protocol that knows a parameter of this type, where it says so (`generation.since`); else the first."""
    if isinstance(info, inspect.Metadata):
        since: int = (info.extra or {}).get("since", 1)
        return max(since, _since(info.type))
    return max(map(_since, info.types)) if isinstance(info, inspect.UnionType) else 1


def _later(kind: type[Generation | Sampling]) -> dict[str, tuple[int, Any]]:
    """Parameters that came after the first protocol: with which one, and what each is where nobody sets it."""
    info = inspect.type_info(kind)
    fields = info.fields if isinstance(info, inspect.StructType) else ()
    return {field.name: (since, field.default) for field in fields if (since := _since(field.type)) > 1}


PROMPTS_SINCE = 4
"""The first protocol that knows variables for templates, strict tools, and tools beside an answer's form."""
LATER_PARAMETERS = {kind: _later(kind) for kind in (Generation, Sampling)}


@dataclass(frozen=True)
class Unspeakable:
    """A message that an earlier protocol has no word for."""

    since: int


def spoken(message: Report | ToAgent | FromAgent, protocol: int) -> Report | ToAgent | FromAgent | Unspeakable:
    """The message as a peer understands it that speaks `protocol`."""
    if protocol == PROTOCOL_VERSION:
        return message
    since = OPS_SINCE.get(type(message), 1)
    if isinstance(message, Submit):
        since = _protocol_of(message)
    elif isinstance(message, ScoreJob | FollowJob):
        since = max(since, _protocol_of_prompt(message.prompt))
    if protocol < since:
        return Unspeakable(since)
    if isinstance(message, Report) and any(_is_later(expert.state, protocol) for expert in message.experts):
        return replace(message, experts=tuple(_told(expert, protocol) for expert in message.experts))
    return message


def _protocol_of(submit: Submit) -> int:
    """The first protocol that knows every parameter that is set."""
    parameters = ((Generation, submit), (Sampling, submit.sampling))
    set_since = (
        since
        for kind, values in parameters
        for name, (since, default) in LATER_PARAMETERS[kind].items()
        if getattr(values, name) not in (default, getattr(NEUTRAL_SAMPLING, name, default))
    )
    return max((*set_since, _protocol_of_prompt(submit.prompt), _protocol_of_form(submit)))


def _protocol_of_prompt(prompt: ChatPrompt | TextPrompt) -> int:
    """The first protocol that puts all of a prompt before the model."""
    if isinstance(prompt, TextPrompt):
        return 1
    return PROMPTS_SINCE if prompt.chat_template_kwargs != "{}" else 1


def _protocol_of_form(submit: Submit) -> int:
    """The first protocol that keeps to all that a request says of the form of free text and of calls beside it."""
    if isinstance(submit.prompt, TextPrompt) or submit.forced_tools:
        return 1
    tools = submit.prompt.tools
    return PROMPTS_SINCE if any(tool.strict for tool in tools) or (tools and not submit.is_free) else 1


def _is_later(state: ExpertState, protocol: int) -> bool:
    return state in STATES_SINCE and protocol < STATES_SINCE[state][0]


def _told(expert: ExpertReport, protocol: int) -> ExpertReport:
    return replace(expert, state=STATES_SINCE[expert.state][1]) if _is_later(expert.state, protocol) else expert
