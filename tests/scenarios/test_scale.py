"""Large fleets: what one answer says of them. The hosts are those of the scale benchmark, in this process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale_fleet
from moe2.coordinator.choosing.explain import MAX_WHOLE_FLEET, NEAREST_CANDIDATES, NEAREST_OTHERS
from moe2.coordinator.http.paths import PLAN_PATH
from tests.fakes.fleet import TOKEN, Fleet, fleet

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


async def test_an_unknown_way_to_explain_is_refused(tmp_path: Path) -> None:
    """What is no way to explain is a 400 that names the parameter."""
    async with fleet(tmp_path) as running:
        async with await running.chat("Hi", moe2={"explain": "everything"}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == "moe2.explain"


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
