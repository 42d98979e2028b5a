"""Average budgets on a running fleet: the price that is learned, where it is told, and what outlives a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moe2.common.status import CoordinatorStatus
from moe2.coordinator.cli.contradictions import contradictions
from moe2.coordinator.cli.plan import show_plan
from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.settings import CoordinatorSettings
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet, model_file
from tests.scenarios.test_metrics import sums

pytestmark = pytest.mark.slow

TOKENS = 30
SLOW_EXPERT = (*FAKE_EXPERT, "--seconds-per-token", "0.015")
"""Long enough for the samples that a request's energy needs before anything is learned from it."""


@asynccontextmanager
async def two_hosts(root: Path, **options: Any) -> AsyncIterator[Fleet]:
    """A good model that takes its time, and a plain one that is done at once, on simulated boards that are measured."""
    async with fleet(root, agents=(), **options) as running:
        for name, model, seconds in (("dear", "tiny-7B", 0.025), ("cheap", "tiny-100M", 0.01)):
            slow = (*FAKE_EXPERT, "--seconds-per-token", str(seconds))
            models = [{"name": model, "path": model_file(root, model), "slots": 2}]
            await running.start_agent(name, profile="agx-orin-maxn", models=models, engine_argv=slow)
        await running.until(ready=2)
        for model in ("tiny-7B", "tiny-100M"):
            for _ in range(3):
                await asked(running, model=model)
        await running.until_status(
            lambda status: all(expert.energy is not None for row in status.agents for expert in row.experts)
        )
        yield running


async def asked(running: Fleet, **fields: Any) -> dict[str, Any]:
    """The receipt of an answer."""
    async with await running.chat("a b c", max_tokens=TOKENS, **fields) as answer:
        assert answer.status == 200, await answer.text()
        receipt: dict[str, Any] = (await answer.json())["moe2"]
        return receipt


async def planned(running: Fleet, **fields: Any) -> dict[str, Any]:
    body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": TOKENS, **fields}
    async with running.http.post("/v1/moe2/plan", json=body) as answer:
        plan: dict[str, Any] = await answer.json()
        return plan


async def joules_of(running: Fleet) -> tuple[float, float]:
    """Expected joules of an answer: of the cheap model and of the dear one."""
    rows = {row["model"]: row["energy_j"]["p50"] for row in (await planned(running))["decision"]["experts"]}
    return rows["tiny-100M"], rows["tiny-7B"]


def price_known(scope: str) -> Callable[[CoordinatorStatus], bool]:
    return lambda status: any(row.scope == scope and row.price_per_j > 0 for row in status.averages)


async def test_the_average_holds_while_answers_are_as_good_as_it_allows(tmp_path: Path) -> None:
    """Between what the two models take, both answer in such shares that the mean is the target's."""
    async with two_hosts(tmp_path) as running:
        cheap_j, dear_j = await joules_of(running)
        target_j = (cheap_j + dear_j) / 2
        running.configuration["selection"]["average_energy_j"] = target_j
        running.coordinator.reload()
        receipts = [await asked(running) for _ in range(60)]
        spent_j = [joules for receipt in receipts if (joules := receipt["energy"]["joules"]) is not None]
        assert sum(spent_j) / len(spent_j) == pytest.approx(target_j, rel=0.1)
        models = [receipt["experts"][0]["model"] for receipt in receipts]
        assert models[0] == "tiny-7B"
        assert 10 <= models.count("tiny-7B") <= 50
        await running.quiet()
        (row,) = running.coordinator.status().averages
        assert (row.scope, row.n_answers + row.n_unmeasured) == ("fleet", 60)
        assert receipts[-1]["decision"]["price"]["price_per_j"] > 0


async def test_the_price_is_told_wherever_decisions_are(tmp_path: Path) -> None:
    """Receipt, plan, status and metrics show one price with its scopes; without averages there is none."""
    async with two_hosts(tmp_path) as running:
        assert (await planned(running))["decision"]["price"] is None
        cheap_j, _ = await joules_of(running)
        running.configuration["selection"]["average_energy_j"] = 2 * cheap_j
        running.configuration["selection"]["categories"] = {"poems": {"average_energy_j": 1.5 * cheap_j}}
        running.coordinator.reload()
        for _ in range(5):
            await asked(running, moe2={"category": "poems"})
        await running.until_status(price_known("category poems"))
        price = (await planned(running, moe2={"category": "poems"}))["decision"]["price"]
        receipt = await asked(running, moe2={"category": "poems"})
        assert receipt["decision"]["price"] == price
        assert [scope["scope"] for scope in price["scopes"]] == ["fleet", "category poems"]
        assert price["price_per_j"] == pytest.approx(sum(scope["price_per_j"] for scope in price["scopes"]))
        elsewhere = (await planned(running, moe2={"category": "songs"}))["decision"]["price"]
        assert [scope["scope"] for scope in elsewhere["scopes"]] == ["fleet"]
        async with running.http.get("/metrics") as answer:
            metrics = sums(await answer.text())
        assert metrics["moe2_average_energy_target_joules"] == pytest.approx(3.5 * cheap_j)
        assert metrics["moe2_joule_price_score_per_joule"] > 0
        async with running.http.get("/v1/moe2/fleet") as answer:
            status = await answer.json()
        assert [row["scope"] for row in status["averages"]] == ["fleet", "category poems"]


async def test_what_was_learned_outlives_a_restart(tmp_path: Path) -> None:
    """A coordinator that is started again goes on with the price that the former one had learned."""
    selection = {"average_energy_j": 1e-6}
    async with fleet(tmp_path, profile="agx-orin-maxn", selection=selection) as running:
        for _ in range(3):
            await asked(running)
        await running.quiet()
        (before,) = running.coordinator.status().averages
    assert before.price_per_j > 0
    assert json.loads((tmp_path / "prices.json").read_bytes())["prices"]["fleet"]["n_answers"] == 3
    async with fleet(tmp_path, profile="agx-orin-maxn", selection=selection) as running:
        (after,) = running.coordinator.status().averages
        assert after == before
        assert (await planned(running))["decision"]["price"]["price_per_j"] == before.price_per_j


async def test_the_plan_on_the_command_line_tells_the_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In points for a thousand joules, with each scope and what it wants."""
    async with fleet(tmp_path, profile="agx-orin-maxn", selection={"average_energy_j": 150.0}) as running:
        socket = running.configuration["coordinator"]["socket"]
        code = await asyncio.to_thread(show_plan, socket, "a b c", {}, model="moe2", max_tokens=5, as_json=False)
    assert code == 0
    assert "Price: 0 points per kJ (fleet: 150 J an answer, 0 points per kJ)." in capsys.readouterr().out


async def test_without_averages_nothing_is_kept(tmp_path: Path) -> None:
    """A fleet that nobody has set an average for has no file of prices."""
    async with fleet(tmp_path) as running:
        await asked(running)
        await running.quiet()
        assert running.coordinator.status().averages == ()
    assert not (tmp_path / "prices.json").exists()


async def test_unmeasured_answers_change_no_price(tmp_path: Path) -> None:
    """Without a sensor nobody learns anything, and the status says how many were blind."""
    async with fleet(tmp_path, selection={"average_energy_j": 10.0}) as running:
        for _ in range(3):
            assert (await asked(running))["energy"]["joules"] is None
        await running.quiet()
        status = running.coordinator.status()
        (row,) = status.averages
        assert (row.price_per_j, row.mean_j, row.n_answers, row.n_unmeasured) == (0.0, None, 0, 3)
        assert "average_unmeasured" in {warning.code for warning in status.warnings}


async def test_joules_of_a_cancelled_request_raise_the_price(tmp_path: Path) -> None:
    """A client that leaves in mid-answer has burnt joules that the answers have to save."""
    selection = {"average_energy_j": 1e-3}
    async with fleet(tmp_path, selection=selection, profile="agx-orin-maxn", engine_argv=SLOW_EXPERT) as running:
        async with await running.chat("a b c", max_tokens=500, stream=True) as answer:
            await answer.content.readuntil(b"\n\n")
            await answer.content.readuntil(b"\n\n")
        await running.until_status(price_known("fleet"))
        (row,) = running.coordinator.status().averages
        assert row.n_answers == 0


async def test_a_key_pays_for_its_own_averages_only(tmp_path: Path) -> None:
    """A key's average and its paced day put prices on its own requests; another key's joules stay free."""
    thrifty, key = add_key(KeyFile(tmp_path), 1, average_energy_j=1e-3, daily_energy_j=1e6)
    _, other = add_key(KeyFile(tmp_path), 2)
    async with fleet(tmp_path, profile="agx-orin-maxn", api={"keys": "required"}, engine_argv=SLOW_EXPERT) as running:
        await asked_with(running, other)
        await running.until_status(
            lambda status: all(expert.energy is not None for row in status.agents for expert in row.experts)
        )
        for _ in range(3):
            await asked_with(running, key)
        await running.until_status(price_known(f"key {thrifty.name}"))
        price = (await asked_with(running, key))["decision"]["price"]
        scopes = {scope["scope"]: scope["price_per_j"] for scope in price["scopes"]}
        assert set(scopes) == {f"key {thrifty.name}", f"day of key {thrifty.name}"}
        assert scopes[f"key {thrifty.name}"] > 0.0
        assert scopes[f"day of key {thrifty.name}"] == 0.0
        assert (await asked_with(running, other))["decision"]["price"] is None


async def asked_with(running: Fleet, key: str) -> dict[str, Any]:
    body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": TOKENS}
    headers = {"Authorization": f"Bearer {key}"}
    async with running.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        receipt: dict[str, Any] = (await answer.json())["moe2"]
        return receipt


async def test_check_config_tells_an_average_that_no_expert_can_keep(tmp_path: Path) -> None:
    """Beside a running fleet, an average below one token of its cheapest expert is said with its remedy."""
    async with fleet(tmp_path, profile="agx-orin-maxn", engine_argv=SLOW_EXPERT) as running:
        await asked(running)
        await running.until_status(
            lambda status: all(expert.energy is not None for row in status.agents for expert in row.experts)
        )

        async def told(average_energy_j: float) -> tuple[str, ...]:
            selection = {"average_energy_j": average_energy_j, "categories": {"poems": {"average_energy_j": 1e-9}}}
            running.configuration["selection"] = selection
            settings = CoordinatorSettings.model_validate(running.configuration)
            return await asyncio.to_thread(contradictions, settings)

        both = await told(1e-6)
        assert [line.split(":")[0] for line in both] == [
            "selection.categories.poems.average_energy_j",
            "selection.average_energy_j",
        ]
        assert "fake on one" in both[0]
        assert "(simulated)" in both[0]
        assert "or add a cheaper expert" in both[0]
        assert len(await told(1e6)) == 1
    assert await told(1e-6) == ()
