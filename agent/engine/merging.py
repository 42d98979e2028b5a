"""Which of the engine's events go out together. PURE.

Each frame costs the agent, the coordinator and the client a turn, which on a small processor is taken from the engine
itself. Where steps are short, the tokens of several share one, at a rate at which no reader sees a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe2.agent.engine.protocol import Event, Loaded, Started
from moe2.common.link.messages import JobPieces, TokenPiece, Tokens
from moe2.common.placement import gpu_layers

TOKENS_EVERY_S = 0.04
"""Tokens that come sooner after the last frame wait for a later step: there are at most 25 frames a second. Nobody
reads as fast."""
BESIDE_THREADS_EVERY_S = 0.08
"""The same where the host's processor decodes: a frame takes the agent and the coordinator 0.7 to 0.9 ms each where
they share two cores with the engine, whose threads wait for each other at every layer, so that most of that is lost to
it."""


class Merging:
    """Holds back tokens for a moment. All other events and the first tokens of a job go out at once, and in order."""

    def __init__(self) -> None:
        self._held: dict[str, list[TokenPiece]] = {}
        self._every_s = TOKENS_EVERY_S
        self._sent_at_s = -math.inf
        self._awaited: set[str] = set()
        """Jobs that have begun and have no token yet."""

    def put(self, event: Event, now_s: float) -> Sequence[Event]:
        """Take in an event; return what is to be sent now, in order."""
        if not isinstance(event, Tokens):
            if isinstance(event, Started):
                self._awaited.add(event.job_id)
            elif isinstance(event, Loaded):
                by_processor = event.placement and not gpu_layers(event.placement)
                self._every_s = BESIDE_THREADS_EVERY_S if by_processor else TOKENS_EVERY_S
            else:
                self._awaited.discard(getattr(event, "job_id", ""))
            return [*self.rest(), event]
        is_first = not self._awaited.isdisjoint(job.job_id for job in event.jobs)
        for job in event.jobs:
            self._held.setdefault(job.job_id, []).extend(job.pieces)
            self._awaited.discard(job.job_id)
        if not is_first and now_s - self._sent_at_s < self._every_s:
            return ()
        self._sent_at_s = now_s
        return self.rest()

    def rest(self) -> list[Event]:
        """Return what is held back, for when no step follows soon."""
        if not self._held:
            return []
        merged = Tokens(jobs=tuple(JobPieces(job_id, tuple(pieces)) for job_id, pieces in self._held.items()))
        self._held = {}
        return [merged]
