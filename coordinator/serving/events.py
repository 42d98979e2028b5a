"""What can happen to a request. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.link.messages import JobDone, JobFailed, JobScored, JobStarted, NextTokens, TokenPiece
from moe2.coordinator.choosing.result import NoExpert, Selection


@dataclass(frozen=True)
class Admitted:
    """The request has been admitted. It is the first event of every request."""


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
    """An expert may have room for this request, which waits."""


@dataclass(frozen=True)
class RoomRefused:
    """There is no place in the queue for this request, which waits or wants to."""


@dataclass(frozen=True)
class AttemptStarted:
    """An expert has begun to work on a job."""

    started: JobStarted

    @property
    def job_id(self) -> str:
        return self.started.job_id


@dataclass(frozen=True)
class TokensArrived:
    """An expert has written a part of its answer."""

    job_id: str
    pieces: tuple[TokenPiece, ...]


@dataclass(frozen=True)
class VectorsArrived:
    """An expert has embedded some of the texts."""

    job_id: str
    vectors: tuple[bytes, ...]


@dataclass(frozen=True)
class NextTokensArrived:
    """A following expert has said what it thinks of the next token."""

    next_tokens: NextTokens


@dataclass(frozen=True)
class AttemptDone:
    """An expert has completed its answer, or stopped as it was told to."""

    done: JobDone


@dataclass(frozen=True)
class AttemptScored:
    """An expert has scored what it was asked to."""

    scored: JobScored


@dataclass(frozen=True)
class AttemptFailed:
    """An expert could not do a job."""

    failed: JobFailed


@dataclass(frozen=True)
class WaitsBehindOthers:
    """An expert that is late with a job works on others' all the while: the job only waits in its queue."""

    job_id: str


@dataclass(frozen=True)
class AgentLost:
    """The link to an agent is broken, and its jobs are lost."""

    agent_id: str


@dataclass(frozen=True)
class ClientGone:
    """The client has disconnected."""


@dataclass(frozen=True)
class ServiceStopping:
    """The coordinator shuts down and cannot wait any longer for the request."""


@dataclass(frozen=True)
class HandlingFailed:
    """Handling an earlier event of this request, or an effect of it, raised an exception."""


@dataclass(frozen=True)
class TimePassed:
    """The moment `next_deadline_s` of the request has been reached."""


Event = (
    Admitted
    | ExpertsChosen
    | HedgeAnswered
    | RoomAppeared
    | RoomRefused
    | AttemptStarted
    | TokensArrived
    | VectorsArrived
    | NextTokensArrived
    | AttemptDone
    | AttemptScored
    | AttemptFailed
    | WaitsBehindOthers
    | AgentLost
    | ClientGone
    | ServiceStopping
    | HandlingFailed
    | TimePassed
)
