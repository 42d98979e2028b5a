"""A disk that is full under all that coordinator and agent keep: requests go on, and nothing is half written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from moe2.agent.observing import state_disk
from moe2.common.health import Severity
from tests.fakes.disk import filled, small_disk
from tests.fakes.fleet import Fleet, fleet
from tests.scenarios.test_feedback import asked, scored
from tests.scenarios.test_ledger import PROFILE, kept
from tests.scenarios.test_supply import TAKES, order, served, stock, stocked

pytestmark = pytest.mark.slow


@asynccontextmanager
async def fleet_on(disk: Path) -> AsyncIterator[Fleet]:
    async with fleet(disk, models_from=TAKES, profile=PROFILE) as running:
        yield running


def files_of(disk: Path) -> dict[str, object]:
    """All state files that are JSON, as read: one that is cut off raises ValueError."""
    return {str(path.relative_to(disk)): json.loads(path.read_bytes()) for path in disk.rglob("*.json")}


def codes(running: Fleet) -> set[str]:
    return {warning.code for warning in running.coordinator.status().warnings}


async def test_requests_go_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """What cannot be kept is refused or told; once there is room, the ledger is whole and orders are obeyed."""
    async with small_disk(tmp_path / "disk", "16m") as disk:
        stock(disk, "one", "new.gguf")
        async with fleet_on(disk) as running:
            await stocked(running, "one", "new.gguf")
            first = await asked(running)
            with filled(disk):
                second = await asked(running)
                status, answer = await scored(running, first, 1)
                assert (status, answer["error"]["code"]) == (500, "feedback_not_kept")
                [refused] = await order(running, "add", "new", "one", slots=2)
                assert refused.state == "failed"
                assert "No space left" in (refused.message or "")
                assert served(running) == {"fake": 4}
                # What SQLite had made room for before takes some more.
                asked_then = [await asked(running)]
                async with asyncio.timeout(60):
                    while "ledger_not_written" not in codes(running):
                        asked_then.append(await asked(running))
            await running.until_status(lambda _: "ledger_not_written" not in codes(running))
            assert (await scored(running, first, 1))[0] == 200
            [added] = await order(running, "add", "new", "one", slots=2)
            assert (added.state, served(running)) == ("done", {"fake": 4, "new": 2})
        assert {first, second, *asked_then} <= kept(disk).keys()
        assert files_of(disk)


async def test_an_agent_whose_disk_is_full_says_so_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own status, and in the coordinator's, which the page shows; degraded, with the place and what to do."""
    monkeypatch.setattr(state_disk, "CHECK_S", 0.1)
    async with small_disk(tmp_path / "disk", "16m") as disk, fleet_on(disk) as running:
        agent = running.agents["one"]
        assert "state_not_written" not in {warning.code for warning in agent.status().warnings}
        with filled(disk):
            await running.until_status(lambda _: "state_not_written" in codes(running))
            [warning] = [one for one in agent.status().warnings if one.code == "state_not_written"]
            assert warning.severity is Severity.DEGRADED
            assert str(disk) in warning.message
            assert "No space left" in warning.message
            assert "Make room" in warning.remedy
        await running.until_status(lambda _: "state_not_written" not in codes(running))
        assert not list(disk.rglob("*.draft"))


async def test_daemons_that_end_on_a_full_disk_come_back(tmp_path: Path) -> None:
    """They end as always, and start with what was kept before; no file is unreadable."""
    async with small_disk(tmp_path / "disk", "16m") as disk:
        async with fleet_on(disk) as running:
            first = await asked(running)
            await running.quiet()
            filling = filled(disk)
            filling.__enter__()
            await asked(running)
        before = files_of(disk)
        with structlog.testing.capture_logs() as logged:
            async with fleet_on(disk) as running:
                await asked(running)
        filling.__exit__(None, None, None)
        assert [entry["event"] for entry in logged if entry["event"].endswith("_unreadable")] == []
        assert files_of(disk).keys() >= before.keys()
        async with fleet_on(disk) as running:
            await asked(running)
            await running.until_status(lambda _: "ledger_not_written" not in codes(running))
        assert first in kept(disk)
