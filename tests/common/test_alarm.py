"""Alarms: each of many is rung for at its moment, which may move, and for no other."""

from __future__ import annotations

import asyncio

from moe2.common.alarm import MAX_VOID, Alarms
from tests.virtualclock import on_virtual_clock


class Bell:
    """Alarms, and whom they have rung for at which moment."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, float]] = []
        self.alarms = Alarms(self._ring)

    def _ring(self, name: str) -> None:
        self.rung.append((name, asyncio.get_running_loop().time()))


@on_virtual_clock
async def test_each_is_rung_for_once_at_its_moment() -> None:
    """In whichever order the moments were set, and at once for one that is past."""
    bell = Bell()
    for name, at_s in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("past", -1.0)):
        bell.alarms.set(name, at_s)
    await asyncio.sleep(10.0)
    assert bell.rung == [("past", 0.0), ("a", 1.0), ("b", 2.0), ("c", 3.0)]
    assert bell.alarms.at_s("a") is None


@on_virtual_clock
async def test_the_latest_moment_counts() -> None:
    """Sooner or later than the one before, and also where that was the first of all."""
    bell = Bell()
    bell.alarms.set("sooner", 5.0)
    bell.alarms.set("later", 1.0)
    bell.alarms.set("sooner", 2.0)
    bell.alarms.set("later", 4.0)
    await asyncio.sleep(10.0)
    assert bell.rung == [("sooner", 2.0), ("later", 4.0)]


@on_virtual_clock
async def test_nobody_is_rung_for_after_the_end() -> None:
    """Nor does an end keep others from being rung for."""
    bell = Bell()
    for name, at_s in (("ended", 1.0), ("other", 2.0)):
        bell.alarms.set(name, at_s)
    bell.alarms.end("ended")
    await asyncio.sleep(10.0)
    assert bell.rung == [("other", 2.0)]


@on_virtual_clock
async def test_what_is_raised_for_one_is_none_of_the_others_business() -> None:
    """Two are due at the same moment, and the first one's handling fails."""
    rung: list[str] = []

    def ring(name: str) -> None:
        rung.append(name)
        if name == "broken":
            raise RuntimeError(name)

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    alarms = Alarms(ring)
    for name in ("broken", "sound"):
        alarms.set(name, 1.0)
    await asyncio.sleep(2.0)
    assert rung == ["broken", "sound"]


@on_virtual_clock
async def test_those_that_end_early_leave_nothing_behind() -> None:
    """Ten thousand that were to ring in an hour, one after the other."""
    alarms = Bell().alarms
    for n in range(10_000):
        alarms.set(str(n), 3600.0 + n)
        alarms.end(str(n))
    assert len(alarms._moments) <= MAX_VOID + 2


@on_virtual_clock
async def test_who_hurries_is_rung_for_no_later_than_before() -> None:
    """A nearer moment counts, one further away does not, and who was not to be rung for is not."""
    bell = Bell()
    bell.alarms.set("nearer", 5.0)
    bell.alarms.hurry("nearer", 1.0)
    bell.alarms.set("further", 2.0)
    bell.alarms.hurry("further", 4.0)
    bell.alarms.hurry("unset", 3.0)
    await asyncio.sleep(10.0)
    assert bell.rung == [("nearer", 1.0), ("further", 2.0)]
