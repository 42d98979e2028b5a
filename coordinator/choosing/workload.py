"""What a request asks of each expert of a fleet: tokens to read and to write, beside those at work there. PURE."""

from __future__ import annotations

from typing import cast

import msgspec

from moe2.common.cost import RequestShape
from moe2.coordinator.planning.values import FloatArray, IntArray


class Workload(msgspec.Struct, frozen=True, eq=False):
    """What one request asks of each of N experts, and who else is there."""

    prompt_tokens: IntArray
    """(N,) tokens of the prompt that each expert has to read."""
    answer_tokens: int | IntArray
    """Length of the answer, the same for all or (N,)."""
    busy: IntArray
    """(N,) requests that each expert has already."""
    cached_tokens: IntArray | int = 0
    """(N,) tokens of the prompt that each expert has in its cache, before those that it has to read."""
    longest_tokens: IntArray | None = None
    """(N,) the length that 95 of 100 answers keep below; None where `answer_tokens` is given and not learned."""
    unread_tokens: FloatArray | None = None
    """(N,) tokens that are unread of the prompts at work on each expert; None where nobody was asked."""
    to_write_tokens: FloatArray | None = None
    """(N,) tokens that those at work have still to write, NaN where unknown; None where nobody was asked."""

    def shape_on(self, place: int, slots: int) -> RequestShape:
        """The request's shape on the expert at `place`, which has so many slots."""
        busy = int(self.busy[place])
        to_write = None if self.to_write_tokens is None else float(self.to_write_tokens[place])
        return RequestShape(
            prompt_tokens=int(self.prompt_tokens[place]),
            decoded_tokens=_at(self.answer_tokens, place),
            cached_tokens=_at(self.cached_tokens, place),
            occupancy=min(busy + 1, slots),
            queued_ahead=busy - slots if busy >= slots else None,
            unread_tokens=None if self.unread_tokens is None else float(self.unread_tokens[place]),
            to_write_tokens=None if to_write != to_write else to_write,
        )

    def shapes(
        self,
        occupancy: IntArray | FloatArray,
        newcomers: FloatArray | float = 0.0,
        answer_tokens: int | IntArray | None = None,
    ) -> RequestShape:
        """The request's shapes on all experts at once, as the formulas of `moe2.common.cost` take arrays, too.

        answer_tokens: in place of the length that is asked for.
        """
        return RequestShape(
            prompt_tokens=cast(int, self.prompt_tokens),
            decoded_tokens=cast(int, self.answer_tokens if answer_tokens is None else answer_tokens),
            cached_tokens=cast(int, self.cached_tokens),
            occupancy=cast(float, occupancy),
            unread_tokens=cast(float | None, self.unread_tokens),
            to_write_tokens=cast(float | None, self.to_write_tokens),
            newcomers=cast(float, newcomers),
        )


def _at(values: IntArray | int, place: int) -> int:
    return values if isinstance(values, int) else int(values[place])
