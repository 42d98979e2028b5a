"""What clients send by habit, over real HTTP to a fleet: accepted, mapped, or said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fleet import fleet


async def test_what_changes_nothing_is_listed_in_a_header(tmp_path: Path) -> None:
    """Parameters that are accepted for clients' sake are named in the answer; others are not."""
    async with fleet(tmp_path) as running:
        async with await running.chat("hi", store=True, metadata={"a": "b"}, verbosity="medium") as answer:
            assert answer.status == 200
            assert answer.headers["x-moe2-ignored"] == "store, metadata"
        async with await running.chat("hi") as answer:
            assert "x-moe2-ignored" not in answer.headers


async def test_unknown_parameters_are_left_out_where_the_settings_say_so(tmp_path: Path) -> None:
    """Their names are in the header, however odd; the setting is taken over by a reload."""
    odd = {"temprature": 1, "a\r\nx-evil: 1": 2}
    async with fleet(tmp_path) as running:
        async with await running.chat("hi", **odd) as answer:
            assert answer.status == 400
        running.configuration["api"]["unknown_parameters"] = "ignore"
        running.coordinator.reload()
        async with await running.chat("hi", stream=True, **odd) as answer:
            assert answer.status == 200
            assert answer.headers["x-moe2-ignored"] == "temprature, a??x-evil??1"
            assert "x-evil" not in answer.headers


async def test_an_answer_goes_on_from_its_beginning(tmp_path: Path) -> None:
    """An assistant's message at the end is continued: the answer is what follows it."""
    async with fleet(tmp_path) as running:
        messages = [{"role": "user", "content": "one two three four"}, {"role": "assistant", "content": "one two"}]
        body = {"model": "moe2", "messages": messages, "max_tokens": 2}
        async with running.http.post("/v1/chat/completions", json=body) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == "three four "


@pytest.mark.slow
async def test_a_limit_beyond_the_context_is_shortened_and_said(tmp_path: Path) -> None:
    """The answer comes, the receipt tells what the context left, and nobody plans for more than that."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64}]
    async with fleet(tmp_path, models=models) as running:
        async with await running.chat("a b", max_tokens=100_000) as answer:
            body = await answer.json()
            assert answer.status == 200, body
            assert body["moe2"]["max_tokens_within_context"] == 62
        async with await running.chat("a b", max_tokens=60) as answer:
            assert (await answer.json())["moe2"]["max_tokens_within_context"] is None
        plan = {"model": "moe2", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 100_000}
        async with running.http.post("/v1/moe2/plan", json=plan) as answer:
            planned = await answer.json()
            assert planned["answer_tokens"] <= planned["longest_answer_tokens"] <= 62


async def test_an_alias_answers_for_its_model(tmp_path: Path) -> None:
    """A client with a model's name built in is answered by the one that the settings name."""
    async with fleet(tmp_path, api={"aliases": {"gpt-4o-mini": "moe2"}}) as running:
        async with await running.chat("hi", model="gpt-4o-mini") as answer:
            assert (await answer.json())["model"] == "fake"
