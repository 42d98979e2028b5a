"""Feedback over HTTP, and over a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fakes.fleet import Fleet, fleet
from tests.fakes.fulldisk import room_for_bytes


async def scored(running: Fleet, request_id: str, score: Any) -> tuple[int, dict[str, Any]]:
    async with running.http.post("/v1/moe2/feedback", json={"request_id": request_id, "score": score}) as answer:
        return answer.status, await answer.json()


async def asked(running: Fleet) -> str:
    """The id of an answered request."""
    async with await running.chat("secret words", max_tokens=2) as answer:
        assert answer.status == 200
        return answer.headers["x-request-id"]


async def score_of_the_expert(running: Fleet) -> float:
    body = {"model": "moe2", "messages": [{"role": "user", "content": "hi"}]}
    async with running.http.post("/v1/moe2/plan", json=body) as answer:
        plan = await answer.json()
        return float(plan["decision"]["experts"][0]["score"])


async def test_feedback_moves_the_prior_and_outlives_a_restart(tmp_path: Path) -> None:
    """The id in the header is enough; the prompt itself is not kept."""
    async with fleet(tmp_path) as running:
        before = await score_of_the_expert(running)
        request_id = await asked(running)
        status, answer = await scored(running, request_id, 0)
        assert status == 200
        assert (answer["model"], answer["model_mean"], answer["model_count"]) == ("fake", 0.0, 1)
        after = await score_of_the_expert(running)
        assert after < before
        kept = (tmp_path / "feedback.jsonl").read_text()
        assert json.loads(kept)["request_id"] == request_id
        assert "secret" not in kept
    async with fleet(tmp_path) as running:
        assert await score_of_the_expert(running) == after
        status, answer = await scored(running, request_id, 1)
        assert (status, answer["error"]["code"]) == (404, "request_not_found")


async def test_prompts_are_kept_where_configured(tmp_path: Path) -> None:
    """`[selection] keep_prompts`."""
    async with fleet(tmp_path, selection={"keep_prompts": True}) as running:
        assert (await scored(running, await asked(running), 1))[0] == 200
        assert json.loads((tmp_path / "feedback.jsonl").read_text())["prompt"] == "secret words"


async def test_wrong_feedback_is_refused(tmp_path: Path) -> None:
    """Out of range, of no known request, or a second time."""
    async with fleet(tmp_path) as running:
        request_id = await asked(running)
        assert (await scored(running, request_id, 1.5))[1]["error"]["param"] == "score"
        assert (await scored(running, "req-nobody", 1))[0] == 404
        assert (await scored(running, request_id, 1))[0] == 200
        status, answer = await scored(running, request_id, 0)
        assert (status, answer["error"]["code"]) == (409, "already_scored")


async def test_feedback_that_cannot_be_kept_does_not_count(tmp_path: Path) -> None:
    """The client is told, and may send it again."""
    async with fleet(tmp_path) as running:
        request_id = await asked(running)
        (tmp_path / "feedback.jsonl").mkdir()
        status, answer = await scored(running, request_id, 1)
        assert (status, answer["error"]["code"]) == (500, "feedback_not_kept")
        assert "send it again" in answer["error"]["message"]
        (tmp_path / "feedback.jsonl").rmdir()
        assert (await scored(running, request_id, 1))[0] == 200


async def test_a_score_on_a_full_disk_is_not_lost_silently(tmp_path: Path) -> None:
    """The client is told, may send it again, and a restart finds every score that was answered with 200."""
    path = tmp_path / "feedback.jsonl"
    async with fleet(tmp_path) as running:
        first, second = await asked(running), await asked(running)
        assert (await scored(running, first, 1))[0] == 200
        # Longer than anything else that the fleet writes meanwhile.
        path.write_bytes(path.read_bytes() * 20_000)
        with room_for_bytes(path.stat().st_size + 20):
            status, answer = await scored(running, second, 0)
        assert (status, answer["error"]["code"]) == (500, "feedback_not_kept")
        assert path.read_bytes().endswith(b"}\n")
        status, answer = await scored(running, second, 0)
        assert (status, answer["model_count"]) == (200, 2)
    kept = path.read_bytes().splitlines()
    assert len(kept) == 20_001
    assert {json.loads(line)["request_id"] for line in kept} == {first, second}
