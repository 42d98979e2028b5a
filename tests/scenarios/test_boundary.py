"""The edges of the API that clients meet by habit: paths, methods, keys, ids, and HTTP that is none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import structlog

from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import fleet

pytestmark = pytest.mark.slow

CHAT = {"model": "moe2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1//chat/completions"),
        ("POST", "/chat/completions"),
        ("GET", "/v1/models/"),
        ("GET", "/models"),
        ("GET", "/models/fake"),
        ("GET", "/v1/models/fake/"),
        ("GET", "/health"),
        ("GET", "/health/"),
    ],
)
async def test_a_path_is_found_as_clients_write_it(tmp_path: Path, method: str, path: str) -> None:
    """With a slash too many, or as other servers have it."""
    async with fleet(tmp_path) as running:
        body = CHAT if method == "POST" else None
        async with running.http.request(method, f"{running.coordinator.api_url}{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()


async def test_a_wrong_method_says_which_there_are(tmp_path: Path) -> None:
    """A 405 has the header that HTTP wants, and OpenAI's shape; other paths are a 404, with or without a slash."""
    async with fleet(tmp_path) as running:
        async with running.http.get("/v1/chat/completions") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
            assert "does not take GET" in (await answer.json())["error"]["message"]
        for path in ("/v1/nothing", "/v1/nothing/", "/page/"):
            async with running.http.get(path) as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "api-key"])
async def test_a_key_comes_in_any_of_three_headers(tmp_path: Path, header: str) -> None:
    """OpenAI's, Anthropic's and Azure's clients each have their own; a wrong key is wrong in each of them."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, api={"keys": "required"}) as running:
        for secret, status in ((key, 200), ("wrong", 401), ("", 401)):
            value = f"Bearer {secret}" if header == "Authorization" else secret
            async with running.http.post("/v1/chat/completions", json=CHAT, headers={header: value}) as answer:
                assert answer.status == status


@pytest.mark.parametrize("header", ["x-request-id", "x-client-request-id"])
async def test_a_clients_own_id_comes_back_beside_ours(tmp_path: Path, header: str) -> None:
    """It is bounded and of plain characters, in the header and in the receipt; on errors, too."""
    async with fleet(tmp_path) as running:
        for body, status in ((CHAT, 200), ({}, 400)):
            headers = {header: "mine-1 é" + "x" * 1000}
            async with running.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == status
                mine = answer.headers["x-client-request-id"]
                assert mine.startswith("mine-1?")
                assert len(mine) == 128
                assert answer.headers["x-request-id"].startswith("req-")
                if status == 200:
                    assert (await answer.json())["moe2"]["client_request_id"] == mine


async def test_a_clients_own_id_is_not_logged_with_its_next_request(tmp_path: Path) -> None:
    """Requests of one connection have a context each, with only their own ids there."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        async with fleet(tmp_path, agents=()) as running:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("moe2.coordinator.http.routes.answering.Answering._check_can_begin", breaks)
                for headers in ({"x-request-id": "mine"}, {}):
                    async with running.http.post("/v1/chat/completions", json=CHAT, headers=headers) as answer:
                        assert answer.status == 500
    failed = [entry for entry in logged if entry["event"] == "request_handler_failed"]
    assert [entry.get("client_request_id") for entry in failed] == ["mine", None]


def breaks(*_: object) -> None:
    """Raises, as a handler with a defect does."""
    raise ZeroDivisionError


NO_HTTP = [
    b"GET /v1/models HTTP/9.9.9\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("sent", NO_HTTP, ids=["version", "length", "header", "tls", "long"])
async def test_what_is_no_http_is_answered_in_json(tmp_path: Path, sent: bytes) -> None:
    """The HTTP library's own answer is plain text, which no client of the API expects."""
    async with fleet(tmp_path, agents=()) as running:
        host, _, port = running.coordinator.api_url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        answer = (await asyncio.wait_for(reader.read(), 30)).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        assert head.split()[1] == "400"
        assert "application/json" in head
        assert "Server: moe2" in head
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error"
        assert len(body) < 3000


async def test_a_context_that_is_too_small_is_told_in_the_words_that_clients_know(tmp_path: Path) -> None:
    """LiteLLM, LangChain and others look for these phrases, in whole answers and in streams."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64}]
    async with fleet(tmp_path, models=models) as running:
        async with await running.chat("word " * 100) as answer:
            error = (await answer.json())["error"]
    assert error["code"] == "context_length_exceeded"
    phrases = ("this model's maximum context length is 64", "exceeds the context window", "prompt is too long")
    for phrase in phrases:
        assert phrase in error["message"].lower()
    assert "100" in error["message"]
