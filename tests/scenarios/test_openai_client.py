"""The stock OpenAI client against a coordinator with two agents and fake experts."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.fakes.fleet import fleet
from tests.scenarios.clients import client_of


async def test_chat_is_answered_with_usage_and_receipt(tmp_path: Path) -> None:
    """A chat completion has text, finish reason, usage and moe2's receipt."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(
            model="moe2", messages=[{"role": "user", "content": "one two three"}], max_tokens=4
        )
        assert answer.choices[0].message.content == "one two three one "
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
        assert answer.model_extra is not None
        assert answer.model_extra["moe2"]["experts"][0]["outcome"] == "answered"


async def test_unmeasured_joules_are_null_in_the_receipt(tmp_path: Path) -> None:
    """Where no sensor measured, the receipt says unmeasured and null, never 0."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
        assert answer.model_extra is not None
        energy = answer.model_extra["moe2"]["energy"]
        assert energy["quality"] == "unmeasured"
        assert energy["joules"] is None


async def test_stream_ends_with_usage_and_receipt(tmp_path: Path) -> None:
    """A stream yields the text piece by piece, then usage and receipt in the last chunk."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        stream = await client.chat.completions.create(
            model="moe2",
            messages=[{"role": "user", "content": "a b c"}],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "a b c a b c "
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6
        assert chunks[-1].model_extra is not None
        assert "moe2" in chunks[-1].model_extra


async def test_completions_route_continues_text(tmp_path: Path) -> None:
    """The older route takes a plain prompt, streaming or not."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.completions.create(model="moe2", prompt="x y", max_tokens=3)
        assert answer.choices[0].text == "x y x "
        stream = await client.completions.create(model="moe2", prompt="x y", max_tokens=3, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "x y x "


async def test_logprobs_come_in_openais_shape(tmp_path: Path) -> None:
    """Token log-probabilities with their alternatives."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(
            model="moe2",
            messages=[{"role": "user", "content": "a"}],
            max_tokens=2,
            logprobs=True,
            top_logprobs=2,
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [token.logprob for token in logprobs.content] == [-0.5, -0.5]
        assert len(logprobs.content[0].top_logprobs) == 2


async def test_stop_string_ends_the_answer(tmp_path: Path) -> None:
    """A stop string is honoured and not part of the text."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(
            model="moe2", messages=[{"role": "user", "content": "a b c"}], stop=["c"], max_tokens=9
        )
        assert answer.choices[0].message.content == "a b "
        assert answer.choices[0].finish_reason == "stop"


async def test_models_are_listed(tmp_path: Path) -> None:
    """`moe2` and every model of the fleet, each retrievable."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        names = [model.id async for model in client.models.list()]
        assert names == ["moe2", "fake"]
        assert (await client.models.retrieve("fake")).id == "fake"


async def test_unknown_model_is_not_found(tmp_path: Path) -> None:
    """The error names the models that exist."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        with pytest.raises(openai.NotFoundError, match="Known: moe2, auto, fake"):
            await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])


async def test_unsupported_parameter_is_named(tmp_path: Path) -> None:
    """A parameter that moe2 does not implement is refused, not dropped."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(
                model="moe2",
                messages=[{"role": "user", "content": "hi"}],
                web_search_options={},
            )
        assert refusal.value.param == "web_search_options"
        assert refusal.value.code == "unsupported_parameter"


async def test_prompt_longer_than_the_context_is_refused_with_numbers(tmp_path: Path) -> None:
    """The expert's own count is in the error."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64}]
    async with fleet(tmp_path, models=models) as running, client_of(running) as client:
        with pytest.raises(openai.BadRequestError, match="has 100 tokens, the context holds 64") as refusal:
            await client.chat.completions.create(model="moe2", messages=[{"role": "user", "content": "word " * 100}])
        assert refusal.value.code == "context_length_exceeded"


async def test_no_agents_is_service_unavailable(tmp_path: Path) -> None:
    """Without a live expert: 503 with what to look at, and not ready."""
    async with fleet(tmp_path, agents=()) as running, client_of(running) as client:
        with pytest.raises(openai.InternalServerError, match="moe2-coordinator status"):
            await client.chat.completions.create(model="moe2", messages=[{"role": "user", "content": "hi"}])
        async with running.http.get("/readyz") as ready, running.http.get("/healthz") as health:
            assert (ready.status, health.status) == (503, 200)
