"""The engine's child with guesses as long as they can be, whatever they cost: a busy host guesses little, and a test of
what guesses leave in the cache needs some that are wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from unittest.mock import patch

from moe2.agent.engine import child
from moe2.agent.engine.speculation.lengths import Load, Offer


def _all(offers: Sequence[Offer], load: Load, *, seconds: Callable[[int], float], room: int) -> list[int]:
    counts = []
    for offer in offers:
        counts.append(min(room, len(offer.likely)))
        room -= counts[-1]
    return counts


if __name__ == "__main__":
    with patch("moe2.agent.engine.speculation.speculation.guess_lengths", _all):
        sys.exit(child.main())
