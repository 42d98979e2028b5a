"""Clients of a storm: each asks one request after the other, of kinds drawn by lot, and notes what became of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tests.fakes.expert import DEFAULT_TOKENS

REQUEST_TIMEOUT_S = 20.0
"""The coordinator's `api.request_timeout_s`: the budget of a request that has no tighter one that must hold."""
GRACE_S = 5.0
BACK_OFF_S = 0.7
"""After an answer that says that nobody can answer now."""
GIVE_UP_S = 40.0
"""After the budget and its grace a client waits on, so that the coordinator's pauses can be taken off."""
BOMB_BYTES = 100_000_000
ROUTE = "/v1/chat/completions"
RESPONSES_ROUTE, MESSAGES_ROUTE = "/v1/responses", "/v1/messages"
MIN_RESPONSE_TOKENS = 16
"""The Responses API takes no smaller `max_output_tokens`."""
MODEL = "fake"
DIES_ON, HANGS_ON = "poison", "spell"

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "additionalProperties": False}
STRUCTURES: tuple[dict[str, Any], ...] = (
    {"grammar": 'root ::= "a"{2,1}'},
    {"grammar": "root ::= [z-a]+"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": "#"}}}},
    {"tools": [_TOOL]},
)
BAD_BODIES = (
    b"{",
    b'{"model": "fake", "messages": []}',
    b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "max_tokens": -2}',
    b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "max_tokens": ' + 5000 * b"9" + b"}",
    b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "unheard_of": 1}',
    b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}',
    b"[" * 100_000,
)
WEIGHTS = {
    "plain": 20,
    "stream": 25,
    "resumed": 10,
    "tiny_deadline": 10,
    "vote": 4,
    "rank": 4,
    "mix": 4,
    "consensus": 6,
    "responses": 8,
    "messages": 8,
    "leaves": 8,
    "structured": 6,
    "bad_body": 4,
    "no_key": 2,
    "bomb": 1,
    "bomb_with_key": 1,
    "poison": 2,
    "structured_poison": 2,
    "spell": 1,
}
"""How often each kind of request is drawn."""


@dataclass
class Ended:
    """What a client has seen of one request.

    began_s, seconds: by the monotonic clock. limit_s: when it must have ended. expected: what the experts must say;
    None where no answer may come. marks: ends that it was told. broken: the connection ended first. left: the client
    left before the end. refused: nobody listened.
    """

    kind: str
    began_s: float
    limit_s: float
    expected: str | None = None
    seconds: float = 0.0
    status: int | None = None
    request_id: str | None = None
    text: str = ""
    marks: int = 0
    error: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None
    broken: bool = False
    left: bool = False
    refused: bool = False
    gave_up: bool = False

    @property
    def is_answered(self) -> bool:
        """True if the client has a whole answer."""
        return self.status == 200 and self.marks > 0 and self.error is None and not self.broken


@dataclass(frozen=True)
class Asked:
    """A request before it is sent. leaves_after_s: when the client goes away; None if it stays."""

    ended: Ended
    body: dict[str, Any]
    leaves_after_s: float | None = None
    route: str = ROUTE


class Client:
    """One client with a key of its own. seed: makes its choices repeatable."""

    def __init__(self, number: int, seed: int, url: str, key: str, bombs: Bombs) -> None:
        self._random = random.Random(f"{seed} client {number}")
        self._number = number
        self._url = url
        self._key = key
        self._bombs = bombs
        self._asked = 0
        self.ended: list[Ended] = []

    async def run(self, until_s: float) -> None:
        """Ask until this moment of the monotonic clock; the last request is read to its end."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(self._url, timeout=timeout) as http:
            while time.monotonic() < until_s:
                await self.ask_once(http)
                await asyncio.sleep(self._random.uniform(0.0, 0.05))

    async def ask_once(self, http: aiohttp.ClientSession, kind: str | None = None) -> Ended:
        """One request of a kind drawn by lot, or of this one."""
        kind = kind or self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind in ("no_key", "bomb", "bomb_with_key"):
            ended = await self._send_raw(kind)
        elif kind == "bad_body":
            ended = Ended(kind, time.monotonic(), REQUEST_TIMEOUT_S)
            await self._read(http, ended, self._random.choice(BAD_BODIES), None)
        else:
            asked = self._request(kind)
            ended = asked.ended
            await self._read(http, ended, json.dumps(asked.body).encode(), asked.leaves_after_s, asked.route)
        ended.seconds = time.monotonic() - ended.began_s
        self.ended.append(ended)
        if ended.refused or ended.status == 503:
            await asyncio.sleep(BACK_OFF_S)
        return ended

    async def ask_of_liar(self, http: aiohttp.ClientSession, model: str) -> None:
        """A request to an agent that answers "a" and then lies. It counts as left where this task is cancelled."""
        ended = Ended("liar", time.monotonic(), REQUEST_TIMEOUT_S, expected="a", left=True)
        self.ended.append(ended)
        body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        await self._read(http, ended, json.dumps(body).encode(), None)
        ended.left, ended.seconds = False, time.monotonic() - ended.began_s

    # --- Requests -----------------------------------------------------------------------------------------------------

    def _request(self, kind: str) -> Asked:
        """Its words are its own, so that another request's answer shows."""
        draw = self._random
        self._asked += 1
        words = [f"c{self._number}n{self._asked}w{place}" for place in range(draw.randint(2, 6))]
        if kind in ("poison", "structured_poison", "spell"):
            words[draw.randrange(len(words))] = HANGS_ON if kind == "spell" else DIES_ON
        n_tokens = draw.randint(1, 24)
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": n_tokens,
            "stream": draw.random() < 0.5,
        }
        ended = Ended(kind, time.monotonic(), REQUEST_TIMEOUT_S, expected=echo(words, n_tokens))
        wish: dict[str, Any] = {}
        match kind:
            case "stream" | "resumed":
                body["stream"] = True
                wish["resume"] = kind == "resumed"
            case "tiny_deadline":
                latency_s = draw.choice((0.0005, 0.002, 0.01, 0.1, 0.3))
                wish |= {"latency_budget_s": latency_s, "strict": draw.random() < 0.5}
                ended.limit_s = latency_s if wish["strict"] else REQUEST_TIMEOUT_S
            case "vote":
                wish |= {"mode": "vote", "choices": ["yes", "no"]}
                del body["max_tokens"]
                ended.expected = "yes"
            case "responses":
                n_tokens = max(n_tokens, MIN_RESPONSE_TOKENS)
                body |= {"input": body.pop("messages")[0]["content"], "max_output_tokens": n_tokens}
                del body["max_tokens"]
                ended.expected = echo(words, n_tokens)
            case "consensus":
                words += ["the", "answer", "is", "7."]
                body["messages"][0]["content"] = " ".join(words)
                wish |= {"mode": "consensus", "answer": draw.choice(("number", "text", "json", None))}
                ended.expected = echo(words, n_tokens)
            case "rank" | "mix":
                wish["mode"] = kind
                body["temperature"] = 0
                if kind == "mix":
                    # By then a fake expert proposes the end.
                    ended.expected = echo(words, min(n_tokens, DEFAULT_TOKENS))
            case "structured" | "structured_poison":
                body |= draw.choice(STRUCTURES)
        if wish:
            body["moe2"] = wish
        if DIES_ON in words:
            # An engine that hangs may be let go on by the storm; one that dies never answers.
            ended.expected = None
        leaves_after_s = draw.uniform(0.0, 0.6) if kind == "leaves" else None
        route = {"responses": RESPONSES_ROUTE, "messages": MESSAGES_ROUTE}.get(kind, ROUTE)
        return Asked(ended, body, leaves_after_s, route)

    async def _read(
        self,
        http: aiohttp.ClientSession,
        ended: Ended,
        body: bytes,
        leaves_after_s: float | None,
        route: str = ROUTE,
    ) -> None:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        patience_s = ended.limit_s + GRACE_S + GIVE_UP_S
        try:
            async with asyncio.timeout(patience_s if leaves_after_s is None else leaves_after_s):
                async with http.post(route, data=body, headers=headers) as response:
                    await _read_response(response, ended)
        except TimeoutError:
            ended.left, ended.gave_up = leaves_after_s is not None, leaves_after_s is None
        except aiohttp.ClientConnectorError:
            ended.refused = True
        except (aiohttp.ClientError, ConnectionError):
            ended.broken = True

    async def _send_raw(self, kind: str) -> Ended:
        """A request that no client library would send."""
        ended = Ended(kind, time.monotonic(), REQUEST_TIMEOUT_S)
        address = urlsplit(self._url)
        request = self._bombs.request(kind, self._key, self._random)
        try:
            async with asyncio.timeout(ended.limit_s + GRACE_S + GIVE_UP_S):
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                try:
                    writer.write(request)
                    # Who is refused before the end of its body may find the connection closed.
                    with suppress(ConnectionError):
                        line = await reader.readline()
                        ended.status = int(line.split()[1]) if line else None
                    ended.marks = ended.status is not None
                    ended.broken = ended.status is None
                finally:
                    writer.transport.abort()
        except TimeoutError:
            ended.gave_up = True
        except OSError:
            ended.refused = True
        return ended


@dataclass
class Bombs:
    """Bodies that are small packed and large unpacked; made once."""

    packed: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        once = gzip.compress(bytes(BOMB_BYTES))
        self.packed = {"gzip": once, "gzip, gzip": gzip.compress(once)}

    def request(self, kind: str, key: str, draw: random.Random) -> bytes:
        """The bytes of a whole request."""
        if kind == "no_key":
            encoding, body = "identity", b'{"model": "fake"}'
        else:
            encoding = draw.choice(sorted(self.packed))
            body = self.packed[encoding]
        lines = [f"POST {ROUTE} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += [f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"]
        if kind == "bomb_with_key":
            lines.append(f"Authorization: Bearer {key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def echo(words: list[str], n_tokens: int) -> str:
    """What a fake expert answers: the prompt's words, one per token, again and again."""
    return "".join(words[place % len(words)] + " " for place in range(n_tokens))


# --- Reading ----------------------------------------------------------------------------------------------------------


async def _read_response(response: aiohttp.ClientResponse, ended: Ended) -> None:
    ended.status = response.status
    ended.request_id = response.headers.get("x-request-id")
    if response.content_type != "text/event-stream":
        _note_body(ended, json.loads(await response.read()))
        return
    received = b""
    async for chunk in response.content.iter_any():
        received += chunk
        *events, received = received.split(b"\n\n")
        for event in events:
            _note_event(ended, event)


def _note_body(ended: Ended, content: Mapping[str, Any]) -> None:
    """A whole answer or error, as any of the three APIs has it."""
    ended.marks += 1
    ended.error, ended.receipt = content.get("error"), content.get("moe2")
    for choice in content.get("choices", ()):
        ended.text += choice["message"].get("content") or ""
    # The Responses API's items have parts; the Messages API's parts have no items around them.
    parts = [part for item in content.get("output", ()) for part in item.get("content", ())]
    for part in (*parts, *content.get("content", ())):
        ended.text += part.get("text") or ""


def _note_event(ended: Ended, event: bytes) -> None:
    for data in _data_of(event):
        if data == b"[DONE]":
            ended.marks += 1
            continue
        content = json.loads(data)
        ended.receipt = content.get("moe2", ended.receipt)
        match content.get("type"):
            case "response.completed" | "response.incomplete" | "response.failed":
                response = content["response"]
                ended.marks += 1
                ended.error, ended.receipt = response.get("error"), response.get("moe2", ended.receipt)
            case "response.output_text.delta":
                ended.text += content["delta"]
            case "content_block_delta":
                ended.text += content["delta"]["text"]
            case "message_stop":
                ended.marks += 1
            case _:
                _note_chunk(ended, content)


def _note_chunk(ended: Ended, content: Mapping[str, Any]) -> None:
    """A chunk of chat completions, or an event with an error."""
    if content.get("error"):
        ended.error = content["error"]
        ended.marks += 1
    for choice in content.get("choices", ()):
        ended.text += choice["delta"].get("content") or ""


def _data_of(event: bytes) -> Iterator[bytes]:
    for line in event.split(b"\n"):
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ")
