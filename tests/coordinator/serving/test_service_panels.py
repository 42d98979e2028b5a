"""The service performs a panel's effects in order, whatever happens while it does."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from moe2.common.link.messages import ContinuationScore, JobPieces, JobScored, ScoreJob, ToAgent, TokenPiece, Tokens
from moe2.coordinator.choosing.forecast import Prediction
from moe2.coordinator.choosing.request import Demand, Mode, Wish
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.serving.bookkeeper import Bookkeeper
from moe2.coordinator.serving.effects import Completed, Failed
from moe2.coordinator.serving.modes.panel import patience_s
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.serving.service import Service
from moe2.coordinator.serving.settings import DispatchSection
from tests.coordinator.experts import expert_report, hello, report, request, selector, speed
from tests.coordinator.lives import USAGE
from tests.coordinator.panels import ALL_MODES, ballot
from tests.virtualclock import on_virtual_clock


class FreeOfCharge:
    """Books nothing and allows everything."""

    def choose(self, _: Any, asked: Any, select: Any) -> Any:
        return select(asked)

    def dispatched(self, _: Any) -> None:
        """Nothing to reserve."""

    def concluded(self, _: Any) -> None:
        """Nothing to note."""

    def retired(self, *_: Any) -> None:
        """Nothing to settle."""


class Bench:
    """A service whose agents the test plays. dead: agents that cannot be reached."""

    def __init__(self, *dead: str) -> None:
        self.sent: list[tuple[str, ToAgent]] = []
        self.receipts: list[Receipt] = []
        self.table = CapabilityTable(stale_s=1e6, evict_s=1e6)
        self._dead = dead
        self.service = Service(
            self.table,
            selector(),
            send=self._send,
            max_active=9,
            settings=DispatchSection(),
            bookkeeper=cast(Bookkeeper, FreeOfCharge()),
            on_retired=lambda _, receipt: self.receipts.append(receipt),
        )

    def join(self, agent_id: str, *models: str) -> None:
        self.table.agent_joined(hello(agent_id), 0.0)
        self.table.agent_reported(agent_id, report(*(expert_report(model) for model in models)), 0.0)

    def _send(self, agent_id: str, message: ToAgent) -> bool:
        self.sent.append((agent_id, message))
        return agent_id not in self._dead

    def vote(self) -> Any:
        asked = {"wish": Wish(mode=Mode.VOTE), "modes": ALL_MODES, "ballot": ballot("a", "b")}
        return self.service.begin(request(model="moe2", arrived_s=0.0, deadline_s=60.0, **asked))


@on_virtual_clock
async def test_a_panel_on_an_agent_that_is_gone_leaves_nothing_behind() -> None:
    """Both its jobs fail at once, though the second had not been sent when the first failed; places are free again."""
    bench = Bench("agent-1")
    bench.join("agent-1", "m", "n")
    _, outcome = await bench.vote().receive_all()
    assert isinstance(outcome, Failed)
    assert bench.service.n_active == 0
    assert [line.outcome for line in bench.receipts[0].experts] == ["lost", "lost"]
    assert not bench.service._jobs
    assert not bench.service._in_flight.count


@on_virtual_clock
async def test_a_prediction_grows_behind_a_long_prompt_at_work_until_that_is_read() -> None:
    """A second request finds half of 1,000 tokens unread, and 20 to be written; a third finds them read and 15 left."""
    bench = Bench()
    law = msgspec.structs.replace(speed(1000.0, 50.0, slots=4), newcomer_s=0.0)
    bench.table.agent_joined(hello("agent-1"), 0.0)
    bench.table.agent_reported("agent-1", report(expert_report("m", latency=law, slots=4)), 0.0)

    def begun(name: str, prompt_tokens: int) -> Prediction:
        demand = Demand(prompt_tokens=prompt_tokens, max_tokens=20)
        asked = request(request_id=name, demand=demand, arrived_s=0.0, deadline_s=60.0, stop=())
        attempt = bench.service.begin(asked).life.leading
        assert attempt is not None
        return attempt.prediction

    alone = begun("first", 1000)
    await asyncio.sleep(0.5)
    behind = begun("second", 400)
    tokens = (TokenPiece("a"),) * 5
    bench.service.agent_said("agent-1", Tokens(jobs=(JobPieces("first.0", tokens), JobPieces("second.0", tokens))))
    after = begun("third", 400)
    assert (alone.shape.unread_tokens, alone.shape.to_write_tokens) == (None, None)
    assert behind.shape.unread_tokens == pytest.approx(500)
    assert behind.shape.to_write_tokens == 20
    assert (after.shape.unread_tokens, after.shape.to_write_tokens) == (0, 30)
    assert behind.ttft_s is not None
    assert after.ttft_s is not None
    assert behind.ttft_s.p50 == pytest.approx(0.8)
    assert after.ttft_s.p50 == pytest.approx(0.4)
    await bench.service.drain(0.0)


@on_virtual_clock
async def test_a_panel_goes_on_without_an_agent_that_is_gone() -> None:
    """The other one is asked as well, and is the only one who is waited for."""
    bench = Bench("agent-1")
    bench.join("agent-1", "m")
    bench.join("agent-2", "m")
    bench.vote()
    jobs = [(agent_id, message) for agent_id, message in bench.sent if isinstance(message, ScoreJob)]
    assert [agent_id for agent_id, _ in jobs] == ["agent-1", "agent-2"]
    assert bench.service.n_active == 1


@on_virtual_clock
async def test_a_silent_member_is_waited_for_until_it_is_late() -> None:
    """From when the other one is there, and not until it could be taken to hang."""
    bench = Bench()
    for agent_id in ("agent-1", "agent-2"):
        bench.join(agent_id, "m")
    asked = bench.vote()
    predicted_s = asked.life.attempts[1].prediction.total_s
    scores = (ContinuationScore(-1.0, 1, 1), ContinuationScore(-2.0, 1, 1))
    bench.service.agent_said("agent-1", JobScored(job_id="req-1.0", scores=scores, usage=USAGE))
    _, outcome = await asked.receive_all()
    assert isinstance(outcome, Completed)
    assert asyncio.get_running_loop().time() == pytest.approx(patience_s(predicted_s.p95 if predicted_s else None))
    assert asked.life.run.collaboration.dropped[0].expert == "agent-2/m"
