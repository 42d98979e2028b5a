"""What a peer of an earlier protocol is told instead of what it would not understand. PURE.

Fields that it does not know it ignores by itself. A new op or a new enum value it cannot read: it would drop a report
as a whole, or never answer a job. A parameter of an answer that it would ignore is not sent either: nothing that was
asked for is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import inspect
from msgspec.structs import replace

from moe2.common.generation import NEUTRAL_SAMPLING, Sampling
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CommandAnswer,
    EmbedJob,
    FollowJob,
    FromAgent,
    JobScored,
    LoadModel,
    NextTokens,
    Report,
    ScoreJob,
    Submit,
    Suspend,
    TakeToken,
    ToAgent,
    UnloadModel,
    Vectors,
    WakeNeighbour,
)
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.link.supply import (
    DeleteFile,
    FetchModel,
    LendFile,
    PullModel,
    ServeModel,
    Ticket,
    TicketWanted,
    WithdrawModel,
)

Spoken = Report | ToAgent | FromAgent | CommandAnswer | TicketWanted
OPS_SINCE: dict[type[Spoken], int] = {
    ScoreJob: 2,
    FollowJob: 2,
    TakeToken: 2,
    NextTokens: 2,
    JobScored: 2,
    EmbedJob: 4,
    Vectors: 4,
    LoadModel: 4,
    UnloadModel: 4,
    Suspend: 4,
    WakeNeighbour: 4,
    ServeModel: 4,
    WithdrawModel: 4,
    FetchModel: 4,
    LendFile: 4,
    PullModel: 4,
    DeleteFile: 4,
    Ticket: 4,
    TicketWanted: 4,
    CommandAnswer: 4,
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


Part = Submit | Sampling | ChatPrompt | ChatMessage | TextPrompt
"""The parts of a job that have parameters of later protocols."""


def _later(kind: type[Part]) -> dict[str, tuple[int, Any]]:
    """Parameters that came after the first protocol: with which one, and what each is where nobody sets it."""
    info = inspect.type_info(kind)
    fields = info.fields if isinstance(info, inspect.StructType) else ()
    return {field.name: (since, field.default) for field in fields if (since := _since(field.type)) > 1}


LATER_PARAMETERS: dict[type[Part], dict[str, tuple[int, Any]]] = {
    kind: _later(kind) for kind in (Submit, Sampling, ChatPrompt, ChatMessage, TextPrompt)
}


@dataclass(frozen=True)
class Unspeakable:
    """A message that an earlier protocol has no word for."""

    since: int


def spoken(message: Spoken, protocol: int) -> Spoken | Unspeakable:
    """The message as a peer understands it that speaks `protocol`."""
    if protocol == PROTOCOL_VERSION:
        return message
    since = OPS_SINCE.get(type(message), 1)
    if isinstance(message, Submit | ScoreJob | FollowJob):
        since = max(since, _protocol_of(message))
    if protocol < since:
        return Unspeakable(since)
    if isinstance(message, Report) and any(_is_later(expert.state, protocol) for expert in message.experts):
        return replace(message, experts=tuple(_told(expert, protocol) for expert in message.experts))
    return message


def _protocol_of(job: Submit | ScoreJob | FollowJob) -> int:
    """The first protocol that knows every parameter that is set."""
    return max((_part_since(kind, part) for kind, part in _parts(job)), default=1)


def _parts(job: Submit | ScoreJob | FollowJob) -> Iterator[tuple[type[Part], Part]]:
    """The parts of a job, each with the kind that its parameters belong to."""
    if isinstance(job, Submit):
        yield Submit, job
        yield Sampling, job.sampling
    yield type(job.prompt), job.prompt
    if isinstance(job.prompt, ChatPrompt):
        yield from ((ChatMessage, message) for message in job.prompt.messages)


def _part_since(kind: type[Part], part: Part) -> int:
    later = LATER_PARAMETERS[kind].items()
    return max(
        (
            since
            for name, (since, default) in later
            if getattr(part, name) not in (default, getattr(NEUTRAL_SAMPLING, name, default))
        ),
        default=1,
    )


def _is_later(state: ExpertState, protocol: int) -> bool:
    return state in STATES_SINCE and protocol < STATES_SINCE[state][0]


def _told(expert: ExpertReport, protocol: int) -> ExpertReport:
    return replace(expert, state=STATES_SINCE[expert.state][1]) if _is_later(expert.state, protocol) else expert
