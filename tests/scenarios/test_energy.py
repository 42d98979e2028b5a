"""Joules from a host's sensors to the client's receipt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from tests.fakes import sysfs
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet

RARELY_S = 2.0
"""Between two readings. Five missed in a row are a hole, and on a busy machine the sensor's thread may well miss some;
every request's end is read in any case."""
ORIN_NX_W = 4.992 * 3.320  # VDD_IN of tests.fakes.sysfs.ORIN_NX_RAILS


async def receipt_of(running: Fleet, prompt: str = "a b c", **fields: Any) -> dict[str, Any]:
    async with await running.chat(prompt, **fields) as answer:
        receipt: dict[str, Any] = (await answer.json())["moe2"]
        return receipt


async def test_measured_joules_reach_the_receipt(tmp_path: Path) -> None:
    """An Orin NX's module input, integrated over the request, with how it was obtained."""
    sysfs.orin_nx(tmp_path / "orin")
    async with fleet(tmp_path, sensors_root=tmp_path / "orin", interval_s=RARELY_S) as running:
        receipt = await receipt_of(running, max_tokens=8)
        energy = receipt["energy"]
        assert energy["quality"] == "measured_integrated"
        assert (energy["scope"], energy["source"]) == ("module_input", "ina3221")
        assert 0 < energy["joules"] <= ORIN_NX_W * receipt["seconds"]["total"]


async def test_a_lone_request_is_charged_the_whole_device(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """At constant power the joules are watts times the seconds between start and end."""
    sysfs.orin_nx(tmp_path / "orin")
    async with fleet(tmp_path, sensors_root=tmp_path / "orin", interval_s=RARELY_S, engine_argv=controlled) as running:
        request = asyncio.create_task(receipt_of(running, max_tokens=1))
        step = await control.next_phase()
        reported = running.coordinator.status().agents[0].report_age_s
        # One more steady report is due in half a second: the request lasts for at least a few samples.
        await running.until_status(lambda status: (status.agents[0].report_age_s or 0) < (reported or 0))
        step.answer()
        control.release()
        receipt = await request
        seconds = receipt["seconds"]["total"]
        assert 0.3 * ORIN_NX_W * seconds < receipt["energy"]["joules"] <= 1.01 * ORIN_NX_W * seconds
        assert receipt["energy"]["attribution"] == "exclusive"


async def test_simulated_joules_say_so(tmp_path: Path) -> None:
    """A simulated host's figures are marked in receipt and status."""
    async with fleet(tmp_path, profile="agx-orin-maxn", interval_s=RARELY_S) as running:
        energy = (await receipt_of(running, max_tokens=8))["energy"]
        assert energy["quality"] == "simulated"
        assert energy["source"] == "profile:agx-orin-maxn"
        assert energy["joules"] > 0
        host = running.coordinator.status().agents[0].host
        assert host is not None
        assert "(simulated)" in (host.board or "")


async def test_cancelled_work_keeps_its_joules(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """What a client that left has burnt is not lost: the agent accounts it to the request."""
    sysfs.orin_nx(tmp_path / "orin")
    async with fleet(tmp_path, sensors_root=tmp_path / "orin", interval_s=RARELY_S, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b c", max_tokens=50))
        (await control.next_phase()).answer()
        (await control.next_phase()).answer()
        await control.next_phase()
        with capture_logs() as logs:
            request.cancel()
            await running.quiet()
        (ended,) = [entry for entry in logs if entry["event"] == "request_ended"]
        assert ended["outcome"] == "cancelled"
        assert ended["joules"] > 0
