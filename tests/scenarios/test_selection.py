"""Budgets from the client to the decision and back: what is kept, what is refused, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from moe2.common.status import CoordinatorStatus
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet, model_file
from tests.fakes.gates import write_gate
from tests.scenarios.clients import client_of

QUESTION = [{"role": "user", "content": "one two three"}]


def models(root: Path, *names: str) -> list[dict[str, Any]]:
    return [{"name": name, "path": model_file(root, name), "slots": 2} for name in names]


@asynccontextmanager
async def measured_fleet(root: Path, **options: Any) -> AsyncIterator[Fleet]:
    """A small and a large model on a simulated Orin whose energy is known."""
    pair = models(root, "tiny-100M", "tiny-7B")
    async with fleet(root, agents=(), **options) as running:
        # Long enough for the samples that a request's energy needs before anything is learned from it.
        slow = (*FAKE_EXPERT, "--seconds-per-token", "0.01")
        await running.start_agent("one", profile="agx-orin-maxn", models=pair, engine_argv=slow)
        await running.until(ready=2)
        for model in ("tiny-100M", "tiny-7B"):
            async with await running.chat("a b c", model=model, max_tokens=40) as answer:
                assert answer.status == 200
        await running.until_status(energy_is_known)
        yield running


def energy_is_known(status: CoordinatorStatus) -> bool:
    return all(expert.energy is not None for row in status.agents for expert in row.experts)


async def planned(running: Fleet, **fields: Any) -> dict[str, Any]:
    body = {"model": "moe2", "messages": QUESTION, "max_tokens": 8, **fields}
    async with running.http.post("/v1/moe2/plan", json=body) as answer:
        assert answer.status == 200
        plan: dict[str, Any] = await answer.json()
        return plan


# --- Kept -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_budgets_through_the_openai_client_are_kept_and_receipted(tmp_path: Path) -> None:
    """`extra_body` carries them; the receipt holds the decision that they led to."""
    async with measured_fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(
            model="moe2",
            messages=QUESTION,  # type: ignore[arg-type]
            max_tokens=8,
            extra_body={"moe2": {"energy_budget_j": 1e6, "latency_budget_s": 60, "quantile": "p50"}},
        )
        receipt = (answer.model_extra or {})["moe2"]
        decision = receipt["decision"]
        assert decision["budgets"] == {"energy_budget_j": 1e6, "latency_budget_s": 60.0, "quantile": "p50"}
        (chosen,) = [row for row in decision["experts"] if row["chosen"]]
        assert chosen["expert"] == receipt["experts"][0]["expert"]
        assert chosen["energy_j"]["p50"] <= 1e6
        assert decision["certificate"]["status"] == "optimal"


@pytest.mark.slow
async def test_budgets_through_headers_are_the_same(tmp_path: Path) -> None:
    """For clients that cannot change the body; the body goes first."""
    async with fleet(tmp_path) as running:
        headers = {"x-moe2-latency-budget-s": "60", "x-moe2-quantile": "p50"}
        body = {"model": "moe2", "messages": QUESTION, "moe2": {"quantile": "p95"}}
        async with running.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
            decision = (await answer.json())["moe2"]["decision"]
        assert decision["budgets"] == {"latency_budget_s": 60.0, "quantile": "p95"}


@pytest.mark.slow
async def test_a_smaller_energy_budget_buys_a_cheaper_expert(tmp_path: Path) -> None:
    """Between what the two cost, only the cheaper one is left; without a budget the larger model answers."""
    async with measured_fleet(tmp_path) as running:
        free = await planned(running)
        joules = {row["model"]: row["energy_j"]["p95"] for row in free["decision"]["experts"]}
        cheaper = min(joules, key=joules.__getitem__)
        between = sum(joules.values()) / 2
        tight = await planned(running, moe2={"energy_budget_j": between})
        assert free["chosen"].endswith("/tiny-7B")
        assert tight["chosen"].endswith(f"/{cheaper}")
        reasons = {row["model"]: row["reason"] for row in tight["decision"]["experts"]}
        (dearer,) = joules.keys() - {cheaper}
        assert "energy of" in reasons[dearer]


async def test_the_configured_category_sets_the_budgets(tmp_path: Path) -> None:
    """A request that names a category gets its limits, and its own go first."""
    categories = {"default": {"latency_budget_s": 60.0}, "strict": {"latency_budget_s": 1e-6}}
    async with fleet(tmp_path, selection={"categories": categories}) as running:
        plain = await planned(running)
        strict = await planned(running, moe2={"category": "strict"})
        relaxed = await planned(running, moe2={"category": "strict", "latency_budget_s": 30})
        assert (plain["decision"]["category"], plain["decision"]["budgets"]) == ("default", {"latency_budget_s": 60.0})
        assert strict["chosen"] is None
        assert relaxed["decision"]["budgets"] == {"latency_budget_s": 30.0}


async def test_the_gates_kind_is_the_category(tmp_path: Path) -> None:
    """Without a named category the kind of prompt that the gate sees decides, where budgets are configured for it."""
    gate = write_gate(tmp_path / "gate.safetensors", ("fake", "other"), ("riddles", "poems"))
    selection = {"gate": gate, "categories": {"riddles": {"latency_budget_s": 42.0}}}
    async with fleet(tmp_path, selection=selection) as running:
        decision = (await planned(running))["decision"]
        assert (decision["kind"], decision["category"]) == ("riddles", "riddles")
        assert decision["budgets"] == {"latency_budget_s": 42.0}
        assert decision["experts"][0]["score_source"] == "gate"


@pytest.mark.slow
async def test_the_fleets_cap_holds_from_a_reload_on(tmp_path: Path) -> None:
    """A cap below what any expert takes refuses everything and says why; a higher one lets the request through."""
    async with measured_fleet(tmp_path) as running:
        running.configuration["selection"]["fleet_watts_cap_w"] = 12.0
        running.coordinator.reload()
        async with await running.chat("hi", max_tokens=8) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (503, "fleet_cap_infeasible")
        assert "cap of 12 W" in error["message"]
        assert "(simulated)" in error["message"]
        refused = await planned(running)
        assert refused["refusal"].startswith("The fleet's cap of 12 W leaves no room")
        assert "would exceed the fleet's cap of 12 W" in refused["decision"]["experts"][0]["reason"]
        running.configuration["selection"]["fleet_watts_cap_w"] = 500.0
        running.coordinator.reload()
        power = (await planned(running))["decision"]["fleet_power"]
        assert (power["cap_w"], power["simulated"], power["hosts_unmeasured"]) == (500.0, True, 0)
        assert 11.0 < power["drawn_w"] < 50.0
        async with await running.chat("hi", max_tokens=8) as answer:
            assert answer.status == 200


@pytest.mark.slow
async def test_a_request_waits_for_its_share_of_the_fleets_watts(tmp_path: Path) -> None:
    """While one model writes there is no room for the other; when it has ended there is."""
    async with measured_fleet(tmp_path) as running:
        running.configuration["selection"]["fleet_watts_cap_w"] = 75.0
        running.coordinator.reload()
        first = asyncio.create_task(running.chat("a", model="tiny-100M", max_tokens=200))
        await running.until_status(lambda status: status.requests_active == 1 and status.dispatch.waiting == 0)
        second = asyncio.create_task(running.chat("b", model="tiny-7B", max_tokens=8))
        await running.until_status(lambda status: status.dispatch.waiting == 1)
        assert not first.done()
        for request in (first, second):
            async with await request as answer:
                assert answer.status == 200


async def test_an_expert_without_measured_watts_gets_nothing_under_a_cap(tmp_path: Path) -> None:
    """What was not measured cannot be promised; a warning tells what to do."""
    async with fleet(tmp_path, selection={"fleet_watts_cap_w": 1e6}) as running:
        async with await running.chat("hi", max_tokens=8) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (503, "fleet_cap_infeasible")
        assert "its host's power is not measured" in error["message"]
        assert "fleet_cap_unmeasured" in {warning.code for warning in running.coordinator.status().warnings}


# --- Refused ----------------------------------------------------------------------------------------------------------


async def test_infeasible_budgets_are_422_with_offers_and_nothing_runs(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """OpenAI's error shape; the first job that the expert ever sees is that of the next request."""
    async with fleet(tmp_path, engine_argv=controlled) as running, client_of(running) as client:
        with pytest.raises(openai.UnprocessableEntityError) as raised:
            await client.chat.completions.create(
                model="moe2",
                messages=QUESTION,  # type: ignore[arg-type]
                extra_body={"moe2": {"latency_budget_s": 1e-6}},
            )
        error = raised.value
        assert error.code == "infeasible_budget"
        assert isinstance(error.body, dict)
        offers = error.body["offers"]
        assert offers["fastest"]["expert"].endswith("/fake")
        assert offers["cheapest"]["needs"]["delay_s"] > 1e-6
        assert "fastest offer" in error.message
        receipt = error.response.json()["moe2"]
        assert receipt["experts"] == []
        assert receipt["decision"]["certificate"]["status"] == "infeasible"
        next_request = asyncio.create_task(running.chat("a", max_tokens=1))
        first, second = await control.next_phase(), None
        first.answer()
        second = await control.next_phase()
        assert (first.phase.split()[0], second.phase.split()[0]) == ("prefill", "token")
        assert first.phase.split()[1] == second.phase.split()[1]
        second.answer()
        async with await next_request as answer:
            assert answer.status == 200


async def test_what_the_offer_needs_is_enough(tmp_path: Path) -> None:
    """A budget raised to the offer's need is feasible."""
    async with fleet(tmp_path) as running:
        refused = await planned(running, moe2={"latency_budget_s": 1e-6})
        needed_s = refused["offers"]["fastest"]["needs"]["delay_s"]
        assert (await planned(running, moe2={"latency_budget_s": 1.01 * needed_s}))["chosen"] is not None


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ('{"energy_budget_j": -1}', "moe2.energy_budget_j"),
        ('{"latency_budget_s": "soon"}', "moe2.latency_budget_s"),
        ('{"ttft_budget_s": 1e999}', None),
        ('{"tpot_budget_s": NaN}', None),
        ('{"tpot_budget_s": "NaN"}', "moe2.tpot_budget_s"),
        ('{"tpot_budget_s": true}', "moe2.tpot_budget_s"),
        ('{"energy_budget_j": "inf"}', "moe2.energy_budget_j"),
        ('{"max_experts": 0}', "moe2.max_experts"),
        ('{"max_experts": 1000}', "moe2.max_experts"),
        ('{"quantile": "p99"}', "moe2.quantile"),
        ('{"mode": "magic"}', "moe2.mode"),
        ('{"energy_budget": 1}', "moe2.energy_budget"),
        ('"cheap"', "moe2"),
    ],
)
async def test_a_bad_wish_is_400_by_name(tmp_path: Path, wish: str, param: str | None) -> None:
    """Unknown fields and absurd values alike; what is not JSON at all is refused as such."""
    body = f'{{"model": "moe2", "messages": [{{"role": "user", "content": "hi"}}], "moe2": {wish}}}'
    async with fleet(tmp_path, agents=()) as running:
        async with running.http.post("/v1/chat/completions", data=body) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["param"]) == (400, param)
            assert param is None or param in error["message"]


@pytest.mark.parametrize(
    ("header", "value", "param"),
    [
        ("x-moe2-energy-budget-j", "nan", "moe2.energy_budget_j"),
        ("x-moe2-latency-budget-s", "-3", "moe2.latency_budget_s"),
        ("x-moe2-max-experts", "many", "moe2.max_experts"),
    ],
)
async def test_a_bad_header_is_400_by_name(tmp_path: Path, header: str, value: str, param: str) -> None:
    """The same rules as in the body."""
    async with fleet(tmp_path, agents=()) as running:
        body = {"model": "moe2", "messages": QUESTION}
        async with running.http.post("/v1/chat/completions", json=body, headers={header: value}) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)


# --- The plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_plan_runs_nothing_and_tells_everything(tmp_path: Path) -> None:
    """Decision, certificate, frontier; no request is counted."""
    async with measured_fleet(tmp_path) as running:
        before = running.coordinator.status().requests_finished
        plan = await planned(running, moe2={"energy_budget_j": 1e6})
        status = running.coordinator.status()
        assert (status.requests_finished, status.requests_active) == (before, 0)
        assert plan["decision"]["certificate"]["upper_bound"] >= plan["decision"]["certificate"]["value"]
        values = [point["value"] for point in plan["frontier"]]
        assert values[0] is None
        assert values[-1] == max(value for value in values if value is not None)


async def plan_command(running: Fleet, *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `moe2-coordinator plan`."""
    socket = running.root / "coordinator.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moe2.coordinator", "plan", *argv, "--socket", str(socket)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
async def test_the_plan_command_draws_a_table(tmp_path: Path) -> None:
    """Over the local socket: the experts, the certificate, the frontier; exit status 0."""
    async with measured_fleet(tmp_path) as running:
        code, out, err = await plan_command(running, "one two three", "--energy", "1000000", "--max-tokens", "8")
        assert (code, err) == (0, "")
        assert "tiny-7B" in out
        assert "(simulated)" in out
        assert "Proof: optimal" in out
        assert "What other energy budgets would buy" in out


@pytest.mark.slow
async def test_the_plan_commands_json_is_the_routes_answer(tmp_path: Path) -> None:
    """For scripts."""
    async with fleet(tmp_path) as running:
        code, out, _ = await plan_command(running, "hi", "--latency", "60", "--json")
        assert code == 0
        assert json.loads(out)["decision"]["budgets"] == {"latency_budget_s": 60.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (("--latency", "0.000001"), 1, "the fastest offer is"),
        (("--energy", "-1"), 1, "moe2.energy_budget_j"),
    ],
)
async def test_the_plan_commands_exit_status_tells_refusals(
    tmp_path: Path, argv: tuple[str, ...], code: int, told: str
) -> None:
    """1 where nothing fits, and 1 with the fault where the request itself is wrong."""
    async with fleet(tmp_path) as running:
        found, out, err = await plan_command(running, "hi", *argv)
        assert found == code
        assert told in " ".join((out + err).split())


# --- The gate's checkpoint --------------------------------------------------------------------------------------------


async def started(root: Path, gate: Path) -> tuple[int | None, str]:
    """Exit status and stderr of a coordinator that is started with this gate."""
    (root / "token").write_text("a-test-token")
    config = root / "coordinator.toml"
    config.write_text(
        f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/c.sock"\n[api]\nport = 0\n'
        f'[agents]\nport = 0\ntoken_file = "{root}/token"\n[selection]\ngate = "{gate}"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moe2.coordinator", "run", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    return process.returncode, err.decode()


@pytest.mark.parametrize(("damage", "told"), [("cut", "cut short"), ("absent", "cannot be read")])
@pytest.mark.slow
async def test_a_broken_checkpoint_ends_the_start_with_its_reason(tmp_path: Path, damage: str, told: str) -> None:
    """Exit status 1 and one sentence that names the file, no traceback."""
    gate = tmp_path / "gate.safetensors"
    if damage == "cut":
        write_gate(gate, ("a", "b"), ("x",))
        gate.write_bytes(gate.read_bytes()[:500])
    code, err = await started(tmp_path, gate)
    assert code == 1
    assert str(gate) in err
    assert told in err
    assert "Traceback" not in err


async def test_a_gate_for_other_experts_is_a_named_warning(tmp_path: Path) -> None:
    """Requests are still answered, with priors."""
    gate = write_gate(tmp_path / "gate.safetensors", ("llama-8b", "qwen-7b"), ("x",))
    async with fleet(tmp_path, selection={"gate": gate}) as running:
        async with await running.chat("hi", max_tokens=2) as answer:
            decision = (await answer.json())["moe2"]["decision"]
        assert decision["experts"][0]["score_source"] == "prior"
        warnings = {warning.code: warning for warning in running.coordinator.status().warnings}
        assert "llama-8b" in warnings["gate_mismatch"].message
