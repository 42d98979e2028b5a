"""A client that speaks OpenAI's wire format: plain HTTP and server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from examples.demo.errors import DemoError
from moe2.common.link.reports import ExpertState
from moe2.common.status import CoordinatorStatus

POLL_S = 0.25
ANY_MODEL = "moe2"


@dataclass(frozen=True)
class Prompt:
    """A prompt. model: an expert's model, or `ANY_MODEL` to let the coordinator choose. wishes: its `moe2` object."""

    text: str
    model: str = ANY_MODEL
    max_tokens: int = 48
    wishes: dict[str, Any] = field(default_factory=dict)

    def body(self, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            **({"moe2": self.wishes} if self.wishes else {}),
        }
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


@dataclass(frozen=True)
class Answer:
    """ttft_s: from sending to the first text, seen here. receipt: the `moe2` object of the stream's last chunk."""

    prompt: Prompt
    text: str
    ttft_s: float | None
    completion_tokens: int | None
    receipt: dict[str, Any]


class DemoClient:
    """Talks to one coordinator."""

    def __init__(self, http: aiohttp.ClientSession, api_url: str) -> None:
        self._http = http
        self._api_url = api_url

    async def wait_until_ready(self, n_experts: int, on_progress: Callable[[str], None], *, timeout_s: float) -> None:
        """Poll until the coordinator is ready and all experts are. Raises `DemoError` for a model that fails."""
        said = "starting"
        try:
            async with asyncio.timeout(timeout_s):
                while said := await self._readiness(n_experts):
                    on_progress(said)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise DemoError(f"The fleet is not ready after {timeout_s:.0f} s: {said}.") from None

    async def _readiness(self, n_experts: int) -> str:
        """What is still being waited for; "" when nothing is."""
        try:
            fleet = await self.fleet()
            async with self._http.get(f"{self._api_url}/readyz") as response:
                ready = response.status == 200
        except aiohttp.ClientConnectionError:
            return "the coordinator starts"
        experts = [expert for agent in fleet.agents for expert in agent.experts if agent.connected]
        for expert in experts:
            if expert.state is ExpertState.FAILED:
                raise DemoError(f"{expert.model} cannot be loaded: {expert.last_error}")
        missing = n_experts - len(experts)
        waiting = [f"{expert.model} {expert.state}" for expert in experts if expert.state is not ExpertState.READY]
        if missing > 0:
            waiting.append(f"{missing} agents start")
        return ", ".join(waiting) if waiting or ready else "the coordinator gets ready"

    async def ask(self, prompt: Prompt) -> Answer:
        """One streamed chat completion. Raises `DemoError` if it is not answered in full."""
        started_s = time.monotonic()
        ttft_s, pieces = None, []
        usage: dict[str, Any] = {}
        receipt: dict[str, Any] = {}
        try:
            async with self._http.post(
                f"{self._api_url}/v1/chat/completions", json=prompt.body(stream=True)
            ) as response:
                if response.status != 200:
                    raise DemoError(f"{prompt.text!r}: HTTP {response.status}: {await response.text()}")
                async for chunk in _events(response):
                    if "error" in chunk:
                        raise DemoError(f"{prompt.text!r}: {chunk['error'].get('message')}")
                    piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                    if piece and ttft_s is None:
                        ttft_s = time.monotonic() - started_s
                    pieces.append(piece)
                    usage, receipt = chunk.get("usage") or usage, chunk.get("moe2") or receipt
        except aiohttp.ClientError as error:
            raise DemoError(f"{prompt.text!r}: the connection broke: {error}") from None
        if not receipt:
            raise DemoError(f"{prompt.text!r}: the stream ended without a receipt.")
        return Answer(prompt, "".join(pieces), ttft_s, usage.get("completion_tokens"), receipt)

    async def refusal(self, prompt: Prompt) -> dict[str, Any]:
        """Return the error of a prompt whose budgets nobody keeps. Raises `DemoError` if it is answered."""
        body = await self._posted("/v1/chat/completions", prompt.body(stream=False), status=422)
        return dict(body["error"])

    async def plan(self, prompt: Prompt) -> dict[str, Any]:
        """Return the decision about a prompt that is not run."""
        return await self._posted("/v1/moe2/plan", prompt.body(stream=False), status=200)

    async def score(self, answer: Answer, score: float) -> None:
        """Say how good an answer was, 0 to 1."""
        body = {"request_id": answer.receipt["request_id"], "score": score}
        await self._posted("/v1/moe2/feedback", body, status=200)

    async def fleet(self) -> CoordinatorStatus:
        """Return what the coordinator shows of its fleet."""
        async with self._http.get(f"{self._api_url}/v1/moe2/fleet") as response:
            return msgspec.json.decode(await response.read(), type=CoordinatorStatus)

    async def _posted(self, path: str, body: dict[str, Any], *, status: int) -> dict[str, Any]:
        try:
            async with self._http.post(self._api_url + path, json=body) as response:
                text = await response.text()
        except aiohttp.ClientError as error:
            raise DemoError(f"{path}: the connection broke: {error}") from None
        if response.status != status:
            raise DemoError(f"{path}: HTTP {response.status} instead of {status}: {text}")
        return dict(json.loads(text))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of every server-sent event up to `[DONE]`."""
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)
