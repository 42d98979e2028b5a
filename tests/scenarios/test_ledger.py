"""The ledger behind HTTP: what a client has read in full is in it; daily limits hold, over restarts too."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from openai import AsyncOpenAI

from moe2.agent.learning.store import StoredProfile, setup_of, store_profile
from moe2.agent.settings import ModelSection
from moe2.common.energy import Quality
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.ledger.report import RequestRow, Span, requests
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.serving.exchange import Exchange
from moe2.coordinator.serving.request import Request
from moe2.coordinator.serving.service import Service
from tests.coordinator.experts import cost, speed
from tests.coordinator.keys.keys import add_key
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import POLL_S, Fleet, fleet, model_file

pytestmark = pytest.mark.slow

PROFILE = "agx-orin-maxn"
CHAT_ROUTE = "/v1/chat/completions"
CLIENTS = 16
BEFORE_THE_KILL = 60

AsKey = Callable[[DailyLimits], None]


def kept(root: Path) -> dict[str, RequestRow]:
    """The ledger of a coordinator, as another process reads it."""
    with reading(root / "ledger.sqlite") as connection:
        return {row.request_id: row for row in requests(connection, Span())}


@pytest.fixture
def as_key(monkeypatch: pytest.MonkeyPatch) -> AsKey:
    """Has every request come from one key with these limits."""
    begin = Service.begin

    def limited(limits: DailyLimits) -> None:
        principal = Principal(key_id="k1", name="app", daily=limits)

        def begin_as(service: Service, request: Request, news: asyncio.Event | None = None) -> Exchange:
            return begin(service, msgspec.structs.replace(request, principal=principal), news)

        monkeypatch.setattr(Service, "begin", begin_as)

    return limited


def measured(root: Path, agent: str, *, j_per_token: float, tokens_per_s: float, model: str = "fake") -> ModelSection:
    """Let an agent's expert be known to cost this much, and return how the agent has to serve it."""
    section = ModelSection(name=model, path=model_file(root, model), slots=4)
    profile = StoredProfile(
        model=model,
        setup=setup_of(section),
        hostname="bench",
        measured_at_unix_s=0.0,
        power_mode="MAXN (simulated)",
        latency=speed(1000.0, tokens_per_s, slots=4),
        energy=cost(j_per_token, quality=Quality.SIMULATED),
    )
    store_profile(root / agent, profile)
    return section


@asynccontextmanager
async def dear_and_cheap(root: Path, **options: Any) -> AsyncIterator[Fleet]:
    """A fleet of two: a large expert at 10 J a token that answers without limits, and a small one at 1 J."""
    dear = measured(root, "dear", j_per_token=10.0, tokens_per_s=100.0, model="fake-8b")
    cheap = measured(root, "cheap", j_per_token=1.0, tokens_per_s=10.0, model="fake-1b")
    async with fleet(root, agents=(), **options) as running:
        for name, model in (("dear", dear), ("cheap", cheap)):
            await running.start_agent(name, profile=PROFILE, models=[model.model_dump()])
        await running.until(ready=2)
        yield running


# --- Entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_in_the_ledger_when_its_client_has_it(tmp_path: Path, stream: bool) -> None:
    """With its tokens and seconds; joules that nobody measured are unknown."""
    async with fleet(tmp_path) as running:
        async with await running.chat("a b c", max_tokens=8, stream=stream) as answer:
            await answer.read()
            row = kept(tmp_path)[answer.headers["x-request-id"]]
    assert (row.outcome, row.code, row.model, row.mode) == ("completed", "length", "moe2", "route")
    assert (row.decoded_tokens, row.key_name) == (8, "anybody")
    assert row.total_s is not None
    assert (row.joules, row.quality, row.useful_j, row.charged_j) == (None, "unmeasured", None, None)


async def test_measured_joules_are_in_the_ledger(tmp_path: Path) -> None:
    """The receipt's, with their quality, and what was predicted."""
    async with fleet(tmp_path, profile=PROFILE) as running, await running.chat("a b c", max_tokens=8) as answer:
        receipt = (await answer.json())["moe2"]
        row = kept(tmp_path)[receipt["request_id"]]
    assert row.joules == row.useful_j == row.charged_j == receipt["energy"]["joules"]
    assert row.quality == "simulated"


async def test_a_refusal_is_in_the_ledger_when_its_client_has_it(tmp_path: Path) -> None:
    """With its code; it cost nothing, which is known."""
    async with fleet(tmp_path, agents=()) as running, await running.chat("hi") as answer:
        assert answer.status == 503
        row = kept(tmp_path)[answer.headers["x-request-id"]]
    assert (row.outcome, row.code, row.joules, row.experts) == ("failed", "no_live_expert", 0.0, ())


async def test_a_cancelled_request_is_in_the_ledger(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """What its expert spent is listed as wasted, by cause."""
    async with fleet(tmp_path, engine_argv=controlled, profile=PROFILE) as running:
        request = asyncio.create_task(running.chat("a b c", max_tokens=8))
        step = await control.next_phase()
        request.cancel()
        step.answer()
        control.release()
        await running.quiet()
    [row] = kept(tmp_path).values()
    assert row.outcome == "cancelled"
    assert row.useful_j is None
    assert list(row.wasted_j) == ["cancelled"]


@pytest.mark.slow
async def test_a_ledger_that_fails_stops_no_answer(tmp_path: Path) -> None:
    """The answer comes, the status warns, and the entry is written later."""
    async with fleet(tmp_path) as running:
        with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with await running.chat("a b c") as answer:
                assert answer.status == 200
            assert "ledger_not_written" in {warning.code for warning in running.coordinator.status().warnings}
            other.execute("ROLLBACK")
        await running.until_status(lambda status: "ledger_not_written" not in {w.code for w in status.warnings})
    assert len(kept(tmp_path)) == 1


# --- Daily limits -----------------------------------------------------------------------------------------------------


async def refusal(running: Fleet, **fields: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    async with await running.chat("a b c", **fields) as answer:
        return answer.status, (await answer.json()).get("error", {}), dict(answer.headers)


@pytest.mark.slow
async def test_a_spent_limit_refuses_until_the_day_ends_also_after_a_restart(tmp_path: Path, as_key: AsKey) -> None:
    """429 with what was spent, when it is over, and the word that OpenAI's client understands."""
    as_key(DailyLimits(tokens=30))
    async with fleet(tmp_path) as running:
        assert (await refusal(running, max_tokens=16))[0] == 200
        status, error, headers = await refusal(running, max_tokens=16)
    assert (status, error["code"], error["type"]) == (429, "budget_exhausted", "insufficient_quota")
    assert "limit 30, spent" in error["message"]
    assert 0 < int(headers["Retry-After"]) <= 86_400
    assert int(headers["Retry-After"]) <= 60 or headers["x-should-retry"] == "false"
    async with fleet(tmp_path) as running:
        assert (await refusal(running, max_tokens=16))[1]["code"] == "budget_exhausted"


async def test_a_keys_day_is_its_own(tmp_path: Path) -> None:
    """With real keys and the stock client: one is refused, at once and for good, while the other goes on."""
    _, spent = add_key(KeyFile(tmp_path), 1, daily_tokens=30)
    _, other = add_key(KeyFile(tmp_path), 2)
    messages: Any = [{"role": "user", "content": "a b c"}]
    async with fleet(tmp_path, api={"keys": "required"}) as running, AsyncExitStack() as stack:

        async def ask(key: str) -> None:
            client = AsyncOpenAI(base_url=f"{running.coordinator.api_url}/v1", api_key=key)
            await stack.enter_async_context(client)
            await client.chat.completions.create(model="moe2", messages=messages, max_tokens=16)

        await ask(spent)
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(spent)
        await ask(other)
    assert refused.value.code == "budget_exhausted"
    rows = kept(tmp_path).values()
    assert [(row.key_name, row.outcome) for row in rows] == [
        ("app-1", "completed"),
        # One: the client did not ask again by itself.
        ("app-1", "failed"),
        ("app-2", "completed"),
    ]


async def test_a_request_that_a_whole_day_could_not_pay_is_a_different_error(tmp_path: Path, as_key: AsKey) -> None:
    """Waiting would not help."""
    as_key(DailyLimits(tokens=30))
    async with fleet(tmp_path) as running:
        status, error, headers = await refusal(running, max_tokens=100)
    assert (status, error["code"], "Retry-After" in headers) == (422, "infeasible_budget", False)
    assert "more than a whole day's limit" in error["message"]


def asking(running: Fleet, key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(running.coordinator.api_url, headers={"Authorization": f"Bearer {key}"})


async def told(http: aiohttp.ClientSession, route: str, max_tokens: int) -> dict[str, Any]:
    """The answer to a chat request, or to the plan for it."""
    body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": max_tokens}
    async with http.post(route, json=body) as answer:
        content: dict[str, Any] = await answer.json()
        return content


@pytest.mark.parametrize(
    ("limits", "max_tokens", "why"),
    [
        ({"daily_tokens": 30}, 16, "The day ends at"),
        ({"daily_tokens": 30}, 100, "more than a whole day's limit"),
        ({"daily_energy_j": 1.0}, 16, "the cheapest way to answer needs"),
    ],
)
async def test_a_plan_refuses_what_a_keys_day_cannot_pay_in_the_same_words(
    tmp_path: Path, limits: dict[str, Any], max_tokens: int, why: str
) -> None:
    """Of an app that has spent its tokens, or never had enough; another key's plan names an expert."""
    measured(tmp_path, "one", j_per_token=10.0, tokens_per_s=100.0)
    _, poor = add_key(KeyFile(tmp_path), 1, **limits)
    _, rich = add_key(KeyFile(tmp_path), 2)
    async with fleet(tmp_path, api={"keys": "required"}, profile=PROFILE) as running, asking(running, poor) as http:
        await told(http, CHAT_ROUTE, 16)
        plan = await told(http, PLAN_PATH, max_tokens)
        error = (await told(http, CHAT_ROUTE, max_tokens))["error"]
        async with asking(running, rich) as other:
            assert (await told(other, PLAN_PATH, max_tokens))["chosen"] is not None
    assert (plan["chosen"], plan["refusal"]) == (None, error["message"])
    assert "limit of key 'app-1' leaves no room" in plan["refusal"]
    assert why in plan["refusal"]


async def test_plans_take_nothing_of_a_keys_day(tmp_path: Path) -> None:
    """Each of them would fit; so does the request that comes after all of them."""
    _, key = add_key(KeyFile(tmp_path), 1, daily_tokens=30)
    async with fleet(tmp_path, api={"keys": "required"}) as running, asking(running, key) as http:
        for _ in range(3):
            assert (await told(http, PLAN_PATH, 16))["chosen"] is not None
        assert "choices" in await told(http, CHAT_ROUTE, 16)


async def test_the_plan_of_a_key_near_its_limit_names_the_cheaper_expert(tmp_path: Path) -> None:
    """Who would answer, with what is left as the budget."""
    _, key = add_key(KeyFile(tmp_path), 1, daily_energy_j=60.0)
    async with dear_and_cheap(tmp_path, api={"keys": "required"}) as running:
        async with asking(running, key) as http:
            plan = await told(http, PLAN_PATH, 8)
    assert [row["agent"] for row in plan["decision"]["experts"] if row["chosen"]] == ["cheap"]
    assert plan["decision"]["budgets"]["energy_budget_j"] == 60.0


async def test_requests_at_the_same_time_cannot_overdraw_a_limit_together(
    tmp_path: Path, as_key: AsKey, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """What the first may come to is reserved while it runs; the second may try again soon."""
    as_key(DailyLimits(tokens=40))
    async with fleet(tmp_path, engine_argv=controlled) as running:
        first = asyncio.create_task(refusal(running, max_tokens=16))
        step = await control.next_phase()
        _, error, headers = await refusal(running, max_tokens=16)
        step.answer()
        control.release()
        assert (await first)[0] == 200
    assert error["code"] == "budget_exhausted"
    assert headers["Retry-After"] == "5"


async def test_near_its_limit_a_key_gets_a_cheaper_expert(tmp_path: Path, as_key: AsKey) -> None:
    """The better one needs more than is left; the other one answers instead of an error."""
    async with dear_and_cheap(tmp_path) as running:
        as_key(DailyLimits(energy_j=100_000.0))
        async with await running.chat("a b c", max_tokens=8) as answer:
            assert answer.headers["x-moe2-agent"] == "dear"
        as_key(DailyLimits(energy_j=60.0))
        async with await running.chat("a b c", max_tokens=8) as answer:
            assert answer.headers["x-moe2-agent"] == "cheap"


async def test_an_energy_limit_needs_experts_that_were_measured(tmp_path: Path, as_key: AsKey) -> None:
    """What was not measured cannot be promised; the error says how to measure it."""
    as_key(DailyLimits(energy_j=100.0))
    async with fleet(tmp_path) as running:
        status, error, _ = await refusal(running)
    assert (status, error["code"]) == (422, "infeasible_budget")
    assert "moe2-agent bench" in error["message"]


async def test_a_key_can_be_watched(tmp_path: Path, as_key: AsKey) -> None:
    """What it has left is in the metrics and in the ledger's route, beside the sums."""
    as_key(DailyLimits(energy_j=1000.0, tokens=1000))
    measured(tmp_path, "one", j_per_token=1.0, tokens_per_s=100.0)
    async with fleet(tmp_path, profile=PROFILE) as running:
        await refusal(running, max_tokens=8)
        async with running.http.get("/metrics") as answer:
            metrics = await answer.text()
        async with running.http.get("/v1/moe2/ledger?by=outcome&days=1") as answer:
            document = await answer.json()
    [day], [sums] = document["today"], document["sums"]
    assert (day["key"], day["reserved_j"], day["energy_left_j"]) == ("app", 0.0, 1000.0 - day["energy_j"])
    assert (sums["group"], sums["n_requests"], sums["joules"]) == ("completed", 1, day["energy_j"])
    assert f'moe2_key_day_tokens_left{{key="app"}} {float(day["tokens_left"])}' in metrics
    assert "moe2_ledger_lost_entries_total 0.0" in metrics


@pytest.mark.parametrize(
    "query", ["by=colour", "days=0", "days=many", "days=" + "9" * 5_000, "days=%D9%A4", "days=-1", "by=" + "x" * 5_000]
)
async def test_a_senseless_question_to_the_ledger_is_refused(tmp_path: Path, query: str) -> None:
    """Naming the parameter."""
    async with fleet(tmp_path, agents=()) as running, running.http.get(f"/v1/moe2/ledger?{query}") as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, query.partition("=")[0])


# --- Death ------------------------------------------------------------------------------------------------------------


class Processes:
    """A real coordinator with a fake agent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "token").write_text("a-test-token")
        (root / "coordinator.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/socket"\n[api]\nport = 0\n'
            f'[agents]\nport = 0\ntoken_file = "{root}/token"\n'
        )

    async def start(self, stack: AsyncExitStack) -> tuple[asyncio.subprocess.Process, str]:
        """Returns the coordinator and its API's URL once an expert is ready."""
        config = str(self.root / "coordinator.toml")
        coordinator = await self._spawn(stack, "moe2.coordinator", "run", "--config", config)
        status = await self._status(coordinator, lambda status: bool(status.api_url))
        await self._spawn(
            stack, "benchmarks.fake_agent", "--url", status.agents_url, "--token-file", str(self.root / "token")
        )
        await self._status(coordinator, lambda status: any(row.experts for row in status.agents))
        return coordinator, status.api_url

    async def _spawn(self, stack: AsyncExitStack, module: str, *argv: str) -> asyncio.subprocess.Process:
        log = stack.enter_context((self.root / "log").open("ab"))
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *argv, stderr=log, stdout=log)

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await process.wait()

        stack.push_async_callback(end)
        return process

    async def _status(
        self, process: asyncio.subprocess.Process, holds: Callable[[CoordinatorStatus], bool]
    ) -> CoordinatorStatus:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (self.root / "log").read_text()
                try:
                    status = msgspec.json.decode(
                        await asyncio.to_thread(fetch, self.root / "socket", "/status"), type=CoordinatorStatus
                    )
                except NotRunningError:
                    await asyncio.sleep(POLL_S)
                    continue
                if holds(status):
                    return status
                await asyncio.sleep(POLL_S)


@pytest.mark.slow
async def test_no_answer_that_was_read_is_lost_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    """SIGKILL under load, streams among it: each answer that came in full is in the ledger, which opens again."""
    processes = Processes(tmp_path)
    answered: list[str] = []
    enough = asyncio.Event()

    async def keep_asking(http: aiohttp.ClientSession, client: int) -> None:
        body = {"model": "instant", "messages": [{"role": "user", "content": "a b c"}], "stream": client % 2 == 0}
        try:
            while True:
                async with http.post("/v1/chat/completions", json=body) as answer:
                    content = await answer.read()
                    if answer.status == 200 and (client % 2 or content.endswith(b"data: [DONE]\n\n")):
                        answered.append(answer.headers["x-request-id"])
                if len(answered) >= BEFORE_THE_KILL:
                    enough.set()
        except aiohttp.ClientError:
            return

    async with AsyncExitStack() as stack:
        coordinator, url = await processes.start(stack)
        async with aiohttp.ClientSession(url) as http:
            clients = [asyncio.create_task(keep_asking(http, client)) for client in range(CLIENTS)]
            await enough.wait()
            coordinator.send_signal(signal.SIGKILL)
            await asyncio.gather(*clients)
        await coordinator.wait()
        rows = kept(tmp_path)
        assert set(answered) <= rows.keys()
        assert {rows[name].outcome for name in answered} == {"completed"}
        # And the next coordinator takes it from there.
        await processes.start(stack)
        assert set(answered) <= kept(tmp_path).keys()
