"""The live feed of the page: what comes, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.coordinator.http.paths import EVENTS_PATH
from moe2.coordinator.http.routes.events import MAX_VIEWERS
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in answer.content:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


async def first(answer: aiohttp.ClientResponse, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first event that satisfies `holds`."""
    async with asyncio.timeout(60):
        async for _, data in events(answer):
            if holds(data):
                return data
    raise AssertionError("the feed ended before it came")


def feed(running: Fleet) -> Any:
    # The default of 64 KiB for one line is less than a hello with many receipts.
    return running.http.get(EVENTS_PATH, read_bufsize=2**22)


async def test_feed_begins_with_hello_then_the_fleet(tmp_path: Path) -> None:
    """A viewer knows everything after two events."""
    async with fleet(tmp_path) as running, feed(running) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        came = events(answer)
        name, hello = await anext(came)
        assert (name, hello["features"]) == ("hello", {"plan": True, "operate": False})
        name, tick = await anext(came)
        assert name == "tick"
        assert tick["fleet"]["agents"][0]["agent_name"] == "one"
        assert tick["power"]["power_w"] is None


async def test_ended_requests_arrive_with_their_receipt(tmp_path: Path) -> None:
    """The receipt in the feed is the one that the client got; a later viewer finds it in its hello."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:
        async with feed(running) as answer:
            async with await running.chat("a b c", max_tokens=4) as chat:
                receipt = (await chat.json())["moe2"]
            (ended,) = (await first(answer, lambda data: data.get("requests")))["requests"]
            assert ended["outcome"] == "completed"
            assert ended["receipt"] == receipt
        async with feed(running) as answer:
            hello = await first(answer, lambda data: "features" in data)
            assert [request["receipt"] for request in hello["requests"]] == [receipt]
            assert hello["energy"]["bins"][-1]["joules"]["simulated"] > 0


@pytest.mark.slow
async def test_running_requests_are_shown_while_they_run(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """A request that is held in its prefill is seen, without its prompt."""
    async with fleet(tmp_path, engine_argv=controlled) as running, feed(running) as answer:
        request = asyncio.create_task(running.chat("secret words", max_tokens=1))
        step = await control.next_phase()
        tick = await first(answer, lambda data: data.get("running"))
        assert tick["running"][0]["agents"] == ["one"]
        assert tick["running"][0]["answering"] is False
        assert "secret" not in json.dumps(tick)
        step.answer()
        control.release()
        (await request).close()


async def test_feeds_end_at_shutdown(tmp_path: Path) -> None:
    """An open page does not hold up the coordinator."""
    async with fleet(tmp_path) as running:
        answer = await running.http.get(EVENTS_PATH)
        running.coordinator.stop()
        async with asyncio.timeout(60):
            while await answer.content.readany():
                pass


async def test_viewers_are_limited(tmp_path: Path) -> None:
    """One viewer too many is told when to come again, and gets in once another has left."""
    async with fleet(tmp_path) as running:
        viewers = [await running.http.get(EVENTS_PATH) for _ in range(MAX_VIEWERS)]
        async with running.http.get(EVENTS_PATH) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "10"
        for viewer in viewers:
            viewer.close()
        async with asyncio.timeout(60):
            while True:
                async with running.http.get(EVENTS_PATH) as answer:
                    if answer.status == 200:
                        break
