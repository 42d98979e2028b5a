"""PURE: cached prefixes that have left the cache for the host's memory.

A prefix that nobody uses costs time where it lies: llama.cpp looks at every used cell for each token that it decodes.
On the shelf it costs only memory, and comes back by a copy, which takes a small part of the time of decoding it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.decoding.batch import is_worth_copying, shared_beginning

State = npt.NDArray[np.uint8]
"""What the cache holds of one lane, as llama.cpp writes it."""

_SPARED_BYTES = 512 * 2**20
"""Free memory that the shelf leaves to others."""


@dataclass(frozen=True, slots=True, eq=False)
class Shelved:
    tokens: list[int]
    state: State


class Shelf:
    """Holds states of lanes up to so many bytes; the least recently used goes first."""

    def __init__(self, *, most_bytes: int, cuts_anywhere: bool, free_bytes: Callable[[], int | None]) -> None:
        """`cuts_anywhere`: a state can be cut back to any earlier token; else it is brought back whole or not at all.
        `free_bytes`: memory that this host can spare now, None where nobody knows."""
        self._most_bytes = most_bytes
        self._cuts_anywhere = cuts_anywhere
        self._free_bytes = free_bytes
        self._held: list[Shelved] = []
        """The least recently used first."""

    @property
    def held_bytes(self) -> int:
        return sum(held.state.nbytes for held in self._held)

    def has_room(self, n_bytes: int) -> bool:
        """True if a state of this size can be put there, others making way."""
        if n_bytes > self._most_bytes:
            return False
        free_bytes = self._free_bytes()
        return free_bytes is None or n_bytes - self.held_bytes + _SPARED_BYTES <= free_bytes

    def holds(self, tokens: list[int]) -> bool:
        """True if all of these tokens could be brought back already."""
        return any(self._usable(held, tokens, limit=len(tokens)) == len(tokens) for held in self._held)

    def put(self, tokens: list[int], state: State) -> None:
        """Take a state for which there is room."""
        if self._cuts_anywhere:
            # What these tokens begin with can be cut from them.
            self._held = [held for held in self._held if held.tokens != tokens[: len(held.tokens)]]
        while self._held and self.held_bytes + state.nbytes > self._most_bytes:
            self._held.pop(0)
        self._held.append(Shelved(tokens, state))

    def find(self, tokens: list[int], *, beyond: int, limit: int) -> tuple[Shelved, int] | None:
        """What holds most of the beginning of `tokens`, and how many of them, at most `limit`; None where it is not
        worth bringing back, as so many (`beyond`) are in the cache."""
        if not self._held:
            return None
        most, best = max((self._usable(held, tokens, limit=limit), at) for at, held in enumerate(self._held))
        held = self._held[best]
        if not is_worth_copying(most - beyond, len(held.tokens)):
            return None
        self._held.append(self._held.pop(best))
        return held, most

    def _usable(self, held: Shelved, tokens: list[int], *, limit: int) -> int:
        shared = shared_beginning(tokens, held.tokens, min(limit, len(held.tokens)))
        return shared if self._cuts_anywhere or shared == len(held.tokens) else 0
