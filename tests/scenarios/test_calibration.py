"""What was predicted against what came, from a fake expert to the command's output; profiles over restarts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from moe2.agent.cli.status import show_status as show_agent
from moe2.agent.learning.store import StoredProfile, setup_of, store_profile
from moe2.agent.settings import ModelSection
from moe2.common.energy import Quality
from moe2.common.localclient import RefusedError, fetch
from moe2.coordinator.cli.accuracy import show_calibration
from moe2.coordinator.cli.plan import show_plan
from moe2.coordinator.cli.status import show_status
from moe2.coordinator.observing.accuracy import CalibrationReport
from tests.coordinator.experts import cost, speed
from tests.fakes.fleet import Fleet, fleet

pytestmark = pytest.mark.slow

PROFILE = "agx-orin-maxn"
REQUESTS = 6


async def serve(running: Fleet, count: int = REQUESTS) -> list[dict[str, Any]]:
    """So many answers, one after the other; their receipts."""
    receipts = []
    for number in range(count):
        async with await running.chat(f"{number} b c d e", max_tokens=8) as answer:
            receipts.append((await answer.json())["moe2"])
    await running.quiet()
    return receipts


def socket_of(running: Fleet) -> Path:
    return running.root / "coordinator.sock"


async def calibration(running: Fleet, query: str = "") -> CalibrationReport:
    return msgspec.json.decode(
        await asyncio.to_thread(fetch, socket_of(running), f"/calibration{query}"), type=CalibrationReport
    )


async def test_answers_are_compared_with_their_predictions(tmp_path: Path) -> None:
    """Every answer counts once, in seconds; without a sensor its joules are unmeasured and in no figure."""
    async with fleet(tmp_path) as running:
        await serve(running)
        report = await calibration(running)
        last = await calibration(running, "?last=2")
    [one] = report.experts
    assert one.n_requests == REQUESTS
    assert one.total_s.decoded.n == REQUESTS
    assert one.total_s.decoded.median_abs_error_pct is not None
    assert (one.energy_j.decoded.n, one.energy_j.n_unmeasured) == (0, REQUESTS)
    assert last.overall.n_requests == 2


@pytest.mark.parametrize("last", ["0", "-1", "many"])
async def test_a_senseless_number_of_requests_is_refused(tmp_path: Path, last: str) -> None:
    """In words."""
    async with fleet(tmp_path) as running:
        with pytest.raises(RefusedError, match="must be a whole number of requests"):
            await calibration(running, f"?last={last}")


async def test_the_command_shows_the_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain and as JSON, with exit code 0."""
    async with fleet(tmp_path) as running:
        await serve(running, 2)
        for as_json in (False, True):
            assert await asyncio.to_thread(show_calibration, socket_of(running), as_json=as_json, watch=False) == 0
    # The daemons of this test log to the same place.
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("calibration expert=all") and "quantity=total_s n=2" in line for line in lines)
    [document] = [json.loads(line) for line in lines if line.startswith("{")]
    assert document["overall"]["n_requests"] == 2


async def test_every_simulated_figure_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Receipt, prediction, decision, refusal with its offers, both statuses and the plan."""
    model = tmp_path / "fake.gguf"
    model.touch()
    measured = StoredProfile(
        model="fake",
        setup=setup_of(ModelSection(name="fake", path=model, slots=4)),
        hostname="bench",
        measured_at_unix_s=0.0,
        power_mode="MAXN (simulated)",
        latency=speed(1000.0, 100.0, slots=4),
        energy=cost(2.0, quality=Quality.SIMULATED),
    )
    store_profile(tmp_path / "one", measured)
    async with fleet(tmp_path, profile=PROFILE) as running:
        [receipt] = await serve(running, 1)
        async with await running.chat("a b c", moe2={"energy_budget_j": 1e-9}) as refusal:
            error = (await refusal.json())["error"]
        host = running.agents["one"].status().host
        [sensor] = running.coordinator.status().agents[0].sensors
        await asyncio.to_thread(show_agent, tmp_path / "one.sock", as_json=False, watch=False)
        of_agent = capsys.readouterr().out
        await asyncio.to_thread(show_status, socket_of(running), as_json=False, watch=False)
        of_fleet = capsys.readouterr().out
        await asyncio.to_thread(show_plan, socket_of(running), "a", {}, model="moe2", max_tokens=8, as_json=False)
        of_plan = capsys.readouterr().out
    assert receipt["energy"]["quality"] == "simulated"
    assert receipt["predicted"]["energy_j"]
    assert receipt["predicted"]["energy_quality"] == "simulated"
    assert [row["energy_quality"] for row in receipt["decision"]["experts"]] == ["simulated"]
    assert "joules simulated" in error["message"]
    assert error["offers"]["cheapest"]["energy_quality"] == "simulated"
    assert all("(simulated)" in (text or "") for text in (host.board, host.accelerator, host.power_mode))
    assert sensor.simulated
    for shown in (of_agent, of_fleet):
        assert 'power_mode="MAXN (simulated)"' in shown
        assert "simulated=yes" in shown
        assert "energy_quality=simulated" in shown
    assert "(simulated)" in of_plan
    assert "joules are simulated" in of_plan


async def test_a_restarted_agent_begins_with_what_it_had_learned(tmp_path: Path) -> None:
    """At a clean end its experts' profiles are kept; the next start takes them up and says so."""
    async with fleet(tmp_path) as running:
        await serve(running)
        await stop(running, "one")
        with capture_logs() as logs:
            await running.start_agent("one")
            await running.until(ready=1)
        [restored] = [entry for entry in logs if entry["event"] == "profile_restored"]
        assert restored["model"] == "fake"
        latency = running.agents["one"].status().experts[0].latency
    assert latency is not None
    assert latency.n_requests == 0
    # The fake's own pace is a hundredth of a second for a token, its warm-up's too; what was served was 8 tokens in
    # 8 / 100 s, which makes 7 steps a little longer.
    assert latency.decode[0] == pytest.approx(0.08 / 7, rel=0.1)


async def test_a_profile_of_another_file_is_left_alone(tmp_path: Path) -> None:
    """The log says why."""
    async with fleet(tmp_path) as running:
        await serve(running, 2)
        await stop(running, "one")
        (tmp_path / "fake.gguf").write_bytes(b"another model")
        with capture_logs() as logs:
            await running.start_agent("one")
            await running.until(ready=1)
        [refused] = [entry for entry in logs if entry["event"] == "profile_not_restored"]
        assert "has changed since" in refused["reason"]
        assert "file_bytes" in refused["reason"]


async def test_a_profile_that_cannot_be_kept_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The agent ends all the same and says what it could not write."""
    async with fleet(tmp_path) as running:
        await serve(running, 2)
        (tmp_path / "one" / "profiles").write_text("in the way")
        with capture_logs() as logs:
            await stop(running, "one")
    [refused] = [entry for entry in logs if entry["event"] == "profile_not_stored"]
    assert "cannot be written" in refused["reason"]
    assert "agent_stopped" in [entry["event"] for entry in logs]


async def stop(running: Fleet, name: str) -> None:
    """End an agent as SIGTERM does."""
    running.agents.pop(name).stop()
    await running.agent_tasks.pop(name)
    await running.until(ready=0)
