"""One expert's work for a request. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moe2.common.messages import JobUsage
from moe2.coordinator.predict import Prediction
from moe2.coordinator.selection import Member, Selection
from moe2.coordinator.table import Expert


class Purpose(StrEnum):
    """What an expert worked for."""

    ANSWER = "answer"
    CANDIDATE = "candidate"
    """An answer that others may be preferred to."""
    SCORE = "score"
    FOLLOW = "follow"
    """A share of every token."""


class AttemptState(StrEnum):
    RUNNING = "running"
    STOPPING = "stopping"
    ANSWERED = "answered"
    OUTVOTED = "outvoted"
    """Done, and another expert's answer was preferred."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass
class Attempt:
    """`usage` None: nothing was spent, or (state LOST) nobody can say. selection: the decision it came from."""

    job_id: str
    member: Member
    selection: Selection
    submitted_s: float
    state: AttemptState = AttemptState.RUNNING
    usage: JobUsage | None = None
    error: str | None = None
    purpose: Purpose = Purpose.ANSWER

    @property
    def expert(self) -> Expert:
        return self.member.expert

    @property
    def prediction(self) -> Prediction:
        return self.member.prediction

    @property
    def is_over(self) -> bool:
        return self.state not in (AttemptState.RUNNING, AttemptState.STOPPING)
