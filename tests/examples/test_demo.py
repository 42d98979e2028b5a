"""The demo: what it writes, how it talks, how it ends; and the whole of it with the real model."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console, RenderableType

from examples.demo import report, setup
from examples.demo.client import Answer, DemoClient, Prompt
from examples.demo.errors import DemoError, Interrupted
from examples.demo.fleet import Fleet, unless
from examples.demo.models import CHECKOUT, Model
from examples.demo.tour import Averaged, Budgeted, Tour, without_requests
from moe2.agent.settings import AgentSettings
from moe2.common.config import load_settings
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.localsocket import MAX_PATH_BYTES
from moe2.common.status import AverageRow
from moe2.coordinator.settings import CoordinatorSettings
from tests.coordinator.receipts import agent_row, status

MODELS = (
    Model("first", Path("/models/first.gguf"), "rtx-4090"),
    Model("second", Path("/models/second.gguf"), "agx-orin-30w"),
)
RECEIPT = {
    "request_id": "req-1",
    "experts": [{"model": "first", "agent": "demo-rtx-4090"}],
    "seconds": {"total": 0.5},
    "energy": {"joules": None},
    "decision": {"experts": [{"chosen": False, "score": 0.1}, {"chosen": True, "score": 0.28}]},
}


# --- What is written --------------------------------------------------------------------------------------------------


def test_the_written_configurations_are_valid_and_fit_together(tmp_path: Path) -> None:
    """Both agents name the coordinator's listener and its token; each has one model and a state of its own."""
    ready = setup.prepare(tmp_path, MODELS)
    coordinator = load_settings(CoordinatorSettings, ready.coordinator.config, environment={}, prefix="X")
    agents = [load_settings(AgentSettings, agent.config, environment={}, prefix="X") for agent in ready.agents]
    assert ready.api_url == f"http://127.0.0.1:{coordinator.api.port}"
    for agent, model in zip(agents, MODELS, strict=True):
        assert agent.coordinator.url == f"ws://127.0.0.1:{coordinator.agents.port}"
        assert agent.coordinator.token_file == coordinator.agents.token_file
        assert [(part.name, part.path) for part in agent.models] == [(model.name, model.path)]
    assert len({agent.agent.state_dir for agent in agents} | {agent.agent.socket for agent in agents}) == 4


def test_the_token_is_fresh_and_private(tmp_path: Path) -> None:
    """Each start has another token, in a file that only its owner reads."""
    tokens = set()
    for _ in range(2):
        setup.prepare(tmp_path, MODELS)
        tokens.add((tmp_path / "token").read_text())
        (tmp_path / "token").chmod(0o644)
    setup.prepare(tmp_path, MODELS)
    assert len(tokens) == 2
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_deep_folder_gets_its_sockets_elsewhere(tmp_path: Path) -> None:
    """Unix socket paths are short; a checkout's path need not be."""
    ready = setup.prepare(tmp_path / ("d" * 100), MODELS)
    assert all(len(os.fsencode(daemon.socket)) <= MAX_PATH_BYTES for daemon in (ready.coordinator, *ready.agents))
    ready.coordinator.socket.parent.rmdir()


def test_a_port_in_use_is_passed_over() -> None:
    """The demo does not fail because something else listens on its first choice."""
    with socket.socket() as other:
        other.bind((setup.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert setup.free_port(taken) > taken


# --- How it talks -----------------------------------------------------------------------------------------------------


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], "usage": None}


LAST_CHUNK = {"choices": [], "usage": {"completion_tokens": 11}, "moe2": RECEIPT}


class FakeCoordinator:
    """Answers every completion with `stream`, every question about the fleet with the next of `fleets`."""

    def __init__(self) -> None:
        self.stream = event(delta("Hello ")) + event(delta("there")) + event(LAST_CHUNK) + b"data: [DONE]\n\n"
        self.status = 200
        self.fleets: list[tuple[ExpertReport, ...]] = []
        self.asked: list[dict[str, Any]] = []
        self.app = web.Application()
        self.app.router.add_post("/v1/chat/completions", self._complete)
        self.app.router.add_get("/v1/moe2/fleet", self._fleet)
        self.app.router.add_get("/readyz", self._ready)

    async def _complete(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        return web.Response(body=self.stream, status=self.status)

    async def _fleet(self, _: web.Request) -> web.Response:
        experts = self.fleets.pop(0)
        fleet = status(*(agent_row(agent_id=expert.model, experts=(expert,)) for expert in experts))
        return web.Response(body=msgspec.json.encode(fleet))

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response()


@pytest.fixture
def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
async def client(coordinator: FakeCoordinator) -> AsyncIterator[DemoClient]:
    async with TestServer(coordinator.app) as server, aiohttp.ClientSession() as http:
        yield DemoClient(http, str(server.make_url("")).rstrip("/"))


async def test_an_answer_is_put_together_from_the_stream(client: DemoClient, coordinator: FakeCoordinator) -> None:
    """Text, tokens, first-token time and receipt come out of the events."""
    answer = await client.ask(Prompt("Hi"))
    assert (answer.text, answer.completion_tokens, answer.receipt) == ("Hello there", 11, RECEIPT)
    assert answer.ttft_s is not None
    assert coordinator.asked[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("stream", "status", "said"),
    [
        (b'{"error": {"message": "No expert is ready."}}', 503, "No expert is ready."),
        (event(delta("Hel")) + event({"error": {"message": "The agent was lost."}}), 200, "The agent was lost."),
        (event(delta("Hel")), 200, "without a receipt"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(
    client: DemoClient, coordinator: FakeCoordinator, stream: bytes, status: int, said: str
) -> None:
    """A refusal, an error within the stream and a stream that breaks off all fail the demo."""
    coordinator.stream, coordinator.status = stream, status
    with pytest.raises(DemoError, match=said):
        await client.ask(Prompt("Hi"))


def expert(state: ExpertState, **facts: Any) -> ExpertReport:
    return ExpertReport(model="first", state=state, context_tokens=64, slots=1, **facts)


async def test_a_model_that_cannot_be_loaded_ends_the_waiting(client: DemoClient, coordinator: FakeCoordinator) -> None:
    """The demo does not wait for its timeout when it knows that waiting is in vain."""
    coordinator.fleets = [(expert(ExpertState.FAILED, last_error="no such file"),)]
    with pytest.raises(DemoError, match="no such file"):
        await client.wait_until_ready(1, lambda _: None, timeout_s=60.0)


async def test_waiting_ends_when_every_expert_is_ready(
    client: DemoClient, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two agents, then two of which one loads, then both: progress names what is missing."""
    monkeypatch.setattr("examples.demo.client.POLL_S", 0.0)
    ready = expert(ExpertState.READY)
    coordinator.fleets = [(ready,), (ready, expert(ExpertState.LOADING)), (ready, ready)]
    said: list[str] = []
    await client.wait_until_ready(2, said.append, timeout_s=60.0)
    assert said == ["1 agents start", "first loading"]


# --- What is shown ----------------------------------------------------------------------------------------------------


def printed(shown: RenderableType) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(shown)
    return " ".join(console.export_text().split())


def answered(joules: float | None, agent: str = "demo-rtx-4090") -> Answer:
    energy = {"joules": joules, "reason": "no reading" if joules is None else None}
    receipt = {**RECEIPT, "experts": [{"model": "first", "agent": agent}], "energy": energy}
    return Answer(Prompt("Hi"), "Hello\nthere", 0.0214, 11, receipt)


REFUSAL = {
    "code": "infeasible_budget",
    "offers": {
        "cheapest": {"expert": "agent-2/second", "energy_j": 77.4, "total_s": 3.85},
        "fastest": {"expert": "agent-1/first", "energy_j": 120.0, "total_s": 0.5},
    },
}
CERTIFICATE = {"value": 0.384, "upper_bound": 0.384, "status": "optimal", "nodes": 4, "elapsed_s": 0.00016}
PLAN = {
    "decision": {
        "experts": [{"expert": "agent-1/first", "chosen": True}, {"expert": "agent-2/second", "chosen": False}],
        "certificate": CERTIFICATE,
    }
}


def seen() -> Tour:
    fleet = status(agent_row(agent_id="agent-1", agent_name="orin"), agent_row(agent_id="agent-2", agent_name="nano"))
    row = AverageRow(
        scope="category tour", average_energy_j=90.0, price_per_j=0.0012, mean_j=85.0, n_answers=2, simulated=True
    )
    averaged = Averaged(
        {"demo-rtx-4090": 120.0, "demo-agx-orin-30w": 60.0},
        90.0,
        (answered(100.0), answered(40.0, "demo-agx-orin-30w"), answered(None)),
        row,
    )
    stops = (Budgeted("none", answered(326.4)), Budgeted("15 J", REFUSAL))
    return Tour(stops, averaged, PLAN, fleet, without_requests(fleet))


def test_the_report_tells_who_answered_at_which_cost_under_each_budget() -> None:
    """A row each, with the score of the expert that was chosen; a budget that nobody keeps is refused."""
    text = printed(report.budgets_table(seen().budgeted))
    assert "none demo-rtx-4090 0.28 326 500 ms Hello there" in text
    assert "15 J nobody: refused" in text


def test_unmeasured_joules_are_said_to_be_so() -> None:
    """A host without a figure shows none, never 0."""
    assert "demo-rtx-4090 0.28 unmeasured" in printed(report.budgets_table((Budgeted("none", answered(None)),)))


def test_the_report_names_offers_average_price_and_proof() -> None:
    """What a refusal offers, that the average holds, what a joule is worth, and that the plan is proven."""
    text = printed(report.tour_report(seen()))
    assert "names what would do: cheapest nano with 77.4 J and 3.85 s, fastest orin with 120 J and 500 ms." in text
    assert "r a r 1 by demo-agx-orin-30w (a), 2 by demo-rtx-4090 (r)" in text
    assert "took 120 J on demo-rtx-4090 and 60 J on demo-agx-orin-30w (the mean, simulated)" in text
    assert "Mean: 70 J of 90 J (simulated); 1 unmeasured (no reading)." in text
    assert "0.12 points of score" in text
    assert "orin: a good answer with probability 0.384 on average; no set has more than 0.384 (optimal" in text


# --- How it ends ------------------------------------------------------------------------------------------------------


async def forever() -> DemoError:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({"demo-rtx-4090": 90.0, "demo-agx-orin-30w": 40.0}, None),
        ({"demo-rtx-4090": 120.0, "demo-agx-orin-30w": 50.0}, "100 more pay back what was too much."),
        ({"demo-rtx-4090": 120.0, "demo-agx-orin-30w": 70.0}, "Nobody's answers kept below it."),
    ],
)
def test_an_average_that_did_not_hold_is_explained(costs: dict[str, float], said: str | None) -> None:
    """Who answered took how much meanwhile, and whether any choice would have kept it."""
    kept = seen()
    answers = tuple(answered(cost, agent) for agent, cost in costs.items())
    averaged = replace(kept.averaged, target_j=60.0, answers=answers)
    words = printed(report.tour_report(replace(kept, averaged=averaged)))
    assert ("That is more than was wanted." in words) == (said is not None)
    if said is not None:
        assert said in words
        assert f"{costs['demo-agx-orin-30w']:.0f} J on demo-agx-orin-30w and 120 J on demo-rtx-4090" in words


async def test_trouble_cancels_the_work() -> None:
    """What comes first counts, and nothing is left running."""
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    async def trouble() -> Interrupted:
        return Interrupted()

    with pytest.raises(Interrupted):
        await unless(trouble(), work())
    assert cancelled.is_set()


async def test_a_failure_is_blamed_on_the_trouble_behind_it() -> None:
    """A request that fails because a daemon died shows the daemon's log, not "connection reset"."""
    died = asyncio.Event()

    async def work() -> None:
        died.set()
        raise DemoError("connection reset")

    async def trouble() -> DemoError:
        await died.wait()
        return DemoError("the agent died", log="segmentation fault")

    with pytest.raises(DemoError, match="the agent died"):
        await unless(trouble(), work())


async def test_finished_work_is_returned() -> None:
    """Without trouble the work's result comes back."""

    async def work() -> int:
        return 7

    assert await unless(forever(), work()) == 7


@pytest.mark.slow
async def test_a_daemon_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    """A daemon that cannot start leaves its last words in the error."""
    ready = setup.prepare(tmp_path, ())
    ready.coordinator.config.write_text("[nonsense]\n")
    async with Fleet(ready) as fleet:
        death = await fleet.first_death()
    assert str(death) == "coordinator ended with exit code 78."
    assert "nonsense: unknown key" in death.log


# --- All of it --------------------------------------------------------------------------------------------------------


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--folder", folder, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT / 'dev'}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_shows_budgets_with_real_models(tmp_path: Path) -> None:
    """--once: two simulated hosts answer under budgets, one budget is refused, an average holds, exit code 0."""
    with demo(tmp_path, "--once") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    for said in ("demo-rtx-4090", "demo-agx-orin-30w", "nobody: refused", "infeasible_budget", "Mean: ", "optimal"):
        assert said in output
    # An answer that ends between two samples of a busy machine is unmeasured, and says why; no other figure may be.
    counted = re.search(r"(\d+) unmeasured(\.| \()", output.replace("\n", " "))
    assert counted is not None
    assert int(counted[1]) <= 4
    assert (counted[1] == "0") == (counted[2] == ".")
    assert len(re.findall(r"unmeasured", output)) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_demo_and_all_it_started(tmp_path: Path) -> None:
    """Until Ctrl-C the service runs; then every daemon is gone and the exit code is 0."""
    with demo(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C ends it" in line:
                break
        assert (tmp_path / "coordinator.sock").exists()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 0, rest
    assert not list(tmp_path.glob("*.sock"))
    logs = [log.read_text() for log in (tmp_path / "logs").iterdir()]
    assert len(logs) == 3
    assert all("_stopped" in log for log in logs)
