"""Ollama's API through its own client, and as apps send it, over fake experts that say the prompt's words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import ollama
import pytest
from ollama import AsyncClient

from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet

pytestmark = pytest.mark.slow

TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ECHOED = 'Wait <tool_call> {"name":"weather","arguments":{"city":"Bonn"}} </tool_call>'


def client_of(running: Fleet, **options: Any) -> AsyncClient:
    return AsyncClient(host=running.coordinator.api_url, **options)


def said(content: str, **more: Any) -> list[Any]:
    return [{"role": "user", "content": content, **more}]


async def posted(running: Fleet, path: str, **body: Any) -> tuple[int, Any]:
    """The status, and the document or the lines of an answer."""
    async with running.http.post(path, json=body) as answer:
        text = await answer.text()
        if answer.content_type == "application/x-ndjson":
            return answer.status, [json.loads(line) for line in text.splitlines()]
        return answer.status, json.loads(text)


async def test_a_chat_is_answered_with_its_figures(tmp_path: Path) -> None:
    """The client finds text, reason and counts; the receipt stands beside them."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat("moe2", said("one two three"), options={"num_predict": 2})
        assert answer.message.content == "one two "
        assert (answer.done, answer.done_reason, answer.model) == (True, "length", "fake")
        assert (answer.prompt_eval_count, answer.eval_count) == (3, 2)
        assert answer.total_duration
        _, whole = await posted(running, "/api/chat", model="fake", messages=said("a"), stream=False)
        assert whole["moe2"]["experts"][0]["outcome"] == "answered"
        assert whole["created_at"].endswith("Z")


async def test_lines_come_unless_they_are_not_wanted(tmp_path: Path) -> None:
    """A body that says nothing of streams gets one; the last line alone is done, and has figures and receipt."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        stream = await client.chat("fake:latest", said("a b"), stream=True, options={"num_predict": 3})
        parts = [part async for part in stream]
        assert "".join(part.message.content or "" for part in parts) == "a b a "
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        status, lines = await posted(running, "/api/chat", model="fake", messages=said("a b"))
        assert status == 200
        assert "moe2" in lines[-1]
        assert all("moe2" not in line for line in lines[:-1])


async def test_calls_have_their_arguments_as_objects_and_results_go_back(tmp_path: Path) -> None:
    """Streamed and whole; Ollama's calls have no ids, so that results find their calls by the tool's name."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        options = {"num_predict": 4}
        answer = await client.chat("moe2", said(ECHOED), tools=[TOOL], options=options)
        [call] = list(answer.message.tool_calls or ())
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Bonn"})
        assert answer.message.content == "Wait"
        stream = await client.chat("moe2", said(ECHOED), tools=[TOOL], options=options, stream=True)
        calls = [call async for part in stream for call in part.message.tool_calls or ()]
        assert [call.function.arguments for call in calls] == [{"city": "Bonn"}]
        history = [*said("Bonn?"), answer.message, {"role": "tool", "tool_name": "weather", "content": "sunny"}]
        assert (await client.chat("moe2", history, tools=[TOOL], options=options)).message.content


async def test_texts_are_generated(tmp_path: Path) -> None:
    """With a system text as a conversation, raw as they stand, streamed and whole."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        options = {"num_predict": 2, "num_ctx": 8192, "stop": ["x"], "temperature": 0}
        answer = await client.generate("moe2", "two three", system="one", options=options, keep_alive=-1)
        assert (answer.response, answer.done_reason) == ("two three ", "length")
        assert (await client.generate("moe2", "a b", raw=True, options=options)).response == "a b "
        stream = await client.generate("moe2", "a b", stream=True, options=options)
        assert "".join([part.response async for part in stream]) == "a b "
        async with running.http.post(
            "/api/generate", json={"model": "moe2", "prompt": "a", "stream": False, "options": {"num_ctx": 8192}}
        ) as response:
            assert response.headers["x-moe2-ignored"] == "options.num_ctx"


async def test_models_are_listed_and_described(tmp_path: Path) -> None:
    """As apps look for them: names, what they can do, their context; those that are not there are a 404."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        assert [model.model for model in (await client.list()).models] == ["moe2", "fake"]
        assert [model.model for model in (await client.ps()).models] == ["fake"]
        shown = await client.show("fake:latest")
        assert "completion" in (shown.capabilities or ())
        assert shown.modelinfo
        architecture = shown.modelinfo["general.architecture"]
        assert shown.modelinfo[f"{architecture}.context_length"] > 0
        assert (await client.pull("fake")).status == "success"
        for asked in (client.show("nothing"), client.pull("nothing"), client.chat("nothing", said("a"))):
            with pytest.raises(ollama.ResponseError) as error:
                await asked
            assert error.value.status_code == 404
            assert "nothing" in error.value.error
        async with running.http.get("/api/version") as version:
            assert set(await version.json()) == {"version", "moe2"}


async def test_a_model_that_is_only_to_be_loaded_is_there(tmp_path: Path) -> None:
    """No request reaches a host, and none is in the ledger."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        assert (await client.generate("fake")).done_reason == "load"
        _, document = await posted(running, "/api/chat", model="fake", keep_alive=0, messages=[])
        assert (document["done_reason"], document["message"]["content"]) == ("unload", "")
        assert (await posted(running, "/api/chat", model="nothing"))[0] == 404
        async with running.http.get("/v1/moe2/ledger?by=model") as ledger:
            assert (await ledger.json())["sums"] == []


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "messages[0].images"),
    ("chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    ("chat", {"messages": said("a"), "options": {"temperature": 9}}, "options.temperature"),
    ("chat", {"messages": said("a"), "options": {"num_predict": 0}}, "options.num_predict"),
    ("chat", {"messages": said("a"), "options": {"mirostat": 2}}, "options.mirostat"),
    ("chat", {"messages": said("a"), "format": "yaml"}, "format"),
    ("chat", {"messages": said("a"), "think": "hard"}, "think"),
    ("chat", {"messages": said("a"), "unheard": 1}, "unheard"),
    ("generate", {"prompt": "a", "images": ["aGk="]}, "images"),
    ("generate", {"prompt": "a", "context": [1, 2]}, "context"),
    ("generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
    ("generate", {"prompt": "a", "raw": True, "system": "Be brief."}, "system"),
    ("generate", {"prompt": "a", "suffix": "b", "think": True}, "think"),
    ("chat", {"messages": said("a"), "top_logprobs": 2}, "top_logprobs"),
    ("chat", {"messages": said("a", thinking="So.")}, "messages[0].thinking"),
    ("chat", {"messages": said("a", tool_name="f")}, "messages[0].tool_name"),
    ("embed", {"input": []}, "input"),
    ("show", {}, "model"),
]


async def test_what_cannot_be_done_is_named(tmp_path: Path) -> None:
    """In Ollama's shape: a text, with the parameter beside it."""
    async with fleet(tmp_path) as running:
        for path, fields, named in REFUSED:
            body = fields if path == "show" else {"model": "moe2", **fields}
            status, error = await posted(running, f"/api/{path}", **body)
            assert (status, error["param"]) == (400, named)
            assert named in error["error"]


async def test_a_key_is_asked_for_where_keys_are(tmp_path: Path) -> None:
    """The client sends it as Ollama's own cloud has it."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, api={"keys": "required"}) as running:
        async with client_of(running) as client:
            with pytest.raises(ollama.ResponseError) as error:
                await client.chat("moe2", said("a"))
        assert error.value.status_code == 401
        async with client_of(running, headers={"Authorization": f"Bearer {key}"}) as client:
            assert (await client.chat("moe2", said("a"), options={"num_predict": 1})).message.content == "a "


async def test_a_silence_is_filled_with_lines(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Clients read every line as JSON, so that what is sent while they wait is a line that says nothing."""
    async with fleet(tmp_path, engine_argv=controlled, api={"stream_comment_s": 0.01}) as running:
        asked = {"model": "moe2", "messages": said("a"), "options": {"num_predict": 2}}
        request = asyncio.create_task(running.http.post("/api/chat", json=asked))
        step = await control.next_phase()
        async with await request as answer:
            assert answer.content_type == "application/x-ndjson"
            silent = [json.loads(await answer.content.readline()) for _ in range(3)]
            assert [line["message"]["content"] for line in silent] == ["", "", ""]
            step.answer()
            control.release()
            lines = [json.loads(line) for line in (await answer.text()).splitlines()]
            assert "".join(line["message"]["content"] for line in lines) == "a a "
            assert lines[-1]["done"]
