"""One expert's work for a request, and how it stands. PURE."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import JobUsage
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.forecast import Prediction
from moe2.coordinator.choosing.result import Member, Selection
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.ledger.entry import AttemptState

LATE_FACTOR = 4.0
"""An expert is taken to hang after so many times the p95 of its first token without a sign of life."""
MIN_LATE_S = 10.0
"""No expert is taken to hang sooner than after these seconds."""
LATE_UNMEASURED_S = 60.0
"""An expert whose speed nobody knows is taken to hang after these seconds."""


class Purpose(StrEnum):
    """What an expert worked for."""

    ANSWER = "answer"
    CANDIDATE = "candidate"
    """An answer that others may be preferred to."""
    SCORE = "score"
    FOLLOW = "follow"
    """A share in every token of a mixture."""


class Attempt(msgspec.Struct, eq=False):
    """The work of one expert for one request. All moments are monotonic seconds."""

    job_id: str
    member: Member
    selection: Selection
    """The decision that the attempt came from."""
    submitted_s: float
    state: AttemptState = AttemptState.RUNNING
    usage: JobUsage | None = None
    """What the work took; None: nothing was spent, or (state LOST) nobody can say."""
    error: str | None = None
    purpose: Purpose = Purpose.ANSWER
    waited_s: float = 0.0
    """How long the request had waited for room when the job was submitted."""
    prompt_tokens: int | None = None
    """Length of the prompt by the expert's own tokenizer; None until it has begun to work on it."""
    n_tokens: int = 0
    """Tokens that the expert has written."""
    last_sign_s: float | None = None
    """When the expert was last heard to work on the job."""
    code: str | None = None
    """Why the attempt failed, a `JobErrorCode`."""
    ends_as: AttemptState = AttemptState.CANCELLED
    """The state that a confirmed stop leads to."""
    is_late: bool = False
    """Whether the expert has been reported as late with this job."""
    hangs: bool = False
    """Whether the expert has been silent for so long that its engine may hang."""
    is_taken_back: bool = False
    """Whether the expert was told to leave the job to whoever has room first, as it had not begun it."""
    died_with: bool = False
    """Whether the job was in the batch of an engine that died."""
    is_custom: bool = False
    """Whether the job brings a grammar, a schema or tools of the client's."""
    alone_until: int | None = None
    """The job has its engine to itself until more tokens than this are written; None: it may have company."""

    @property
    def expert(self) -> Expert:
        return self.member.expert

    @property
    def prediction(self) -> Prediction:
        return self.member.prediction

    def unread_tokens(self, now_s: float) -> float:
        """Tokens of the prompt that the expert has still to read, by the part of the predicted time that has passed."""
        if self.n_tokens or self.last_sign_s is not None:
            return 0.0
        ttft_s, tokens = self.prediction.ttft_s, self.prediction.shape.prompt_tokens
        passed = (now_s - self.submitted_s) / ttft_s.p50 if ttft_s and ttft_s.p50 else 0.0
        return tokens * max(0.0, 1.0 - passed)

    @property
    def to_write_tokens(self) -> int:
        """Tokens of the answer that the expert has still to write, of as many as are planned for."""
        return max(0, self.prediction.shape.decoded_tokens - self.n_tokens)

    @property
    def due_s(self) -> float | None:
        """The moment by which the first token was to come, at p95; None where nobody knows."""
        ttft_s = self.prediction.ttft_s
        return None if ttft_s is None else self.submitted_s + ttft_s.p95

    @property
    def hangs_at_s(self) -> float | None:
        """The moment from which on the expert is taken to hang, if it has given no sign of life by then.

        None if that was said already, or cannot be: nobody knows how long a model takes to load.
        """
        if self.is_late or self.last_sign_s is not None or self.state is not AttemptState.RUNNING:
            return None
        ttft_s = self.prediction.ttft_s
        if ttft_s is not None:
            return self.submitted_s + max(MIN_LATE_S, LATE_FACTOR * ttft_s.p95)
        return self.submitted_s + LATE_UNMEASURED_S if self.expert.report.state is ExpertState.READY else None

    @property
    def reserved_j(self) -> float:
        """Joules to keep back for the attempt: what it took, or while nobody can say, what it may take.

        0 where that is unknown, too.
        """
        if self.usage is not None and self.usage.energy.joules is not None:
            return self.usage.energy.joules
        if self.state is AttemptState.FAILED and self.usage is None:
            return 0.0
        predicted_j = self.prediction.energy_j
        return 0.0 if predicted_j is None else predicted_j.p95

    @property
    def has_begun(self) -> bool:
        """Whether the expert has been heard to work on the job."""
        return self.prompt_tokens is not None or self.last_sign_s is not None

    @property
    def is_over(self) -> bool:
        return self.state not in (AttemptState.RUNNING, AttemptState.STOPPING)

    @property
    def is_isolated(self) -> bool:
        """Whether nobody else may use the expert's engine now."""
        return self.alone_until is not None and not self.is_over and self.n_tokens <= self.alone_until

    @property
    def was_turned_away(self) -> bool:
        """True if an expert that was reported as ready refused the job because its engine is down."""
        return self._is_refused and self.expert.report.state is ExpertState.READY

    @property
    def is_unexplained(self) -> bool:
        """True if the expert failed before it began, for a reason that it does not know. It may be the request."""
        return self.state is AttemptState.FAILED and self.code == JobErrorCode.INTERNAL and self.prompt_tokens is None

    @property
    def is_engines_fault(self) -> bool:
        """True if the attempt failed only because its engine died, or was refused because the engine was down."""
        return self.code == JobErrorCode.ENGINE_CRASHED or self._is_refused

    @property
    def _is_refused(self) -> bool:
        return self.code == JobErrorCode.NOT_READY and self.usage is None
