"""What a peer of an earlier protocol is told instead of what it would not understand. PURE.

Fields that it does not know it ignores by itself. A new op or a new enum value it cannot read: it would drop a report
as a whole, or never answer a job.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from moe2.common.messages import (
    ExpertReport,
    ExpertState,
    FollowJob,
    FromAgent,
    JobScored,
    NextTokens,
    Report,
    ScoreJob,
    TakeToken,
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


@dataclass(frozen=True)
class Unspeakable:
    """There is no earlier word for it."""

    since: int


def spoken(message: Report | ToAgent | FromAgent, protocol: int) -> Report | ToAgent | FromAgent | Unspeakable:
    """The message as a peer understands it that speaks `protocol`."""
    since = OPS_SINCE.get(type(message), 1)
    if protocol < since:
        return Unspeakable(since)
    if isinstance(message, Report) and any(_is_later(expert.state, protocol) for expert in message.experts):
        return replace(message, experts=tuple(_told(expert, protocol) for expert in message.experts))
    return message


def _is_later(state: ExpertState, protocol: int) -> bool:
    return state in STATES_SINCE and protocol < STATES_SINCE[state][0]


def _told(expert: ExpertReport, protocol: int) -> ExpertReport:
    return replace(expert, state=STATES_SINCE[expert.state][1]) if _is_later(expert.state, protocol) else expert
