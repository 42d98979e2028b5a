"""Several answers to one request, several prompts, token ids, and prompts that are scored, over HTTP to a fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import Fleet, fleet, model_file

pytestmark = pytest.mark.slow


async def complete(running: Fleet, **fields: Any) -> dict[str, Any]:
    body = {"model": "moe2", "prompt": "a b c", "max_tokens": 2, **fields}
    async with running.http.post("/v1/completions", json=body) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200, found
        return found


async def streamed(running: Fleet, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, without comments and the end marker."""
    body = {"model": "moe2", "stream": True, **fields}
    async with running.http.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        lines = (await answer.text()).splitlines()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


async def test_each_prompt_has_its_answers_in_order(tmp_path: Path) -> None:
    """Two prompts with two answers each are four choices; usage counts each prompt once, the receipt every expert."""
    async with fleet(tmp_path) as running:
        answer = await complete(running, prompt=["a b", "c d e"], n=2)
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            *((0, "a b "), (1, "a b "), (2, "c d "), (3, "c d ")),
        ]
        assert answer["usage"]["prompt_tokens"] == 5
        assert answer["usage"]["completion_tokens"] == 8
        assert len(answer["moe2"]["experts"]) == 4
        assert answer["id"] == f"cmpl-{answer['moe2']['request_id']}"


async def test_several_answers_of_a_chat_are_streamed_by_their_index(tmp_path: Path) -> None:
    """Each answer has its role, its text and its finish reason; the last chunk has the receipt, and no other one."""
    async with fleet(tmp_path) as running:
        messages = [{"role": "user", "content": "a b c"}]
        chunks = await streamed(running, "/v1/chat/completions", messages=messages, n=3, max_tokens=2)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == "a b "
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]
    assert [bool(chunk.get("moe2")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks[-1]["moe2"]["experts"]) == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_of_a_stream_is_that_of_all_answers(tmp_path: Path) -> None:
    """Where usage is asked for, it comes once, behind the last answer."""
    async with fleet(tmp_path) as running:
        chunks = await streamed(
            running, "/v1/completions", prompt="a b c", n=2, max_tokens=2, stream_options={"include_usage": True}
        )
    assert [chunk["usage"] is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


async def test_each_chunk_tells_the_usage_so_far_where_it_is_asked_for(tmp_path: Path) -> None:
    """As vLLM has it: each answer counts its own tokens, with the prompt's; the last chunk has those of all."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    messages = [{"role": "user", "content": "a b c"}]
    async with fleet(tmp_path) as running:
        chunks = await streamed(
            running, "/v1/chat/completions", messages=messages, n=2, max_tokens=3, stream_options=options
        )
    for index in range(2):
        own = [chunk["usage"] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == index]
        told = [usage["completion_tokens"] for usage in own]
        assert told == sorted(told)
        assert told[-1] == 3
        assert {usage["prompt_tokens"] for usage in own} == {chunks[-1]["usage"]["prompt_tokens"]}
        assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in own)
    assert chunks[-1]["usage"]["completion_tokens"] == 6


async def test_one_answer_that_fails_fails_them_all(tmp_path: Path) -> None:
    """The error is an HTTP error, and what the others took is accounted."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64, "slots": 4}]
    async with fleet(tmp_path, models=models) as running:
        body = {"model": "moe2", "prompt": ["a b", "word " * 100]}
        async with running.http.post("/v1/completions", json=body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["code"] == "context_length_exceeded"
        await running.quiet()


async def test_more_answers_than_requests_may_run_are_refused(tmp_path: Path) -> None:
    """A request that asks for several counts as several, and none of them is begun."""
    async with fleet(tmp_path, api={"max_active_requests": 3}) as running:
        async with await running.chat("a", n=4) as answer:
            assert answer.status == 429
        async with await running.chat("a", n=3) as answer:
            assert answer.status == 200


SCORED: list[tuple[Any, list[str]]] = [("a b c", ["a ", "b ", "c "]), ([5, 7], ["t5 ", "t7 "])]


@pytest.mark.parametrize(("prompt", "tokens"), SCORED)
async def test_a_prompt_is_scored(tmp_path: Path, prompt: Any, tokens: list[str]) -> None:
    """With `echo`, `logprobs` and no tokens to write, every token of the prompt but the first has its likelihood."""
    async with fleet(tmp_path) as running:
        answer = await complete(running, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
        [choice] = answer["choices"]
        assert choice["text"] == "".join(tokens)
        assert choice["logprobs"]["tokens"] == tokens
        assert choice["logprobs"]["token_logprobs"] == [None, *[-0.25] * (len(tokens) - 1)]
        assert choice["logprobs"]["top_logprobs"][0] is None
        assert answer["usage"]["completion_tokens"] == 0


async def test_an_evaluation_harness_finds_its_logprobs(tmp_path: Path) -> None:
    """The request of lm-evaluation-harness's local-completions: a batch of token ids, and one token to write."""
    async with fleet(tmp_path) as running:
        answer = await complete(
            running,
            model="fake",
            prompt=[[1, 2, 3], [4, 5]],
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
            temperature=0,
        )
        for choice, length in zip(answer["choices"], (3, 2), strict=True):
            scores = choice["logprobs"]
            assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["top_logprobs"]) == length + 1
            assert sum(scores["token_logprobs"][1:-1]) == -0.25 * (length - 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_without_scores_is_the_prompt_itself(tmp_path: Path, stream: bool) -> None:
    """The prompt stands before its answer, letter for letter."""
    async with fleet(tmp_path) as running:
        fields = {"prompt": " a  b", "echo": True, "max_tokens": 1}
        if stream:
            chunks = await streamed(running, "/v1/completions", **fields)
            text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        else:
            text = (await complete(running, **fields))["choices"][0]["text"]
        assert text == " a  ba "


async def test_token_ids_are_for_a_model_with_a_name(tmp_path: Path) -> None:
    """Where the fleet has several models, the same ids mean something else to each."""
    models = [{"name": name, "path": model_file(tmp_path, name)} for name in ("one", "two")]
    async with fleet(tmp_path, models=models) as running:
        async with running.http.post("/v1/completions", json={"model": "moe2", "prompt": [1, 2]}) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, "model")
        await complete(running, model="two", prompt=[1, 2])
