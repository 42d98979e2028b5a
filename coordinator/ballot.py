"""The choices that an answer is one of. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.coordinator.predict import BYTES_PER_TOKEN


@dataclass(frozen=True)
class Ballot:
    """choices: the possible answers, as the client will read them. length_normalised: compared per byte."""

    choices: tuple[str, ...]
    length_normalised: bool = False

    @property
    def tokens(self) -> int:
        """Estimated tokens of all choices together, which an expert reads to score them."""
        return sum(int(len(choice.encode()) / BYTES_PER_TOKEN) + 1 for choice in self.choices)
