"""Route: one expert answers, and its stream passes through; before its first token another one may take over. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.common.messages import JobDone, JobFailed, JobScored, TokenPiece
from moe2.coordinator.dispatch.attempt import Attempt
from moe2.coordinator.dispatch.effects import Completed, Effect, Failed
from moe2.coordinator.dispatch.play import Play
from moe2.coordinator.selection import NoExpert, Selection

if TYPE_CHECKING:
    from moe2.coordinator.dispatch.life import Lifecycle

MOST_ATTEMPTS = 4


class Route(Play):
    """Failover before the first token, re-planned with what is left of the budgets."""

    def __init__(self, life: Lifecycle) -> None:
        super().__init__(life)
        self._last_failure: JobFailed | None = None

    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        return self.life.answer(selection.first, selection, now_s)

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        return self.life.deliver(pieces, now_s)

    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        reason = ended.reason if isinstance(ended, JobDone) else "stop"
        return self.life.conclude(Completed(reason), now_s)

    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """Before the first token another expert may take over; after it the client has to be told."""
        # A crash or a refusal may pass; that the request itself is wrong stays the reason to give.
        blamed = self._last_failure is not None and self._last_failure.code in REQUEST_FAULTS
        if not blamed or failed.code in REQUEST_FAULTS:
            self._last_failure = failed
        gives_up = self.life.first_token_s is not None or failed.code in (
            JobErrorCode.INVALID_REQUEST,
            JobErrorCode.INVALID_GRAMMAR,
            JobErrorCode.DEADLINE_EXCEEDED,
        )
        if gives_up:
            return self.life.conclude(Failed(failed.code, failed.message), now_s)
        return self._try_next(now_s)

    def _try_next(self, now_s: float) -> list[Effect]:
        """Submit to the best expert that has not failed this request yet, or conclude that there is none."""
        chosen = self.life.select(now_s)
        if isinstance(chosen, NoExpert):
            self.life.refused = chosen
        elif len(self.life.attempts) < MOST_ATTEMPTS:
            return self.life.answer(chosen.first, chosen, now_s)
        # What an expert itself said beats what the table says afterwards.
        told = self._last_failure
        failed = Failed(told.code, told.message) if told else Failed(JobErrorCode.INTERNAL, "All attempts failed.")
        return self.life.conclude(failed, now_s)
