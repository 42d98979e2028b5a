"""What an agent's core wants done. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.agent.engine import protocol
from moe2.agent.settings import ModelSection
from moe2.common.link.messages import CommandAnswer, JobPieces, JobWord


@dataclass(frozen=True)
class SendToEngine:
    model: str
    command: protocol.Command


@dataclass(frozen=True)
class SendToCoordinator:
    """`request_id` is the client's, for the log."""

    message: JobWord
    request_id: str


@dataclass(frozen=True)
class SendTokens:
    jobs: tuple[JobPieces, ...]


@dataclass(frozen=True)
class SettleEnergy:
    """Close the account of a job that has ended, and report back with `EnergySettled`."""

    job_id: str


@dataclass(frozen=True)
class ReportChange:
    """The capability report is no longer true; send a new one."""


@dataclass(frozen=True)
class StartEngine:
    """Load a cold model."""

    model: str


@dataclass(frozen=True)
class StopEngine:
    """Unload an idle model; it reports back with `EngineStopped`."""

    model: str


@dataclass(frozen=True)
class KillEngine:
    """The engine is stuck: nothing but its end frees its slots. It reports back with `EngineExited`."""

    model: str
    reason: str


@dataclass(frozen=True)
class AddEngine:
    """Run a further engine of this name, and load this model with it."""

    engine: str
    section: ModelSection


@dataclass(frozen=True)
class RemoveEngine:
    """End an engine for good; it reports back with `EngineGone`."""

    engine: str


@dataclass(frozen=True)
class KeepServed:
    """From now on this model is served under its name, also after a restart; None: no longer."""

    name: str
    section: ModelSection | None


@dataclass(frozen=True)
class AnswerCommand:
    """Tell the coordinator what became of its command."""

    answer: CommandAnswer


@dataclass(frozen=True)
class SuspendHost:
    """Say goodbye and suspend the host; it reports back with `SuspendEnded`."""

    command_id: str


Effect = (
    SendToEngine
    | SendToCoordinator
    | SendTokens
    | SettleEnergy
    | ReportChange
    | StartEngine
    | StopEngine
    | KillEngine
    | AnswerCommand
    | SuspendHost
    | AddEngine
    | RemoveEngine
    | KeepServed
)
