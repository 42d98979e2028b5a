"""What became of a panel's work together, for the receipt. PURE.

No text of a prompt or an answer is in it, but for the final answers that a consensus has counted, shortened.
"""

from __future__ import annotations

import msgspec


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
