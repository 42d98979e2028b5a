"""What a mode decides within a request's life, and what becomes of a panel's work together. PURE.

The lifecycle keeps the attempts, the deadline and the outcome; a mode's run says who works on what, and when the answer
is there. It is asked only while the request has no outcome, and only about attempts that were not told to stop.

What a panel has done is told in the receipt. No text of a prompt or an answer is in that, but for the final answers
that a consensus has counted, shortened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from moe2.common.link.messages import JobDone, JobFailed, JobScored, NextTokens, TokenPiece
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Effect


class MemberShare(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the panel, as it counted in the end."""

    expert: str
    weight: float
    """The member's share of the mixture; the weights of a panel sum to 1."""
    distribution: tuple[float, ...] | None = None
    """Its own view of the request's choices (vote) or of the candidates (rank); None where it gave none."""
    answer: str | None = None
    """Its final answer in the form that is compared (consensus); None where it gave none."""
    log_odds: float | None = None
    """What its vote counted for (consensus)."""
    joules: float | None = None
    """What its answer took (consensus); None where nobody measured it."""


class CandidateShare(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of a ranking."""

    experts: tuple[str, ...]
    """The experts that wrote it, word for word."""
    utf8_bytes: int
    probability: float | None
    """The candidate's probability in the mixture; None where nothing was scored."""
    chosen: bool


class DroppedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member that the answer had to do without."""

    expert: str
    reason: str


class Collaboration(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a panel's work together."""

    members: tuple[MemberShare, ...]
    distribution: tuple[float, ...] | None = None
    """The mixture over the request's choices, in their order (vote)."""
    candidates: tuple[CandidateShare, ...] | None = None
    """The candidates of a ranking (rank)."""
    dropped: tuple[DroppedMember, ...] = ()
    answer_kind: str | None = None
    """What the final answers are (consensus): "choice", "number", "json" or "text"."""
    settled: str | None = None
    """Why nobody else was asked (consensus): "cannot_lose", "probable" or "all_asked"."""
    probability: float | None = None
    """The probability that the winning answer is right (consensus), as far as the votes say."""
    not_asked: tuple[str, ...] = ()
    """Members that the vote was settled without (consensus)."""
    note: str | None = None
    """What else happened, in words."""


class ModeRun(ABC):
    """How experts answer one request in one mode. Every method that takes in news returns what the service is to do."""

    hurries: ClassVar[bool] = False
    """Whether `next_deadline_s` may come nearer by what an expert says, and not only as another one is set to work."""

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
        """Length of the answer in tokens, where it is no expert's own; None where it is."""
        return None

    @property
    def next_deadline_s(self) -> float | None:
        """When `time_passed` is due; None if the mode waits for nothing but the request's own deadline."""
        return None

    @abstractmethod
    def begin(self, selection: Selection, now_s: float) -> list[Effect]:
        """Set the chosen experts to work."""

    def tokens(self, attempt: Attempt, pieces: tuple[TokenPiece, ...], now_s: float) -> list[Effect]:
        """Take in what an expert has written."""
        return []

    def vectors(self, attempt: Attempt, vectors: tuple[bytes, ...], now_s: float) -> list[Effect]:
        """Take in what an expert has embedded."""
        return []

    def next_tokens(self, attempt: Attempt, next_tokens: NextTokens, now_s: float) -> list[Effect]:
        """Take in what a following expert thinks of the next token."""
        return []

    @abstractmethod
    def ended(self, attempt: Attempt, ended: JobDone | JobScored, now_s: float) -> list[Effect]:
        """Take in that an expert has done what it was asked to."""

    @abstractmethod
    def failed(self, attempt: Attempt, failed: JobFailed, now_s: float) -> list[Effect]:
        """Take in that an expert could not do what it was asked to, or that its agent is gone."""

    def hangs(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Act on an attempt that has given no sign of life for so long that none is to be expected any more."""
        return []

    def waits_behind_others(self, attempt: Attempt, now_s: float) -> list[Effect]:
        """Act on an attempt that waits in its expert's queue for much longer than was predicted."""
        return []

    def time_passed(self, now_s: float) -> list[Effect]:
        """Act on `next_deadline_s`, which has been reached."""
        return []
