"""What can happen to a request. PURE."""

from __future__ import annotations

import msgspec

from moe2.common.link.messages import JobDone, JobFailed, JobScored, JobStarted, NextTokens, TokenPiece
from moe2.coordinator.choosing.result import NoExpert, Selection


class Admitted(msgspec.Struct, frozen=True):
    """The request has been admitted. It is the first event of every request."""


class ExpertsChosen(msgspec.Struct, frozen=True):
    """Experts were chosen as the request had asked, or there is a reason why none can answer it."""

    chosen: Selection | NoExpert


class HedgeAnswered(msgspec.Struct, frozen=True):
    """The request may, or may not, have a second expert try beside a late one."""

    is_allowed: bool


class RoomAppeared(msgspec.Struct, frozen=True):
    """An expert may have room for this request, which waits."""


class RoomRefused(msgspec.Struct, frozen=True):
    """There is no place in the queue for this request, which waits or wants to."""


class AttemptStarted(msgspec.Struct, frozen=True):
    """An expert has begun to work on a job."""

    started: JobStarted


class TokensArrived(msgspec.Struct, frozen=True):
    """An expert has written a part of its answer."""

    job_id: str
    pieces: tuple[TokenPiece, ...]


class VectorsArrived(msgspec.Struct, frozen=True):
    """An expert has embedded some of the texts."""

    job_id: str
    vectors: tuple[bytes, ...]


class NextTokensArrived(msgspec.Struct, frozen=True):
    """A following expert has said what it thinks of the next token."""

    next_tokens: NextTokens


class AttemptDone(msgspec.Struct, frozen=True):
    """An expert has completed its answer, or stopped as it was told to."""

    done: JobDone


class AttemptScored(msgspec.Struct, frozen=True):
    """An expert has scored what it was asked to."""

    scored: JobScored


class AttemptFailed(msgspec.Struct, frozen=True):
    """An expert could not do a job."""

    failed: JobFailed


class WaitsBehindOthers(msgspec.Struct, frozen=True):
    """An expert that is late with a job works on others' all the while: the job only waits in its queue."""

    job_id: str


class AgentLost(msgspec.Struct, frozen=True):
    """The link to an agent is broken, and its jobs are lost."""

    agent_id: str


class ClientGone(msgspec.Struct, frozen=True):
    """The client has disconnected."""


class ServiceStopping(msgspec.Struct, frozen=True):
    """The coordinator shuts down and cannot wait any longer for the request."""


class HandlingFailed(msgspec.Struct, frozen=True):
    """Handling an earlier event of this request, or an effect of it, raised an exception."""


class TimePassed(msgspec.Struct, frozen=True):
    """The moment `next_deadline_s` of the request has been reached."""


Seldom = (
    HedgeAnswered
    | RoomAppeared
    | RoomRefused
    | VectorsArrived
    | NextTokensArrived
    | AttemptScored
    | AttemptFailed
    | WaitsBehindOthers
    | AgentLost
    | ClientGone
    | ServiceStopping
    | HandlingFailed
    | TimePassed
)
"""What does not happen to an ordinary request."""
Event = Admitted | ExpertsChosen | AttemptStarted | TokensArrived | AttemptDone | Seldom
