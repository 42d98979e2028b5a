"""The clients that are driven against a real fleet: where each comes from, and what is tried with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHECKS = ("chat", "stream", "tools", "structured", "responses", "embeddings", "errors")
"""What is tried, in the order of the table in docs/clients.md."""

PYTHON: Mapping[str, tuple[str, ...]] = {
    "newest": ("openai==3.57.0", "anthropic==2.14.0", "ollama==0.6.3"),
    "older": ("openai==1.109.1",),
    "frameworks": (
        "litellm==1.110.2",
        "langchain-openai==1.7.4",
        "pydantic-ai-slim[openai,anthropic]==2.38.0",
        # Pydantic AI 2.38.0 cannot build a message of the next major's types.
        "anthropic==1.17.0",
        "instructor==1.17.0",
        "llm==0.36",
    ),
}
"""Packages from PyPI by the environment that they share: the SDK's two majors exclude each other."""
NODE = (
    "openai@6.49.0",
    "ai@6.0.326",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
    "@ai-sdk/anthropic@3.0.140",
    "zod@4.6.7",
)
"""Packages from npm."""


@dataclass(frozen=True)
class Client:
    """One client.

    package: the one whose version the table shows. driver: a file of `drivers/`. environment: a key of `PYTHON`, or
    "node". checks: what its driver tries, of `CHECKS`; the client has no use for the others.
    """

    name: str
    package: str
    driver: str
    environment: str
    checks: tuple[str, ...] = CHECKS

    @property
    def version(self) -> str:
        """The version that is installed."""
        pins = NODE if self.environment == "node" else PYTHON[self.environment]
        pin = next(pin for pin in pins if pin.startswith((f"{self.package}=", f"{self.package}[", f"{self.package}@")))
        return pin.rpartition("@" if self.environment == "node" else "=")[2]


CLIENTS = (
    Client("OpenAI SDK, Python", "openai", "openai_sdk.py", "newest"),
    Client("OpenAI SDK, Python, an older major", "openai", "openai_sdk.py", "older"),
    Client("OpenAI SDK, JavaScript", "openai", "openai_node.mjs", "node"),
    Client("Anthropic SDK, Python", "anthropic", "anthropic_sdk.py", "newest", ("chat", "stream", "tools", "errors")),
    Client(
        "Ollama, Python",
        "ollama",
        "ollama_sdk.py",
        "newest",
        ("chat", "stream", "tools", "structured", "embeddings", "errors"),
    ),
    Client("LiteLLM", "litellm", "litellm_lib.py", "frameworks"),
    Client("LangChain", "langchain-openai", "langchain_lib.py", "frameworks"),
    Client(
        "Pydantic AI",
        "pydantic-ai-slim",
        "pydantic_ai_lib.py",
        "frameworks",
        ("chat", "stream", "tools", "structured", "responses"),
    ),
    Client("Instructor", "instructor", "instructor_lib.py", "frameworks", ("tools", "structured")),
    Client("llm (command)", "llm", "llm_cli.py", "frameworks", ("chat", "stream", "structured")),
    Client("Vercel AI SDK", "ai", "vercel_ai.mjs", "node"),
)
