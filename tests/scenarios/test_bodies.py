"""Bodies over real HTTP: packed ones, refused ones, and those that wait to be asked for."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from moe2.coordinator.http.body.parse import Call, parse_completion
from moe2.coordinator.http.faces import completions
from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.scenarios.test_slow_clients import POST, connected

pytestmark = pytest.mark.slow

CHAT = json.dumps({"model": "moe2", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}).encode()
BOMB = gzip.compress(bytes(20_000_000))


async def answer_to(running: Fleet, body: bytes, encoding: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, document and headers of a chat request that was packed by hand."""
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json", **headers}
    async with running.http.post("/v1/chat/completions", data=body, headers=headers) as answer:
        return answer.status, await answer.json(), dict(answer.headers)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_packed_request_is_answered(tmp_path: Path, encoding: str, pack: Any) -> None:
    """Small ones, and those that take many steps to unpack."""
    async with fleet(tmp_path) as running:
        for body in (CHAT, CHAT + b" " * 1_000_000):
            status, document, _ = await answer_to(running, pack(body), encoding)
            assert status == 200
            assert document["choices"][0]["message"]["content"] == "a b "


async def test_a_bomb_is_too_large(tmp_path: Path) -> None:
    """20 kB that unpack to 20 MB are over `api.max_body_bytes`."""
    async with fleet(tmp_path, agents=()) as running:
        status, document, _ = await answer_to(running, BOMB, "gzip")
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert "api.max_body_bytes" in document["error"]["message"]


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip"])
async def test_other_encodings_are_415_with_those_accepted(tmp_path: Path, encoding: str) -> None:
    """In the message, and in the header of RFC 9110 section 15.5.16."""
    async with fleet(tmp_path, agents=()) as running:
        status, document, headers = await answer_to(running, b"x", encoding)
        assert (status, document["error"]["code"]) == (415, "unsupported_encoding")
        assert "gzip, deflate" in document["error"]["message"]
        assert headers["Accept-Encoding"] == "gzip, deflate"


async def test_the_key_comes_before_the_encoding(tmp_path: Path) -> None:
    """A stranger learns that a key is needed, nothing else."""
    async with fleet(tmp_path, agents=(), api={"keys": "required"}) as running:
        assert [(await answer_to(running, BOMB, encoding))[0] for encoding in ("gzip", "br")] == [401, 401]


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"Content-Length: 99999999", b"413"), (b"Content-Length: 9\r\nContent-Encoding: br", b"415")],
)
async def test_what_the_headers_tell_is_refused_before_the_body_comes(
    tmp_path: Path, header: bytes, status: bytes
) -> None:
    """Nothing of it was sent."""
    async with fleet(tmp_path, agents=()) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + header + b"\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"", b"100"),
        (b"Content-Encoding: br\r\n", b"415"),
        (b"Authorization: Bearer wrong\r\n", b"401"),
    ],
)
async def test_a_body_is_asked_for_once_its_headers_are_good(tmp_path: Path, header: bytes, status: bytes) -> None:
    """Expect: 100-continue is answered with the refusal where there is one."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, api={"keys": "required"}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            allowed = b"" if header.startswith(b"Authorization") else f"Authorization: Bearer {key}\r\n".encode()
            length = f"Content-Length: {len(CHAT)}\r\n".encode()
            writer.write(POST + b"Expect: 100-continue\r\n" + allowed + header + length + b"\r\n")
            assert (await reader.readline()).split()[1] == status
            if status == b"100":
                writer.write(CHAT)
                assert await reader.readline() == b"\r\n"
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_an_unknown_expectation_is_417(tmp_path: Path) -> None:
    """In OpenAI's shape, like any other error."""
    async with fleet(tmp_path, agents=()) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + b"Expect: the-best\r\nContent-Length: 2\r\n\r\n{}")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 417")
            assert b'"expectation_failed"' in await reader.read(10_000)


async def test_a_body_in_tiny_chunks_is_refused(tmp_path: Path) -> None:
    """Each costs the parser as much as a large one; some small ones are nobody's fault."""
    async with fleet(tmp_path) as running:
        tiny = b"".join(b"1\r\n%c\r\n" % byte for byte in CHAT)
        for spaces, status in ((0, b"200"), (2000, b"400")):
            async with connected(running.coordinator.api_url) as (reader, writer):
                chunks = tiny + spaces * b"1\r\n \r\n" + b"0\r\n\r\n"
                writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
                assert (await reader.readline()).split()[1] == status


async def test_what_follows_a_refusal_is_not_parsed(tmp_path: Path) -> None:
    """Its sender sees the answer, and then the connection's end."""
    async with fleet(tmp_path, agents=(), api={"keys": "required"}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            # Parsed, it would be answered with a second error.
            writer.write(b"no chunk at all\r\n")
            assert b"HTTP/1." not in await reader.read()


async def test_bodies_that_do_not_come_leave_room_for_others(tmp_path: Path) -> None:
    """One key fills the room with bodies that it never ends, until it is refused; another one is answered."""
    _, greedy = add_key(KeyFile(tmp_path), 1)
    _, honest = add_key(KeyFile(tmp_path), 2)
    limits = {"keys": "required", "max_body_bytes": 1024}
    async with fleet(tmp_path, api=limits) as running:
        held = [await asyncio.open_connection(*address(running)) for _ in range(40)]
        try:
            for _, writer in held:
                writer.write(POST + f"Authorization: Bearer {greedy}\r\nContent-Length: 1024\r\n\r\n".encode())
                writer.write(b" " * 1023)
            async with asyncio.timeout(60):
                done, rest = await asyncio.wait(
                    [asyncio.ensure_future(reader.readline()) for reader, _ in held],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            assert all(task.result().startswith(b"HTTP/1.1 429") for task in done)
            headers = {"Authorization": f"Bearer {honest}"}
            async with running.http.post("/v1/chat/completions", data=CHAT, headers=headers) as answer:
                assert answer.status == 200
            for task in rest:
                task.cancel()
        finally:
            for _, writer in held:
                writer.close()


def address(running: Fleet) -> tuple[str, int]:
    host, _, port = running.coordinator.api_url.removeprefix("http://").partition(":")
    return host, int(port)


# --- The agents' listener ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: 1000000\r\n", b"400"),
        (b"Expect: 100-continue\r\nContent-Length: 1000000\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n", b"400"),
        (b"Origin: http://evil.example\r\n", b"403"),
    ],
)
async def test_the_agents_listener_takes_no_bodies_and_no_pages(tmp_path: Path, header: bytes, status: bytes) -> None:
    """Before anything of a body has come, whoever has the token."""
    async with fleet(tmp_path, agents=()) as running:
        async with connected(running.coordinator.agents_url) as (reader, writer):
            token = f"Authorization: Bearer {TOKEN}\r\n".encode()
            writer.write(b"GET /v1/agents HTTP/1.1\r\nHost: localhost\r\n" + token + header + b"\r\n")
            assert (await reader.readline()).split()[1] == status


async def test_others_are_answered_while_a_long_body_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop does not wait for the parser of half a million token ids."""
    begun, may_end = threading.Event(), threading.Event()

    def parse(*given: Any) -> Call:
        begun.set()
        assert may_end.wait(60)
        return parse_completion(*given)

    monkeypatch.setattr(completions, "parse_completion", parse)
    body = json.dumps({"model": "moe2", "prompt": list(range(500_000)), "max_tokens": 1}).encode()
    async with fleet(tmp_path) as running:
        asked = asyncio.ensure_future(running.http.post("/v1/completions", data=io.BytesIO(body)))
        try:
            assert await asyncio.to_thread(begun.wait, 60)
            async with running.http.get("/healthz") as health:
                assert health.status == 200
            assert not asked.done()
        finally:
            may_end.set()
        assert (await asked).status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1] * 4097}),
        ("/v1/completions", {"prompt": [[1], [1] * 4097]}),
        ("/v1/completions", {"prompt": "a" * 128 * 4097}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 128 * 2049}] * 2}),
        ("/v1/responses", {"input": "a" * 128 * 4097}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a" * 128 * 4097}], "max_tokens": 1}),
    ],
)
@pytest.mark.parametrize("model", ["moe2", "fake"])
async def test_a_prompt_that_fits_no_context_for_certain_goes_to_no_agent(
    tmp_path: Path, path: str, body: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the words by which clients tell that a context was too small, and names the largest one."""
    async with fleet(tmp_path) as running:
        sent: list[object] = []
        monkeypatch.setattr(running.coordinator._hub, "send", lambda *given: sent.append(given))
        async with running.http.post(path, json={"model": model, **body}) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 4096 tokens" in error["message"]
        assert sent == []
