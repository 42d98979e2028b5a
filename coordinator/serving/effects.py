"""What the service is to do for a request, and how a request can end. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import Job, TakeToken, TokenPiece
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.fleet.table import Expert


@dataclass(frozen=True)
class ChooseExperts:
    """The service chooses experts, and says so with `ExpertsChosen` before anything else happens to the request."""

    asked: SelectionRequest


@dataclass(frozen=True)
class AskToHedge:
    """The service says with `HedgeAnswered`, before anything else happens, whether a second expert may try now."""


@dataclass(frozen=True)
class EnterQueue:
    """The request waits for room with an expert, and is told when there may be some."""


@dataclass(frozen=True)
class LeaveQueue:
    """The request waits no more."""

    served: bool
    """Whether it has got an expert."""


@dataclass(frozen=True)
class SubmitJob:
    """The service sends a job to an expert."""

    expert: Expert
    job: Job
    is_hedge: bool = False
    """Whether the job uses up one of the hedges that all requests share."""


@dataclass(frozen=True)
class Tell:
    """The service tells the next token to an expert that follows."""

    agent_id: str
    take: TakeToken


@dataclass(frozen=True)
class StopJob:
    """The service tells an agent to stop a job."""

    agent_id: str
    job_id: str


@dataclass(frozen=True)
class Suspect:
    """An expert is to be suspected, as it is late with a job."""

    expert_key: str
    job_id: str
    hangs: bool
    """Whether it has given no sign of life for far too long; else another expert was faster."""


@dataclass(frozen=True)
class ReleaseExpert:
    """An attempt has ended, so that its expert has room again."""

    expert_key: str
    job_id: str


@dataclass(frozen=True)
class ShareExpert:
    """The request has worked alone for long enough: others may use the expert, too."""

    expert_key: str


@dataclass(frozen=True)
class Deliver:
    """The client gets a part of the answer."""

    pieces: tuple[TokenPiece, ...]


@dataclass(frozen=True)
class DeliverVectors:
    """The client gets the vectors of its next texts."""

    vectors: tuple[bytes, ...]


@dataclass(frozen=True)
class Remark:
    """A client that reads a stream is told how far the request is, beside the answer."""

    text: str


@dataclass(frozen=True)
class Retract:
    """What was delivered is thrown away: the client has seen none of it, and the answer begins anew."""


@dataclass(frozen=True)
class Conclude:
    """The client is told the request's one outcome."""

    outcome: Outcome


@dataclass(frozen=True)
class Retire:
    """The request is forgotten, as everything it took is accounted."""


ForExperts = SubmitJob | Tell | StopJob | Suspect | ReleaseExpert | ShareExpert
Question = ChooseExperts | AskToHedge
ForService = EnterQueue | LeaveQueue | ForExperts | Deliver | DeliverVectors | Remark | Retract | Conclude | Retire
Effect = Question | ForService


@dataclass(frozen=True)
class Completed:
    """The answer is complete."""

    reason: str
    """Why it ended: "stop" or "length"."""
    stop: str | None = None
    """The stop string that ended it, where that is known."""


@dataclass(frozen=True)
class Failed:
    """The request has failed."""

    code: str
    """A `JobErrorCode` or an `ErrorCode`."""
    message: str


HANDLING_FAILED = Failed(
    ErrorCode.INTERNAL, "The coordinator failed to handle this request; its log says why. Send it again."
)


@dataclass(frozen=True)
class Cancelled:
    """The client has cancelled the request."""


Outcome = Completed | Failed | Cancelled


def said_of(outcome: Outcome | None) -> tuple[str, str | None, str | None]:
    """An outcome in words: "completed", "failed" or "cancelled"; finish reason or error code; an error's text."""
    match outcome:
        case Completed(reason=reason):
            return "completed", reason, None
        case Failed(code=code, message=message):
            return "failed", code, message
        case _:
            return "cancelled", None, None
