"""What the service is to do for a request, and how a request can end. PURE."""

from __future__ import annotations

import msgspec

from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import Job, TakeToken, TokenPiece
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.fleet.table import Expert


class ChooseExperts(msgspec.Struct, frozen=True):
    """The service chooses experts, and says so with `ExpertsChosen` before anything else happens to the request."""

    asked: SelectionRequest


class AskToHedge(msgspec.Struct, frozen=True):
    """The service says with `HedgeAnswered`, before anything else happens, whether a second expert may try now."""


class EnterQueue(msgspec.Struct, frozen=True):
    """The request waits for room with an expert, and is told when there may be some."""


class LeaveQueue(msgspec.Struct, frozen=True):
    """The request waits no more."""

    served: bool
    """Whether it has got an expert."""


class SubmitJob(msgspec.Struct, frozen=True):
    """The service sends a job to an expert."""

    expert: Expert
    job: Job
    is_hedge: bool = False
    """Whether the job uses up one of the hedges that all requests share."""


class Tell(msgspec.Struct, frozen=True):
    """The service tells the next token to an expert that follows."""

    agent_id: str
    take: TakeToken


class StopJob(msgspec.Struct, frozen=True):
    """The service tells an agent to stop a job."""

    agent_id: str
    job_id: str


class Suspect(msgspec.Struct, frozen=True):
    """An expert is to be suspected, as it is late with a job."""

    expert_key: str
    job_id: str
    hangs: bool
    """Whether it has given no sign of life for far too long; else another expert was faster."""


class ReleaseExpert(msgspec.Struct, frozen=True):
    """An attempt has ended, so that its expert has room again."""

    expert_key: str
    job_id: str


class ShareExpert(msgspec.Struct, frozen=True):
    """The request has worked alone for long enough: others may use the expert, too."""

    expert_key: str


class Deliver(msgspec.Struct, frozen=True):
    """The client gets a part of the answer."""

    pieces: tuple[TokenPiece, ...]


class DeliverVectors(msgspec.Struct, frozen=True):
    """The client gets the vectors of its next texts."""

    vectors: tuple[bytes, ...]


class Remark(msgspec.Struct, frozen=True):
    """A client that reads a stream is told how far the request is, beside the answer."""

    text: str


class Retract(msgspec.Struct, frozen=True):
    """What was delivered is thrown away: the client has seen none of it, and the answer begins anew."""


class Conclude(msgspec.Struct, frozen=True):
    """The client is told the request's one outcome."""

    outcome: Outcome


class Retire(msgspec.Struct, frozen=True):
    """The request is forgotten, as everything it took is accounted."""


Question = ChooseExperts | AskToHedge
Seldom = (
    AskToHedge | EnterQueue | LeaveQueue | Tell | StopJob | Suspect | ShareExpert | DeliverVectors | Remark | Retract
)
"""What an ordinary request wants none of."""
Effect = ChooseExperts | SubmitJob | ReleaseExpert | Deliver | Conclude | Retire | Seldom


class Completed(msgspec.Struct, frozen=True):
    """The answer is complete."""

    reason: str
    """Why it ended: "stop" or "length"."""
    stop: str | None = None
    """The stop string that ended it, where that is known."""


class Failed(msgspec.Struct, frozen=True):
    """The request has failed."""

    code: str
    """A `JobErrorCode` or an `ErrorCode`."""
    message: str


HANDLING_FAILED = Failed(
    ErrorCode.INTERNAL, "The coordinator failed to handle this request; its log says why. Send it again."
)


class Cancelled(msgspec.Struct, frozen=True):
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
