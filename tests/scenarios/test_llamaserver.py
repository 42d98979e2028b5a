"""llama-server's own routes over fake experts that say the prompt's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.fleet import fleet

pytestmark = pytest.mark.slow


async def test_a_text_is_continued_whole_and_streamed(tmp_path: Path) -> None:
    """llama-server's clients read text, reason, counts and times, and of a stream the events until one says stop."""
    async with fleet(tmp_path) as running:
        body = {"prompt": "one two three", "n_predict": 2, "cache_prompt": True, "typical_p": 1.0, "id_slot": -1}
        async with running.http.post("/completion", json=body) as answer:
            whole = await answer.json()
        assert (whole["content"], whole["stop"], whole["stop_type"]) == ("one two ", True, "limit")
        assert (whole["tokens_predicted"], whole["tokens_evaluated"], whole["model"]) == (2, 3, "fake")
        assert whole["timings"]["predicted_n"] == 2
        assert whole["moe2"]["experts"][0]["outcome"] == "answered"
        assert "x-moe2-ignored" not in answer.headers

        async with running.http.post("/completion", json={**body, "stream": True}) as answer:
            lines = (await answer.text()).split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert "".join(event["content"] for event in events) == "one two "
        assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
        assert events[-1]["moe2"]["tokens"]["decoded"] == 2

        wanted = ["content", "timings/predicted_n", "truncated", "timings/none", "content/none"]
        async with running.http.post("/completion", json={**body, "response_fields": wanted}) as answer:
            assert await answer.json() == {"content": "one two ", "timings/predicted_n": 2, "truncated": False}

        async with running.http.post("/completion", json={**body, "mirostat": 2}) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["param"]) == (400, "mirostat")
