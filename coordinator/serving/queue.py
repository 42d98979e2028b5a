"""The queue at work: has waiting requests looked at when there may be room, and says when refused ones may return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from moe2.common.alarm import Alarm
from moe2.common.error_codes import ErrorCode
from moe2.common.errors import JobErrorCode
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.choosing.selector import can_serve
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.serving.effects import Failed, Outcome
from moe2.coordinator.serving.judge import ExpertJudge
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.waiting_room import WaitingRoom, retry_after_s

MAX_IN_VAIN = 32
"""Waiting requests that are looked at for one piece of news: those that want what it does not bring must not cost the
running ones their time."""


class Queue:
    """Requests that wait for room, and when they are looked at.

    most: places. room_appeared: has the service look whether a request, by its id, can be served now.
    """

    def __init__(
        self, most: int, *, table: CapabilityTable, judge: ExpertJudge, room_appeared: Callable[[str], None]
    ) -> None:
        self._waiting = WaitingRoom(most)
        self._table = table
        self._judge = judge
        self._room_appeared = room_appeared
        self._is_room_expected = False
        self.alarm = Alarm(self.expect_room)
        """Rings when a breaker lets a probe through: that makes room, too, and nobody tells."""

    def __len__(self) -> int:
        return len(self._waiting)

    def in_turn(self) -> Iterator[str]:
        """Ids of the requests that wait, the next one first."""
        return self._waiting.in_turn()

    def enter(self, request: Request) -> tuple[str, ...]:
        """Have a request wait. Returns the ids of the requests that have no place now: this one, or one displaced."""
        request_id = request.request_id
        entered = self._waiting.enter(request_id, model=request.model, key_id=request.principal.key_id)
        if entered is None:
            return (request_id,)
        self._wake_for_breakers()
        return () if entered.displaced is None else (entered.displaced,)

    def leave(self, request_id: str, *, served: bool) -> None:
        """Give a request's place back. served: it has got an expert."""
        self._waiting.leave(request_id, served=served)

    def expect_room(self) -> None:
        """Look soon whether somebody who waits can be served: not in the middle of what is being done now."""
        if self._waiting and not self._is_room_expected:
            self._is_room_expected = True
            asyncio.get_running_loop().call_soon(self.serve)

    def serve(self) -> None:
        """Look now whether somebody who waits can be served, if there was news of room."""
        if not self._is_room_expected:
            return
        self._is_room_expected = False
        in_vain = 0
        # Suspects first: they need an engine that is idle, as one is that has just been started again.
        for request_id in sorted(self._waiting.in_turn(), key=lambda waiting: waiting not in self._judge.suspects):
            if request_id not in self._waiting:
                continue  # It lost its place to one that was served before it.
            self._room_appeared(request_id)
            in_vain += request_id in self._waiting
            if in_vain >= MAX_IN_VAIN:
                break
        self._wake_for_breakers()

    def room_in_s(self, model: str) -> float | None:
        """When a request for this model can expect room, behind those that wait; None where no speed is known."""
        experts = self._table.choosable(asyncio.get_running_loop().time())
        wanted = [expert for expert in experts if can_serve(model, expert)]
        return retry_after_s(self._waiting.n_waiting_for(model), wanted)

    def retry_after_s(self, model: str, outcome: Outcome, refused: NoExpert | None) -> float | None:
        """When a request that was refused for the state of the fleet should come again; None where nobody can say.

        refused: why the latest choice found no expert for it.
        """
        if not isinstance(outcome, Failed):
            return None
        if outcome.code in (ErrorCode.OVERLOADED, JobErrorCode.QUEUE_FULL):
            return self.room_in_s(model)
        if outcome.code == ErrorCode.INFEASIBLE_NOW and refused:
            known_s = [at_s for at_s in (self.room_in_s(model), refused.frees_in_s) if at_s is not None]
            return max(known_s, default=None)
        now_s = asyncio.get_running_loop().time()
        experts = [expert for expert in self._table.choosable(now_s) if can_serve(model, expert)]
        if outcome.code == ErrorCode.NO_LIVE_EXPERT and experts:
            return min(self._judge.breakers.opens_again_in_s(expert.key, now_s) for expert in experts)
        return None

    def _wake_for_breakers(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self.alarm.set(self._judge.breakers.next_change_s(now_s) if self._waiting else None)
