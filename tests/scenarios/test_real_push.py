"""The real SmolLM2 on its way to hosts: over links that break, onto disks that fill, and into real engines."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from tests.fakes.breakinglink import CANNOT_SHAPE
from tests.fakes.disk import filled, small_disk
from tests.fakes.fleet import fleet
from tests.gguf import write_gguf
from tests.models import smollm2_path
from tests.scenarios.test_push import OPEN, ended, push, taking
from tests.scenarios.test_supply import TAKES, order, served

pytestmark = pytest.mark.slow


async def test_a_real_model_is_pushed_served_swapped_and_answers(tmp_path: Path) -> None:
    """An agent that is configured without any model ends up answering with one."""
    source = tmp_path / "smollm2.gguf"
    shutil.copyfile(smollm2_path(), source)
    async with fleet(tmp_path, agents=(), push=OPEN) as running:
        await running.start_agent("one", models_from=TAKES, engine_argv=ENGINE_ARGV, models=[])
        await taking(running, "one")
        [row] = await ended(running, await push(running, source, "one"))
        assert row.state == "done"
        [added] = await order(running, "add", "smollm2", "one", context_tokens=1024, slots=2)
        assert (added.state, added.message) == ("done", None)
        async with await running.chat("What is 2+2?", model="smollm2", temperature=0, max_tokens=12) as answer:
            assert "4" in (await answer.json())["choices"][0]["message"]["content"]
        [changed] = await order(running, "set", "smollm2", "one", context_tokens=512, slots=1, cache_type="q8_0")
        assert (changed.state, served(running)) == ("done", {"smollm2": 1})
        [large] = await order(running, "set", "smollm2", "one", context_tokens=16_000_000)
        assert large.state == "refused"
        assert "tokens of context it would fit" in (large.message or "")


async def test_a_push_goes_on_over_a_link_that_breaks(tmp_path: Path) -> None:
    """A shaped link goes down twice while the file travels to two hosts; both get it whole."""
    argv = ("unshare", "--net", sys.executable, "-m", "tests.fakes.breakinglink", str(tmp_path), str(smollm2_path()))
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode in (1, CANNOT_SHAPE) and not output and b"Traceback" not in errors:
        pytest.skip("no network namespaces, or no tbf, on this machine")
    assert process.returncode == 0, errors.decode()[-3000:]
    assert json.loads(output) == {"states": {"one": "done", "two": "done"}, "breaks": 2, "same": [True, True]}


async def test_a_disk_that_fills_meanwhile_ends_one_host_and_no_other(tmp_path: Path) -> None:
    """The reason is told, and once there is room the rest alone is fetched."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(4_000_000))
    slow = {**OPEN, "max_bytes_per_s": 2_000_000}
    async with small_disk(tmp_path / "disk", "262m") as disk:
        async with fleet(tmp_path, agents=("two",), push=slow, models_from=TAKES) as running:
            await running.start_agent("one", models_from={**TAKES, "folder": disk})
            await taking(running, "one", "two")
            ids = await push(running, source, "one", "two")
            await running.until_status(lambda status: all(row.done_bytes > 0 for row in status.pushes))
            with filled(disk):
                rows = {row.host: row for row in await ended(running, ids)}
            assert (rows["one"].state, rows["two"].state) == ("failed", "done")
            assert "cannot be written: No space left" in (rows["one"].message or "")
            [again] = await ended(running, await push(running, source, "one"))
            assert again.state == "done"
            assert (disk / "big.gguf").read_bytes() == source.read_bytes()


async def test_a_slow_host_holds_up_no_fast_one(tmp_path: Path) -> None:
    """One agent stands still while it fetches; the other has the file long before it."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(30_000_000))
    async with fleet(tmp_path, agents=("fast", "slow"), push=OPEN, models_from=TAKES) as running:
        await taking(running, "fast", "slow")
        moving = asyncio.Event()
        fetcher = running.agents["slow"]._supply.fetcher
        begin = fetcher._connection

        async def held(*arguments: object) -> None:
            await moving.wait()
            await begin(*arguments)  # type: ignore[arg-type]

        fetcher._connection = held  # type: ignore[assignment, method-assign]
        ids = await push(running, source, "fast", "slow")
        await running.until_status(lambda status: any(row.state == "done" for row in status.pushes))
        assert {row.host: row.state for row in running.coordinator.status().pushes} == {
            "fast": "done",
            "slow": "waiting",
        }
        moving.set()
        assert {row.state for row in await ended(running, ids)} == {"done"}
