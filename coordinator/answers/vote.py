"""A vote over the final answers of members that answer one after the other, and when it is settled. PURE.

A member's weight is about the log-odds of its being right (`moe2.coordinator.gate.votes`). The share of an answer among
those given and something else is its probability of being right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Settled(StrEnum):
    """Why a vote needs no more answers."""

    CANNOT_LOSE = "cannot_lose"
    """Whatever the others say, the leading answer stays ahead."""
    PROBABLE = "probable"
    """The leading answer is right with the wanted probability."""
    ALL_ASKED = "all_asked"
    """Nobody is left to be asked."""


@dataclass
class Vote:
    """A vote in progress.

    weights: by member, never negative. other: what counts for an answer that nobody gave.
    """

    weights: Mapping[str, float]
    other: float
    answers: dict[str, str | None] = field(default_factory=dict)
    """The answers by member, in the order in which they came; None of a member that gave none."""

    def add(self, member: str, answer: str | None) -> None:
        """Count a member's answer."""
        self.answers[member] = answer

    @property
    def sums(self) -> dict[str, float]:
        """The weights for each answer that was given, in the order in which they were given first."""
        sums: dict[str, float] = {}
        for member, answer in self.answers.items():
            if answer is not None:
                sums[answer] = sums.get(answer, 0.0) + self.weights[member]
        return sums

    @property
    def leader(self) -> str | None:
        """The answer with the largest sum of weights, the earliest of equal ones; None where nobody gave an answer."""
        sums = self.sums
        return max(sums, key=lambda answer: sums[answer]) if sums else None

    @property
    def probability(self) -> float:
        """The probability that the leader is right; 0 where there is none."""
        sums = list(self.sums.values())
        if not sums:
            return 0.0
        most = max(*sums, self.other)
        return math.exp(max(sums) - most) / sum(math.exp(each - most) for each in (*sums, self.other))

    def settled(self, left: Sequence[str], wanted: float | None = None) -> Settled | None:
        """Why the vote needs none of the members that are `left`; None where it does.

        wanted: the probability of being right that is enough; None where only certainty about the outcome is.
        """
        if not left:
            return Settled.ALL_ASKED
        sums = sorted(self.sums.values(), reverse=True)
        if not sums:
            return None
        ahead = sums[0] - (sums[1] if len(sums) > 1 else 0.0)
        if ahead > sum(self.weights[member] for member in left):
            return Settled.CANNOT_LOSE
        return Settled.PROBABLE if wanted is not None and self.probability >= wanted else None

    def supporters(self, answer: str) -> list[str]:
        """The members that gave an answer, the heaviest first."""
        found = [member for member, given in self.answers.items() if given == answer]
        return sorted(found, key=lambda member: -self.weights[member])
