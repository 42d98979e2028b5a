"""What faults cost, they cost once: nothing is kept of a link that broke or a request that failed."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import pytest

from tests.scenarios.faults.bench import ANSWER, Resources, assert_one_end, bench

ROUNDS = 20
# Recent requests, metrics and learned lengths are kept on purpose, up to bounds that so few rounds do not reach.
MAX_BYTES_PER_ROUND = 40_000


@pytest.mark.slow
async def test_many_broken_links_leave_nothing_behind(tmp_path: Path) -> None:
    """After the first rounds, memory grows only by what is remembered of requests; fds and tasks not at all."""
    async with bench(tmp_path) as built, asyncio.timeout(100):
        built.shaky.release()

        async def round_() -> None:
            built.shaky.free = False
            request = asyncio.create_task(built.ask(stream=True))
            step = await built.shaky.next_phase()
            built.proxy.latest.reset()
            assert_one_end(await request)
            built.shaky.release()
            step.answer()
            await built.fleet.until(ready=1)
            assert (await built.ask()).text == ANSWER

        for _ in range(5):
            await round_()
        built.logs.clear()
        before = Resources.now()
        gc.collect()
        tracemalloc.start()
        try:
            first, _ = tracemalloc.get_traced_memory()
            for _ in range(ROUNDS):
                await round_()
            built.logs.clear()
            del built.proxy.connections[:-1]
            gc.collect()
            last, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (last - first) / ROUNDS < MAX_BYTES_PER_ROUND
        await before.back()
