"""Where bodies are parsed, and in which order."""

from __future__ import annotations

import asyncio
import threading

import pytest

from moe2.coordinator.http.access.upload import MAX_ON_LOOP_BYTES, Body, ParsingThread
from moe2.coordinator.http.errors import ApiError, invalid

LONG = bytes(MAX_ON_LOOP_BYTES + 1)
PATIENCE_S = 60.0


def thread_of(_: bytes) -> str:
    """The name of the thread in which a body is parsed."""
    return threading.current_thread().name


def ignore() -> None:
    """Takes note that a body is not needed any more, and does nothing."""


async def test_short_bodies_are_parsed_at_once_and_long_ones_in_a_thread() -> None:
    """Handing a short body to a thread would cost more than parsing it."""
    thread = ParsingThread()
    own = threading.current_thread().name
    assert await Body(LONG[:-1], "a", thread, ignore).parsed(thread_of) == own
    assert (await Body(LONG, "a", thread, ignore).parsed(thread_of)).startswith("parse")
    thread.close()


async def test_what_is_wrong_with_a_long_body_is_raised() -> None:
    """An error of the parser reaches the handler as it is."""

    def refuse(_: bytes) -> None:
        raise invalid("'a' must not be.", param="a")

    thread = ParsingThread()
    with pytest.raises(ApiError, match="must not be"):
        await Body(LONG, "a", thread, ignore).parsed(refuse)
    thread.close()


async def test_clients_take_turns() -> None:
    """Whoever sends many long bodies at once has one of them in line; another's comes next."""
    thread = ParsingThread()
    order: list[str] = []
    may_go = threading.Event()

    def parse(who: str) -> None:
        may_go.wait(PATIENCE_S)
        order.append(who)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(Body(LONG, "greedy", thread, ignore).parsed(lambda _: parse("greedy")))
        await asyncio.sleep(0)
        tasks.create_task(Body(LONG, "other", thread, ignore).parsed(lambda _: parse("other")))
        await asyncio.sleep(0)
        may_go.set()
    assert order.index("other") == 1
    assert len(order) == 6
    thread.close()


@pytest.mark.parametrize("content", [LONG, b"{}"])
async def test_a_body_gives_its_memory_back_once_it_is_parsed(content: bytes) -> None:
    """An answer that takes minutes does not keep its question's bytes."""
    thread = ParsingThread()
    n_told = 0

    def parsed() -> None:
        nonlocal n_told
        n_told += 1

    body = Body(content, "a", thread, parsed)
    assert await body.parsed(len) == len(content)
    assert n_told == 1
    assert body._content == b""
    thread.close()
