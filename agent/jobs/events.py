"""What happens to an agent's jobs and experts, as its core is told. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.agent.engine import protocol
from moe2.agent.settings import ModelSection
from moe2.common.cost import EnergyProfile, LatencyProfile
from moe2.common.energy import Energy
from moe2.common.link.messages import Job as Order
from moe2.common.link.messages import LoadModel, Suspend, TakeToken, UnloadModel


@dataclass(frozen=True)
class JobSubmitted:
    order: Order


@dataclass(frozen=True)
class TokenTaken:
    take: TakeToken


@dataclass(frozen=True)
class CancelRequested:
    job_id: str


@dataclass(frozen=True)
class LinkLost:
    """A coordinator is gone: nobody waits for its jobs any more.

    job_ids: its jobs; None where it was the last one, so that nobody waits for any job, nor can undo a command.
    """

    job_ids: frozenset[str] | None = None


@dataclass(frozen=True)
class DrainRequested:
    """Take no new jobs; let the running ones end."""


@dataclass(frozen=True)
class TimePassed:
    """`next_deadline_s` has been reached."""


@dataclass(frozen=True)
class EngineSpoke:
    model: str
    event: protocol.Event


@dataclass(frozen=True)
class EngineExited:
    """The child ended. `permanent` is set where starting it again as it is cannot help soon."""

    model: str
    reason: str
    permanent: bool


@dataclass(frozen=True)
class EngineStopped:
    """The child has ended, as it was told to; its memory is given back."""

    model: str


@dataclass(frozen=True)
class CommandReceived:
    """The coordinator wants a model in memory or out of it, or the host asleep."""

    order: LoadModel | UnloadModel | Suspend


@dataclass(frozen=True)
class SuspendChecked:
    """Whether the host could be suspended: why not, or None."""

    fault: str | None


@dataclass(frozen=True)
class SuspendEnded:
    """The host is awake again, or has not slept: why not. command_id: None where nobody had asked."""

    command_id: str | None
    fault: str | None = None


@dataclass(frozen=True)
class OwnWorkSpent:
    """The joules that the job by which the host measures itself has used so far."""

    joules: float


@dataclass(frozen=True)
class ModelOffered:
    """A model is to be served. `section` was checked: its file is there, and it fits. beside: also beside what it
    replaces, so that it can be loaded first. sha256: of its file."""

    command_id: str
    section: ModelSection
    beside: bool
    sha256: str | None = None


@dataclass(frozen=True)
class ModelWithdrawn:
    """A model is to be served no longer."""

    command_id: str
    name: str


@dataclass(frozen=True)
class EngineGone:
    """An engine that was removed has ended, and its memory is given back."""

    engine: str


@dataclass(frozen=True)
class EnergySettled:
    job_id: str
    energy: Energy


@dataclass(frozen=True)
class ProfileRestored:
    """A stored profile was loaded: what was measured of the model earlier, in the present power mode."""

    model: str
    latency: LatencyProfile | None
    energy: EnergyProfile | None


@dataclass(frozen=True)
class PowerModeChanged:
    """The host runs in this power mode from now on; what was learned in another one does not hold."""

    power_mode: str | None


@dataclass(frozen=True)
class FileHashed:
    """The SHA-256 of the model's file is known; None where the file has changed, and it is not known yet."""

    model: str
    sha256: str | None


Event = (
    JobSubmitted
    | TokenTaken
    | CancelRequested
    | LinkLost
    | DrainRequested
    | TimePassed
    | EngineSpoke
    | EngineExited
    | EngineStopped
    | CommandReceived
    | SuspendChecked
    | SuspendEnded
    | OwnWorkSpent
    | EnergySettled
    | ProfileRestored
    | PowerModeChanged
    | FileHashed
    | ModelOffered
    | ModelWithdrawn
    | EngineGone
)
