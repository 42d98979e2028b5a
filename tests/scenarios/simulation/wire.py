"""A simulated connection: two directions of frames in order, until something breaks it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from tests.scenarios.simulation.world import World


class End(Protocol):
    """One side of a wire."""

    def heard(self, frame: bytes) -> None: ...

    def broke(self) -> None:
        """The connection is gone."""


@dataclass
class _Direction:
    to: End
    free_at_s: float = 0.0
    """When the last frame under way arrives; the next one cannot overtake it."""
    silent: bool = False
    """Nothing arrives any more, and nobody is told."""
    under_way: deque[bytes] = field(default_factory=deque)
    """Timers of one moment have no order of their own."""


class Wire:
    """tampering: share of frames that come twice or late. A network under TCP does neither; a broken middlebox may."""

    def __init__(self, world: World, *, delay_s: float, tampering: float = 0.0) -> None:
        self._world = world
        self._delay_s = delay_s
        self.tampering = tampering
        self._up: _Direction | None = None
        self._down: _Direction | None = None
        self.is_broken = False

    def join(self, *, agent: End, coordinator: End) -> None:
        self._up, self._down = _Direction(coordinator), _Direction(agent)

    def send_up(self, frame: bytes) -> None:
        """From the agent to the coordinator."""
        self._send(self._up, frame)

    def send_down(self, frame: bytes) -> None:
        self._send(self._down, frame)

    def close(self, end: End) -> None:
        """`end` closed its socket: after what is under way, the other side sees the end."""
        for direction in (self._up, self._down):
            if direction and direction.to is not end and not self.is_broken:
                arrives_s = max(self._world.now_s + self._delay_s, direction.free_at_s)
                self._world.at(arrives_s, self._ended, direction)

    def snap(self, *, told_within_s: float) -> None:
        """Reset: what is under way is lost, each side learns of it within this time."""
        if self.is_broken:
            return
        self.is_broken = True
        for direction in (self._up, self._down):
            if direction:
                self._world.later(self._world.random.uniform(0, told_within_s), direction.to.broke)

    def go_silent(self, *, up: bool, down: bool) -> None:
        """A blackhole, in one or both directions: only silence tells."""
        assert self._up
        assert self._down
        self._up.silent |= up
        self._down.silent |= down

    def _send(self, direction: _Direction | None, frame: bytes) -> None:
        if direction is None or self.is_broken or direction.silent:
            return
        world = self._world
        arrives_s = max(world.now_s + self._delay_s * world.random.uniform(0.5, 1.5), direction.free_at_s)
        if world.chance(self.tampering):
            if world.chance(0.5):
                world.at(arrives_s + world.random.uniform(0, 3), self._arrived, direction, frame)
                return
            world.at(arrives_s, self._arrived, direction, frame)
        direction.free_at_s = arrives_s
        direction.under_way.append(frame)
        world.at(arrives_s, self._next_arrived, direction)

    def _next_arrived(self, direction: _Direction) -> None:
        self._arrived(direction, direction.under_way.popleft())

    def _arrived(self, direction: _Direction, frame: bytes) -> None:
        if not self.is_broken and not direction.silent:
            direction.to.heard(frame)

    def _ended(self, direction: _Direction) -> None:
        if not self.is_broken and not direction.silent:
            self.is_broken = True
            direction.to.broke()
