"""How scenarios speak to a fleet through OpenAI's own client, and what they read in its answers."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from tests.fakes.fleet import Fleet


def client_of(running: Fleet, key: str = "unused", *, retries: int = 0) -> AsyncOpenAI:
    """A client of the fleet's coordinator that presents `key`."""
    return AsyncOpenAI(base_url=f"{running.coordinator.api_url}/v1", api_key=key, max_retries=retries)


def text_of(body: dict[str, Any]) -> str:
    """The text of a chat completion that is not streamed."""
    text: str = body["choices"][0]["message"]["content"]
    return text
