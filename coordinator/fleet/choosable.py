"""A sorted sequence of what many agents have, in which an agent's report changes only what is that agent's. PURE."""

from __future__ import annotations

from itertools import chain
from typing import Generic, Protocol, TypeVar

import msgspec

from moe2.common.link.reports import ExpertReport


class Keyed(Protocol):
    """Something with a key that is unique in the fleet."""

    @property
    def key(self) -> str:
        """The key that no other has."""
        ...


KeyedT = TypeVar("KeyedT", bound=Keyed)


def is_same_choice(old: tuple[ExpertReport, ...], new: tuple[ExpertReport, ...]) -> bool:
    """Returns whether two reports of an agent's experts differ in nothing that a choice depends on.

    None depends on ages, progress, errors, and figures for people.
    """
    return len(old) == len(new) and all(map(_is_same, old, new))


def _is_same(old: ExpertReport, new: ExpertReport) -> bool:
    return old == new or old == msgspec.structs.replace(
        new,
        active=old.active,
        queued=old.queued,
        performance=old.performance,
        measured_age_s=old.measured_age_s,
        load_progress=old.load_progress,
        last_error=old.last_error,
        unload_cost=old.unload_cost,
    )


class Choosable(Generic[KeyedT]):
    """What all agents have, sorted by key."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[KeyedT, ...]] = {}
        self._sorted: list[KeyedT] = []
        self._place: dict[str, int] = {}
        """The place of each key in `_sorted`; empty where keys have come or gone since it was made."""
        self._shown: tuple[KeyedT, ...] | None = ()

    def put(self, agent_id: str, things: tuple[KeyedT, ...]) -> bool:
        """Sets what an agent has, and returns whether that changed anything."""
        old = self._of.get(agent_id, ())
        if old == things:
            return False
        self._of[agent_id] = things
        if not things:
            del self._of[agent_id]
        if self._place and [thing.key for thing in old] == [thing.key for thing in things]:
            for thing in things:
                self._sorted[self._place[thing.key]] = thing
        else:
            self._place = {}
        self._shown = None
        return True

    def all(self) -> tuple[KeyedT, ...]:
        """Returns what all have, sorted by key; the same object until something changes."""
        if self._shown is None:
            if not self._place:
                self._sorted = sorted(chain.from_iterable(self._of.values()), key=lambda thing: thing.key)
                self._place = {thing.key: place for place, thing in enumerate(self._sorted)}
            self._shown = tuple(self._sorted)
        return self._shown
