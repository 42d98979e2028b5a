"""How long a request waits for an expert with room. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe2.coordinator.choosing.request import budgets_for
from moe2.coordinator.serving.limits import Limits
from moe2.coordinator.serving.suspicion import restarts_seen

if TYPE_CHECKING:
    from moe2.coordinator.serving.life import Lifecycle


def waits_until_s(life: Lifecycle, now_s: float) -> float:
    """Until the queue's limit, the end of the budgets, or when even an idle expert would come too late.

    A request whose engine has died may wait as long as if it had just come.
    """
    before_s = life.attempts[-1].waited_s if restarts_seen(life.attempts) else 0.0
    until_s = min(now_s + life.terms.queue_s - (life.waited_s - before_s), _patience_s(life))
    waits_s = life.refused.waits_s if life.refused else None
    return until_s if waits_s is None else min(until_s, now_s + waits_s)


def _patience_s(life: Lifecycle) -> float:
    """Until when waiting makes sense. Before the first decision only the budgets of the request and its key are
    known."""
    request = life.request
    if life.attempts:
        return life.expires_s
    own = budgets_for(request.wish, "", {}, request.principal.budgets)
    expires_s = Limits.of(own, request.arrived_s).expires_s(begun=False, strict=False)
    return request.deadline_s if expires_s is None else min(expires_s, request.deadline_s)
