"""Which models are in memory: when one is loaded on demand and when it is unloaded again. PURE."""

from __future__ import annotations

from collections.abc import Iterable

from moe2.agent.jobs.expert import Expert
from moe2.common.link.reports import ExpertState


def takes_jobs(expert: Expert) -> bool:
    """True if a job may wait for this expert: it is ready, or will be loaded for it."""
    if expert.state is ExpertState.READY:
        return True
    return expert.on_demand and expert.state in (ExpertState.COLD, ExpertState.LOADING)


def wake(expert: Expert, now_s: float) -> bool:
    """Mark a cold expert as loading; True if its engine has to be started."""
    if expert.state is not ExpertState.COLD:
        return False
    expert.state, expert.load_progress, expert.woken_at_s = ExpertState.LOADING, 0.0, now_s
    return True


def loaded(expert: Expert, load_s: float, now_s: float) -> None:
    """The model is in memory. `load_s` is what the engine took by itself; where the whole wait is known, it counts."""
    expert.load_s = load_s if expert.woken_at_s is None else now_s - expert.woken_at_s
    expert.woken_at_s, expert.loaded_at_s, expert.idle_since_s = None, now_s, now_s


def unload_at_s(expert: Expert) -> float | None:
    """When the expert is to be unloaded if nothing comes; None where it stays or is busy."""
    ttl_s, idle_since_s = expert.section.unload_after_s, expert.idle_since_s
    busy = bool(expert.active or expert.queue) or expert.state is not ExpertState.READY
    return None if ttl_s is None or idle_since_s is None or busy else idle_since_s + ttl_s


def unload_due(experts: Iterable[Expert], now_s: float) -> list[Expert]:
    """Marks the experts whose time in memory is up as cold, and returns them."""
    due = [expert for expert in experts if (at_s := unload_at_s(expert)) is not None and at_s <= now_s]
    for expert in due:
        expert.state, expert.idle_since_s, expert.stopping = ExpertState.COLD, None, True
    return due
