"""Models that a client knows and that are not there just now: their host is away, or loads them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import fleet, model_file


async def test_a_known_model_whose_host_is_away_is_a_503(tmp_path: Path) -> None:
    """Clients send a 503 again, and a 404 never; a name that nobody has ever had stays a 404."""
    async with fleet(tmp_path) as running:
        running.agents["one"].stop()
        await running.until_status(lambda status: not any(row.connected for row in status.agents))
        for path in ("/v1/models/fake", None):
            answer = await (running.http.get(path) if path else running.chat("hi", model="fake"))
            async with answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "5"
                assert (await answer.json())["error"]["code"] == "model_away"
        async with await running.chat("hi", model="fakir") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_restarted_agent_that_still_loads_is_waited_for(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...], stream: bool
) -> None:
    """A request that comes while the model is being loaded is answered once it is there."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("one", engine_argv=(*controlled, "--asks-to-load"))
        step = await control.next_phase()
        assert step.phase == "load"
        await running.until_status(lambda status: any(row.experts for row in status.agents))
        request = asyncio.create_task(running.chat("hi", model="fake", max_tokens=1, stream=stream))
        await running.until_status(lambda status: status.dispatch.waiting == 1)
        step.answer()
        control.release()
        async with await request as answer:
            assert answer.status == 200
            assert "hi" in await answer.text()


@pytest.mark.slow
async def test_models_tell_what_they_can_do(tmp_path: Path) -> None:
    """Context and abilities stand where clients of other servers look for them; aliases say what they mean."""
    models = [
        {"name": name, "path": model_file(tmp_path, name), "context_tokens": tokens}
        for name, tokens in (("large", 128), ("small", 64))
    ]
    async with fleet(tmp_path, models=models, api={"aliases": {"gpt-4o-mini": "moe2", "tiny": "small"}}) as running:
        async with running.http.get("/v1/models") as answer:
            found = {model["id"]: model for model in (await answer.json())["data"]}
        assert list(found) == ["moe2", "large", "small", "gpt-4o-mini", "tiny"]
        contexts = {name: model["context_length"] for name, model in found.items()}
        assert contexts == {"moe2": 128, "large": 128, "small": 64, "gpt-4o-mini": 128, "tiny": 64}
        tiny = found["tiny"]
        assert tiny["max_model_len"] == tiny["max_input_tokens"] == tiny["meta"]["n_ctx"] == 64
        assert (tiny["root"], tiny["capabilities"]["tools"], tiny["capabilities"]["vision"]) == ("small", True, False)
        async with running.http.get("/v1/models/tiny") as answer:
            assert await answer.json() == tiny


@pytest.mark.slow
async def test_after_the_coordinators_start_hosts_are_expected_back(tmp_path: Path) -> None:
    """Until all that it knows are there, it cannot tell which models there are: clients are told to come again."""
    async with fleet(tmp_path) as running:
        pass
    async with fleet(tmp_path, agents=()) as running:
        async with await running.chat("hi", model="fake") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "model_away")
        await running.start_agent("one")
        await running.until(ready=1)
        async with await running.chat("hi", model="fakir") as answer:
            assert answer.status == 404
        async with await running.chat("hi", model="fake") as answer:
            assert answer.status == 200
