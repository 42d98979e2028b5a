"""One request from admission to its receipt: a pure lifecycle, and one play per mode."""

from moe2.coordinator.dispatch.attempt import Attempt, AttemptState, Purpose
from moe2.coordinator.dispatch.effects import (
    Cancelled,
    Completed,
    Conclude,
    Deliver,
    Effect,
    Failed,
    Outcome,
    ReleaseExpert,
    Retire,
    StopJob,
    SubmitJob,
    Tell,
)
from moe2.coordinator.dispatch.events import (
    Admitted,
    AgentLost,
    AttemptDone,
    AttemptFailed,
    AttemptScored,
    AttemptStarted,
    ClientGone,
    Event,
    NextTokensArrived,
    ServiceStopping,
    TimePassed,
    TokensArrived,
)
from moe2.coordinator.dispatch.life import WIND_DOWN_S, Choose, Lifecycle
from moe2.coordinator.dispatch.request import Request
from moe2.coordinator.dispatch.route import MOST_ATTEMPTS

__all__ = [
    "MOST_ATTEMPTS",
    "WIND_DOWN_S",
    "Admitted",
    "AgentLost",
    "Attempt",
    "AttemptDone",
    "AttemptFailed",
    "AttemptScored",
    "AttemptStarted",
    "AttemptState",
    "Cancelled",
    "Choose",
    "ClientGone",
    "Completed",
    "Conclude",
    "Deliver",
    "Effect",
    "Event",
    "Failed",
    "Lifecycle",
    "NextTokensArrived",
    "Outcome",
    "Purpose",
    "ReleaseExpert",
    "Request",
    "Retire",
    "ServiceStopping",
    "StopJob",
    "SubmitJob",
    "Tell",
    "TimePassed",
    "TokensArrived",
]
