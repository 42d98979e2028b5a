"""Large fleets: what one answer says of them. The hosts are those of the scale benchmark, in this process."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks import scale_fleet
from moe2.coordinator.choosing.explain import MAX_WHOLE_FLEET, NEAREST_CANDIDATES, NEAREST_OTHERS
from moe2.coordinator.http.paths import EVENTS_PATH, FLEET_PATH, PLAN_PATH
from moe2.coordinator.serving.life import Lifecycle
from tests.fakes.fleet import POLL_S, TOKEN, Fleet, fleet
from tests.scenarios.test_events import events

N_HOSTS = 12
N_EXPERTS = 2 * N_HOSTS
N_SHOWN = 1 + NEAREST_CANDIDATES + NEAREST_OTHERS


@asynccontextmanager
async def large_fleet(root: Path, n_hosts: int = N_HOSTS) -> AsyncIterator[Fleet]:
    """A coordinator with many hosts of two experts each."""
    async with fleet(root, agents=()) as running:
        hosts = scale_fleet.Fleet(running.coordinator.agents_url, TOKEN, n_hosts, lambda _: None)
        serving = asyncio.create_task(hosts.run())
        try:
            await running.until(ready=2 * n_hosts)
            yield running
        finally:
            serving.cancel()
            await asyncio.wait((serving,))


async def decision(running: Fleet, **moe2: Any) -> dict[str, Any]:
    """The decision on the receipt of one answer."""
    async with await running.chat("Hi", max_tokens=2, moe2={"energy_budget_j": 5.0, **moe2}) as answer:
        assert answer.status == 200
        found: dict[str, Any] = (await answer.json())["moe2"]["decision"]
        return found


async def test_a_receipt_shows_the_nearest_of_many(tmp_path: Path) -> None:
    """Of 24 experts eight are listed, the one that answered among them, and all are counted."""
    async with large_fleet(tmp_path) as running:
        found = await decision(running)
        assert N_EXPERTS > MAX_WHOLE_FLEET
        assert found["counts"]["experts"] == N_EXPERTS
        assert found["counts"]["shown"] == len(found["experts"]) == N_SHOWN
        assert sum(row["chosen"] for row in found["experts"]) == 1


async def test_the_whole_table_comes_on_request(tmp_path: Path) -> None:
    """`explain` in the body and a plan list every expert."""
    async with large_fleet(tmp_path) as running:
        assert len((await decision(running, explain="all"))["experts"]) == N_EXPERTS
        body = {"model": "moe2", "messages": [{"role": "user", "content": "Hi"}]}
        async with running.http.post(PLAN_PATH, json=body) as answer:
            assert len((await answer.json())["decision"]["experts"]) == N_EXPERTS


@pytest.mark.slow
async def test_an_unknown_way_to_explain_is_refused(tmp_path: Path) -> None:
    """What is no way to explain is a 400 that names the parameter."""
    async with fleet(tmp_path) as running:
        async with await running.chat("Hi", moe2={"explain": "everything"}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == "moe2.explain"


async def test_a_part_of_the_fleet_is_shown_on_request(tmp_path: Path) -> None:
    """The API shows as many hosts as it is asked for and finds them by name; without a question it shows all."""
    async with large_fleet(tmp_path) as running:

        async def shown(question: str) -> tuple[list[str], dict[str, Any]]:
            async with running.http.get(FLEET_PATH + question) as answer:
                assert answer.status == 200
                found = await answer.json()
                return [row["agent_name"] for row in found["agents"]], found["counts"]

        names, counts = await shown("?limit=3&offset=2&state=connected")
        assert names == ["host-00002", "host-00003", "host-00004"]
        assert (counts["agents"], counts["matching"], counts["experts_ready"]) == (N_HOSTS, N_HOSTS, N_EXPERTS)
        assert (await shown("?q=rtx"))[0] == ["host-00003", "host-00008"]
        assert len((await shown(""))[0]) == N_HOSTS
        async with running.http.get(FLEET_PATH + "?state=gone") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == "state"


@pytest.mark.slow
async def test_the_feed_shows_a_part_and_what_changes_of_it(tmp_path: Path) -> None:
    """A viewer of three hosts gets those three at first, and later only what has changed of them."""
    async with large_fleet(tmp_path) as running, running.http.get(EVENTS_PATH + "?limit=3") as answer:
        ticks = [data["fleet"] async for name, data in some_events(answer, 6) if name == "tick" and "fleet" in data]
        assert ticks[0]["agent_ids"] == ["host-00000", "host-00001", "host-00002"]
        assert ticks[0]["counts"]["agents"] == N_HOSTS
        assert all(news.keys().isdisjoint({"version", "agent_ids", "api_url"}) for news in ticks[1:])
        assert all(row["agent_id"] in ticks[0]["agent_ids"] for news in ticks for row in news.get("agents", ()))


async def some_events(answer: aiohttp.ClientResponse, n: int) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The first `n` events of a feed."""
    async with asyncio.timeout(60):
        async for event in events(answer):
            yield event
            n -= 1
            if n == 0:
                return


@pytest.mark.slow
async def test_a_viewer_that_goes_on_is_told_only_of_later_requests(tmp_path: Path) -> None:
    """Who asks for other hosts keeps the requests that it knows; a number that never was counts as none."""
    async with fleet(tmp_path) as running:
        for _ in range(3):
            async with await running.chat("Hi", max_tokens=1) as answer:
                assert answer.status == 200
        await running.quiet()
        for after, told in ((0, [1, 2, 3]), (2, [3]), (3, []), (99, [1, 2, 3])):
            async with running.http.get(f"{EVENTS_PATH}?after={after}") as feed:
                [(_, hello)] = [event async for event in some_events(feed, 1)]
                assert [request["seq"] for request in hello["requests"]] == told
                assert hello["after"] == (0 if after == 99 else after)


def lifecycles() -> list[Lifecycle]:
    """Every living lifecycle; by its type, since `isinstance` asks strangers' lazy objects, which warn."""
    return [one for one in gc.get_objects() if type(one) is Lifecycle]


@pytest.mark.slow
async def test_a_request_that_has_ended_is_gone_at_once(tmp_path: Path) -> None:
    """No request waits for the garbage collector, with the figures of a whole fleet in its choice."""
    async with fleet(tmp_path) as running:
        gc.collect()
        gc.disable()
        # Of other tests, where something still holds them.
        former = lifecycles()
        try:
            choices = {"choices": ["yes", "no"], "mode": "vote"}
            for moe2 in ({}, {"energy_budget_j": 0.0}, choices, {"mode": "consensus"}, {"mode": "rank"}):
                async with await running.chat("Hi", max_tokens=2, moe2=moe2) as answer:
                    await answer.read()
            await running.quiet()

            def left() -> list[Lifecycle]:
                return [one for one in lifecycles() if not any(one is other for other in former)]

            async with asyncio.timeout(10):
                while left():  # the handlers that answered end a moment later
                    await asyncio.sleep(POLL_S)
        finally:
            gc.enable()


@pytest.mark.slow
def test_scale_benchmark_prints_its_figures_last() -> None:
    """A short run ends with one JSON object that has every promised figure of a tiny fleet."""
    options = ("--hosts", "3", "--idle-s=0.2", "--requests=5", "--load-s=0.2")
    argv = (sys.executable, "-m", "benchmarks.scale", *options)
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures.keys() == {"3"}
    assert figures["3"].keys() == {
        "cpu_ms_per_request",
        "answer_kb",
        "decision_p99_ms",
        "idle_cpu_pct",
        "rss_mb",
        "page_hello_kb",
        "enrol_s",
        "return_s",
    }
    assert figures["3"]["answer_kb"] > 1
