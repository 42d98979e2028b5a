"""The HTTP side beyond OpenAI's client: headers, bad bodies, limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import fleet


async def test_headers_name_request_expert_and_overhead(tmp_path: Path) -> None:
    """Every answer says its id, who served it, and what the coordinator took."""
    async with fleet(tmp_path) as running, await running.chat("hi") as answer:
        agent_id = running.coordinator.status().agents[0].agent_id
        assert answer.headers["x-request-id"].startswith("req-")
        assert answer.headers["x-moe2-expert"] == f"{agent_id}/fake"
        assert float(answer.headers["x-moe2-overhead-ms"]) >= 0


async def test_stream_carries_the_same_headers(tmp_path: Path) -> None:
    """A stream's headers are complete too."""
    async with fleet(tmp_path) as running, await running.chat("hi", stream=True) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["x-request-id"].startswith("req-")
        assert "x-moe2-expert" in answer.headers
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model": 7, "messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "moe2"}', "messages"),
        (b'{"model": "moe2", "messages": []}', "messages"),
        (b'{"model": "moe2", "messages": [{"role": "robot", "content": "hi"}]}', "messages[0].role"),
        (b'{"model": "moe2", "messages": [{"role": "user", "content": "a\\u0000b"}]}', "messages[0].content"),
        (b'{"model": "moe2", "messages": [{"role": "user", "content": "hi"}], "temperature": 3}', "temperature"),
        (b'{"model": "moe2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}', "max_tokens"),
    ],
)
async def test_bad_body_is_refused_by_name(tmp_path: Path, body: bytes, param: str | None) -> None:
    """400 in OpenAI's shape, naming the parameter."""
    async with fleet(tmp_path, agents=()) as running:
        async with running.http.post("/v1/chat/completions", data=body) as answer:
            error = (await answer.json())["error"]
            assert answer.status == 400
            assert error["param"] == param
            assert error["type"] == "invalid_request_error"


async def test_oversized_body_is_refused(tmp_path: Path) -> None:
    """413 names the setting that limits it."""
    async with fleet(tmp_path, agents=(), api={"max_body_bytes": 2048}) as running:
        async with running.http.post("/v1/chat/completions", data=b"x" * 4096) as answer:
            assert answer.status == 413
            assert "api.max_body_bytes" in (await answer.json())["error"]["message"]


async def test_unknown_route_has_openais_error_shape(tmp_path: Path) -> None:
    """404 and 405 are JSON too."""
    async with fleet(tmp_path, agents=()) as running:
        async with running.http.get("/v1/nonsense") as missing, running.http.get("/v1/completions") as wrong:
            assert (missing.status, wrong.status) == (404, 405)
            assert "error" in await missing.json()
            assert "error" in await wrong.json()


async def test_too_many_requests_is_429_with_retry_after(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Beyond `max_active_requests` the answer says when to come back; the one in progress is not disturbed."""
    async with fleet(tmp_path, api={"max_active_requests": 1}, engine_argv=controlled) as running:
        first = asyncio.create_task(running.chat("a b", max_tokens=2))
        step = await control.next_phase()
        async with await running.chat("too many") as second:
            assert second.status == 429
            assert int(second.headers["Retry-After"]) >= 1
        step.answer()
        control.release()
        assert (await first).status == 200


async def test_full_queues_are_429_with_retry_after(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Where every place of the fleet is taken, and nobody may wait, the answer says when to come back."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "slots": 1, "max_queue": 0}]
    async with fleet(tmp_path, engine_argv=controlled, models=models, dispatch={"max_queued": 0}) as running:
        first = asyncio.create_task(running.chat("a b", max_tokens=2))
        step = await control.next_phase()
        async with await running.chat("too many") as second:
            assert second.status == 429
            assert "Retry-After" in second.headers
        step.answer()
        control.release()
        assert (await first).status == 200


async def test_fleet_shows_agents_and_experts(tmp_path: Path) -> None:
    """`GET /v1/moe2/fleet` is the status snapshot."""
    async with fleet(tmp_path, agents=("one", "two")) as running, running.http.get("/v1/moe2/fleet") as answer:
        agents = (await answer.json())["agents"]
        assert [agent["agent_name"] for agent in agents] == ["one", "two"]
        assert agents[0]["experts"][0]["model"] == "fake"


async def test_an_agent_without_the_token_is_unauthorized(tmp_path: Path) -> None:
    """Missing, wrong or not even text: 401, and nothing breaks."""
    async with fleet(tmp_path, agents=()) as running:
        url = running.coordinator.agents_url.replace("ws://", "http://") + "/v1/agents"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \udcff"}):
            async with running.http.get(url, headers=headers) as answer:
                assert answer.status == 401
                assert "token_file" in await answer.text()
