"""What became of a panel's work together, for the receipt. PURE. No text of a prompt or an answer is in it."""

from __future__ import annotations

import msgspec


class MemberShare(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the panel, as it counted in the end.

    weight: its share of the mixture; those of a panel sum to 1. distribution: its own, over the request's choices
    (vote) or over the candidates (rank); None where it gave none.
    """

    expert: str
    weight: float
    distribution: tuple[float, ...] | None = None


class CandidateShare(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of a ranking. experts: who wrote it, word for word. probability: in the mixture; None where nothing
    was scored."""

    experts: tuple[str, ...]
    utf8_bytes: int
    probability: float | None
    chosen: bool


class DroppedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member that the answer had to do without."""

    expert: str
    reason: str


class Collaboration(msgspec.Struct, frozen=True, kw_only=True):
    """distribution: the mixture over the request's choices, in their order (vote). candidates: of a ranking."""

    members: tuple[MemberShare, ...]
    distribution: tuple[float, ...] | None = None
    candidates: tuple[CandidateShare, ...] | None = None
    dropped: tuple[DroppedMember, ...] = ()
