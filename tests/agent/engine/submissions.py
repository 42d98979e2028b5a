"""Chats and texts as jobs for an engine's child, greedy unless asked otherwise."""

from __future__ import annotations

from typing import Any

from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt

PROMPTS = (
    "What is the capital of France?",
    "Count from one to ten.",
    "Write a poem about the sea.",
    "Why is the sky blue?",
    "Name three animals that live in Africa.",
    "What is two plus two?",
    "Tell me a joke about a cat.",
    "How do I boil an egg?",
)
CONTEXT_TOKENS = 2048


def chat_job(job_id: str, text: str, *, max_tokens: int = 16, **fields: Any) -> Submit:
    settings = {"sampling": Sampling(temperature=0), **fields}
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content=text),))
    return Submit(request_id="r", model="m", job_id=job_id, prompt=prompt, max_tokens=max_tokens, **settings)


def text_job(job_id: str, text: str, *, max_tokens: int | None = 16, **fields: Any) -> Submit:
    settings = {"sampling": Sampling(temperature=0), **fields}
    return Submit(
        request_id="r", model="m", job_id=job_id, prompt=TextPrompt(text=text), max_tokens=max_tokens, **settings
    )
