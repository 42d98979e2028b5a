"""The length of answers without a limit is learned from those that came, and is known after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes.fleet import Fleet, fleet


async def planned(running: Fleet, **fields: Any) -> dict[str, Any]:
    """What would be decided for a request, without running it."""
    body = {"model": "moe2", "messages": [{"role": "user", "content": "one two three"}], **fields}
    async with running.http.post("/v1/moe2/plan", json=body) as answer:
        assert answer.status == 200
        return dict(await answer.json())


async def test_answers_without_a_limit_are_predicted_by_those_that_came_before(tmp_path: Path) -> None:
    """256 tokens are assumed before the first answer, and about 16 after thirty of these, also in the next run."""
    async with fleet(tmp_path) as running:
        before = await planned(running)
        assert (before["answer_tokens"], before["longest_answer_tokens"]) == (256, 256)
        for _ in range(30):
            async with await running.chat("one two three") as said:
                assert said.status == 200
        await running.quiet()
        after = await planned(running)
        assert after["answer_tokens"] <= 24  # The fake writes 16.
        assert after["answer_tokens"] <= after["longest_answer_tokens"] < 256
        assert (await planned(running, max_tokens=90))["answer_tokens"] == 90
    async with fleet(tmp_path) as again:
        kept = await planned(again)
        assert [kept[name] for name in ("answer_tokens", "longest_answer_tokens")] == [
            after[name] for name in ("answer_tokens", "longest_answer_tokens")
        ]
