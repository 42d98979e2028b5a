"""Models that are loaded on demand, through the whole fleet with fake experts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.fakes.fleet import Fleet, fleet


def on_demand(path: Path, **fields: Any) -> list[dict[str, Any]]:
    return [{"name": "fake", "path": path, "slots": 4, "load": "on_demand", **fields}]


async def until_state(running: Fleet, state: str) -> None:
    await running.until_status(lambda status: [e.state for row in status.agents for e in row.experts] == [state])


async def test_a_cold_model_is_loaded_for_its_first_requests(tmp_path: Path) -> None:
    """The coordinator chooses it although it is cold; nothing ran before, and all are answered."""
    async with fleet(tmp_path, agents=()) as running:
        agent = await running.start_agent("one", models=on_demand(tmp_path / "fake.gguf"))
        await until_state(running, "cold")
        assert agent.engine_pids() == {"fake": None}
        answers = await asyncio.gather(*(running.chat(f"word{n}", max_tokens=1) for n in range(6)))
        assert [(await answer.json())["choices"][0]["message"]["content"] for answer in answers] == [
            f"word{n} " for n in range(6)
        ]
        (expert,) = agent.status().experts
        assert expert.load_s is not None
        assert expert.load_s > 0


async def test_a_load_that_failed_is_tried_again_and_serves_when_the_file_is_there(tmp_path: Path) -> None:
    """With back-off and by itself: nobody needs to restart the agent."""
    path = tmp_path / "late.gguf"
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("one", models=on_demand(path))
        await until_state(running, "cold")
        async with await running.chat("hi") as refused:
            assert refused.status == 502
        path.touch()
        await until_state(running, "ready")
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_an_idle_model_gives_its_memory_back(tmp_path: Path) -> None:
    """Its process is gone; the next request starts another one."""
    async with fleet(tmp_path, agents=()) as running:
        agent = await running.start_agent("one", models=on_demand(tmp_path / "fake.gguf", unload_after_s=0.05))
        await until_state(running, "cold")
        for _ in range(2):
            async with await running.chat("hi", max_tokens=1) as answer:
                assert answer.status == 200
            await until_state(running, "cold")
        (expert,) = agent.status().experts
        assert (expert.restarts, expert.last_error) == (0, None)


async def test_a_model_that_cannot_be_loaded_fails_its_request_clearly(tmp_path: Path) -> None:
    """With the reason that loading gave, and no waiting for a timeout."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("one", models=on_demand(tmp_path / "absent.gguf"))
        await until_state(running, "cold")
        async with await running.chat("hi") as answer:
            assert answer.status == 502
            assert "absent.gguf" in (await answer.json())["error"]["message"]
