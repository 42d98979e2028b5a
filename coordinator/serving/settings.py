"""The settings of serving: queue, hedging, breakers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moe2.common.config import Settings


class DispatchSection(Settings):
    """[dispatch]: how far the coordinator goes for a request."""

    queue_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Longest wait for an expert with room, within the request's own budgets; 0: such a request is refused at once."""
    max_queued: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait; apps share the places."""
    hedging: bool = True
    """Where an expert is late with its first token, a second one may try; who is first answers."""
    hedge_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the requests that may be given to a second expert in this way."""
    breakers: bool = True
    """An expert that keeps failing gets no requests for a while."""
    affinity: bool = True
    """Of equally good experts, a conversation prefers the one that has its beginning in its cache."""

    @property
    def has_queue(self) -> bool:
        return self.queue_s > 0 and self.max_queued > 0
