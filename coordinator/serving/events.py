"""What can happen to a request. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.link.messages import JobDone, JobFailed, JobScored, JobStarted, NextTokens, TokenPiece
from moe2.coordinator.choosing.result import NoExpert, Selection


@dataclass(frozen=True)
class Admitted:
    """The first event of every request."""


@dataclass(frozen=True)
class ExpertsChosen:
    """Experts were chosen as the request had asked, or there is a reason why none can answer it."""

    chosen: Selection | NoExpert


@dataclass(frozen=True)
class HedgeAnswered:
    """The request may, or may not, have a second expert try beside a late one."""

    is_allowed: bool


@dataclass(frozen=True)
class RoomAppeared:
    """For a request that waits: an expert may have room for it."""


@dataclass(frozen=True)
class RoomRefused:
    """For a request that waits or wants to: there is no place for it."""


@dataclass(frozen=True)
class AttemptStarted:
    started: JobStarted


@dataclass(frozen=True)
class TokensArrived:
    job_id: str
    pieces: tuple[TokenPiece, ...]


@dataclass(frozen=True)
class NextTokensArrived:
    """What a following expert thinks of the next token."""

    next_tokens: NextTokens


@dataclass(frozen=True)
class AttemptDone:
    done: JobDone


@dataclass(frozen=True)
class AttemptScored:
    scored: JobScored


@dataclass(frozen=True)
class AttemptFailed:
    failed: JobFailed


@dataclass(frozen=True)
class AgentLost:
    agent_id: str


@dataclass(frozen=True)
class ClientGone:
    """The client disconnected."""


@dataclass(frozen=True)
class ServiceStopping:
    """The coordinator shuts down and cannot wait any longer."""


@dataclass(frozen=True)
class HandlingFailed:
    """Handling an earlier event of this request, or an effect of it, raised an exception."""


@dataclass(frozen=True)
class TimePassed:
    """`next_deadline_s` has been reached."""


Event = (
    Admitted
    | ExpertsChosen
    | HedgeAnswered
    | RoomAppeared
    | RoomRefused
    | AttemptStarted
    | TokensArrived
    | NextTokensArrived
    | AttemptDone
    | AttemptScored
    | AttemptFailed
    | AgentLost
    | ClientGone
    | ServiceStopping
    | HandlingFailed
    | TimePassed
)
