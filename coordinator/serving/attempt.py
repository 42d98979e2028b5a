"""One expert's work for a request. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import ExpertState, JobUsage
from moe2.coordinator.choosing.forecast import Prediction
from moe2.coordinator.choosing.result import Member, Selection
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.ledger.entry import AttemptState

LATE_FACTOR = 4.0
MIN_LATE_S = 10.0
LATE_UNMEASURED_S = 60.0
"""Without a sign of life for so many times the p95 of its first token, and never sooner than this, an expert is taken
to hang; one whose speed nobody knows, after the last of these."""


class Purpose(StrEnum):
    """What an expert worked for."""

    ANSWER = "answer"
    CANDIDATE = "candidate"
    """An answer that others may be preferred to."""
    SCORE = "score"
    FOLLOW = "follow"
    """A share of every token."""


@dataclass(eq=False)
class Attempt:
    """`usage` None: nothing was spent, or (state LOST) nobody can say. selection: the decision it came from.

    waited_s: what the request had waited for room by then. n_tokens: that came from it. last_sign_s: when it was last
    heard to work. code: why it failed, a `JobErrorCode`. ends_as: what a confirmed stop makes of it. is_late: its
    expert has been suspected. hangs: it has been silent for so long that its engine may hang. died_with: it was in the
    batch of an engine that died. is_custom: its job brings a grammar, a schema or tools of the client's. alone_until:
    it has its engine to itself until it has written more tokens than this; None: it may have company.
    """

    job_id: str
    member: Member
    selection: Selection
    submitted_s: float
    state: AttemptState = AttemptState.RUNNING
    usage: JobUsage | None = None
    error: str | None = None
    purpose: Purpose = Purpose.ANSWER
    waited_s: float = 0.0
    n_tokens: int = 0
    last_sign_s: float | None = None
    code: str | None = None
    ends_as: AttemptState = AttemptState.CANCELLED
    is_late: bool = False
    hangs: bool = False
    died_with: bool = False
    is_custom: bool = False
    alone_until: int | None = None

    @property
    def expert(self) -> Expert:
        return self.member.expert

    @property
    def prediction(self) -> Prediction:
        return self.member.prediction

    @property
    def due_s(self) -> float | None:
        """By when its first token was to come, with the probability of the p95; None where nobody knows."""
        ttft_s = self.prediction.ttft_s
        return None if ttft_s is None else self.submitted_s + ttft_s.p95

    @property
    def hangs_at_s(self) -> float | None:
        """From when on it is taken to hang, if it has given no sign of life by then; None if that was said, or cannot
        be: nobody knows how long its model takes to load."""
        if self.is_late or self.last_sign_s is not None or self.state is not AttemptState.RUNNING:
            return None
        ttft_s = self.prediction.ttft_s
        if ttft_s is not None:
            return self.submitted_s + max(MIN_LATE_S, LATE_FACTOR * ttft_s.p95)
        return self.submitted_s + LATE_UNMEASURED_S if self.expert.report.state is ExpertState.READY else None

    @property
    def reserved_j(self) -> float:
        """Joules to keep back for it: what it took, or while nobody can say what it may take; 0 where that is unknown,
        too."""
        if self.usage is not None and self.usage.energy.joules is not None:
            return self.usage.energy.joules
        if self.state is AttemptState.FAILED and self.usage is None:
            return 0.0
        predicted_j = self.prediction.energy_j
        return 0.0 if predicted_j is None else predicted_j.p95

    @property
    def is_over(self) -> bool:
        return self.state not in (AttemptState.RUNNING, AttemptState.STOPPING)

    @property
    def is_isolated(self) -> bool:
        """Nobody else may use its engine now."""
        return self.alone_until is not None and not self.is_over and self.n_tokens <= self.alone_until

    @property
    def is_engines_fault(self) -> bool:
        """True if it failed only because its engine died, or was refused because the engine was down."""
        refused = self.code == JobErrorCode.NOT_READY and self.usage is None
        return self.code == JobErrorCode.ENGINE_CRASHED or refused
