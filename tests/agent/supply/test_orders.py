"""What becomes of an order that this host's own code cannot carry out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moe2.agent.models.files import ChecksumStore
from moe2.agent.settings import AgentSettings
from moe2.agent.supply.fetching import Fetcher
from moe2.agent.supply.orders import Supply
from moe2.common.errors import Moe2Error
from moe2.common.link.messages import CommandAnswer, CommandOutcome
from moe2.common.link.supply import WithdrawModel


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (OSError(28, "No space left on device"), CommandOutcome.REFUSED, "No space left"),
        (Moe2Error("It cannot be."), CommandOutcome.REFUSED, "It cannot be."),
        (RuntimeError("secret"), CommandOutcome.FAILED, "The agent has a defect: RuntimeError. Its log says more."),
    ],
)
async def test_every_order_is_answered(tmp_path: Path, error: Exception, outcome: CommandOutcome, said: str) -> None:
    """Whatever goes wrong, a defect included, the coordinator hears of it, and the order is no longer under way."""
    settings = AgentSettings.model_validate(
        {
            "agent": {"state_dir": tmp_path},
            "coordinator": {"url": "ws://h:1"},
            "models_from": {"coordinator": True, "folder": tmp_path / "models"},
        }
    )
    answers: asyncio.Queue[CommandAnswer] = asyncio.Queue()

    def fail(_: object) -> None:
        raise error

    checksums = ChecksumStore(tmp_path)
    supply = Supply(
        settings,
        checksums,
        fetcher=lambda library: Fetcher(
            library,
            checksums,
            max_bytes=None,
            url="ws://h:1",
            tls=lambda: None,
            headers=dict,
            ask=lambda _: True,
            changed=lambda: None,
        ),
        serving=dict,
        swapping=tuple,
        dispatch=fail,
        answer=answers.put_nowait,
        changed=lambda: None,
        report_now=lambda: None,
    )
    supply.order(WithdrawModel(command_id="one", name="a"))
    answer = await answers.get()
    assert (answer.command_id, answer.outcome) == ("one", outcome)
    assert answer.message is not None
    assert said in answer.message
    assert "secret" not in answer.message
    await asyncio.sleep(0)
    await supply.close()
