"""What a mode decides within a request's life. PURE.

The lifecycle keeps the attempts, the deadline and the outcome; a play says who works on what, and when the answer is
there. It is asked only while the request has no outcome, and only about attempts that were not told to stop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from moe2.common.link.messages import JobDone, JobFailed, JobScored, NextTokens, TokenPiece
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.collaboration import Collaboration
from moe2.coordinator.serving.effects import Effect


class ModeRun(ABC):
    """One request played in one mode. Every method returns what the service is to do."""

    @property
    def leading(self) -> Attempt | None:
        """The attempt whose answer it is, or that has the most weight in it.

        None where the mode names none: then it is the answer's last author, or the latest attempt.
        """
        return None

    @property
    def collaboration(self) -> Collaboration | None:
        """What the members of a panel have contributed; None where one expert answers."""
        return None

    @property
    def answer_tokens(self) -> int | None:
        """Length of the answer, where it is no expert's own."""
        return None

    @property
    def next_deadline_s(self) -> float | None:
        """When `time_passed` is due; None if the mode waits for nothing but the request's own deadline."""
        return None

    @abstractmethod
    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        """The decision has been made."""

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        """An expert wrote something."""
        return []

    def next_tokens(self, attempt: Attempt, next_tokens: NextTokens, now_s: float) -> list[Effect]:
        """A following expert said what it thinks of the next token."""
        return []

    @abstractmethod
    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        """An expert has done what it was asked to."""

    @abstractmethod
    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """An expert could not do it, or its agent is gone."""

    def hangs(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """An attempt has given no sign of life for so long that none is to be expected any more."""
        return []

    def time_passed(self, now_s: float) -> list[Effect]:
        """`next_deadline_s` has been reached."""
        return []
